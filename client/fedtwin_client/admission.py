"""Who of a study's patients is in a round's cohort: their consent, asked anew for every round.

Design note: the cohort that files and study give is read once in a process; who of it consents is decided at the first
task of each round, kept, and used for every task of that round, whatever is withdrawn meanwhile. Nothing else changes
with it: sampling rate and denominators are constants of the study, no answer and no refusal depends on how many are
left, and the ledger's cohort digest is written in every round whether or not anybody left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from fedtwin_client.consent import Rule, is_admitted
from fedtwin_client.consent_store import ConsentStore
from fedtwin_client.journal import TaskKey

if TYPE_CHECKING:  # torch and pandas, which checks and refusals do not need
    from fedtwin_client.cohort import Cohort


class Admission(Protocol):
    """Whom a hospital lends to a task."""

    def choose(self, key: TaskKey, cohort: Cohort) -> Cohort:
        """Return the patients of a study who are in the cohort of the key's round. Before the charge.

        Raises `FedtwinError` where that cannot be known: then nothing runs.
        """

    def note(self, key: TaskKey) -> None:
        """Keep that the chosen patients may be touched. After the charge, before any of them is.

        Raises `FedtwinError`.
        """


class AdmitEverybody:
    """Whom a simulation lends: virtual patients, who were not asked."""

    def choose(self, key: TaskKey, cohort: Cohort) -> Cohort:
        """See `Admission.choose`."""
        return cohort

    def note(self, key: TaskKey) -> None:
        """See `Admission.note`."""


class ConsentingPatients:
    """Whom a real hospital lends: those whose consents, by the policy's rule, permit it when the round begins.

    remember: is told the chosen cohort of a study, for the ledger's digests.
    """

    def __init__(
        self,
        store: ConsentStore,
        *,
        rule: Rule,
        clock: Callable[[], float],
        remember: Callable[[str, Cohort], None] = lambda study, cohort: None,
    ) -> None:
        self._store, self._rule, self._clock, self._remember = store, rule, clock, remember
        self._latest: dict[str, tuple[Cohort, frozenset[str], Cohort]] = {}

    def choose(self, key: TaskKey, cohort: Cohort) -> Cohort:
        """See `Admission.choose`."""
        now = int(self._clock() * 1000)
        everybody = (*cohort.train.patients, *cohort.test.patients)
        members = self._store.begin_round(
            key, everybody, judge=lambda decisions: is_admitted(decisions, self._rule, at=now)
        )
        chosen = self._chosen(key.study, cohort, members)
        self._remember(key.study, chosen)
        return chosen

    def note(self, key: TaskKey) -> None:
        """See `Admission.note`."""
        self._store.note_release(key)

    def _chosen(self, study: str, cohort: Cohort, members: frozenset[str]) -> Cohort:
        """Return the same object as long as nothing changes: what training measured about its rows holds for it."""
        from fedtwin_client.cohort import keep_patients

        whole, before, chosen = self._latest.get(study, (None, None, None))
        if whole is not cohort or before != members or chosen is None:
            chosen = keep_patients(cohort, members)
            self._latest[study] = cohort, members, chosen
        return chosen
