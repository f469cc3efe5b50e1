"""What this hospital permits, whatever a coordinator signs: fail-closed, asked before every task.

Design note: a study is admitted by a person (`fedtwin client approve`); the policy is what no approval can override.
Which studies were approved is not its business: one that was not is unknown. The policy is a table of `hospital.toml`,
and is in force only while the hospital's own signature over that very table lies beside it (`policy_signature`).
What a lifetime and a year may cost is compared with the ledger, before each charge (`spending_limits`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedtwin_shared.fields import Count, Key, Number, Positive, require
from fedtwin_shared.roster import Name, PublicKey
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.signing import canonical_json, digest
from fedtwin_shared.study import ModelName, Study, columns_read

EVERYTHING: Final = "*"  # in `allowed_signals`: every signal and category of the tables
MODEL_UPDATE: Final = "model-update"
SCORE_HISTOGRAM: Final = "score-histogram"

Bundle = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Policy(Protocol):
    """Whether a hospital lends itself to a study."""

    def refuses(self, study: Study) -> RefusalCode | None:
        """Return why not, or None. Decides on the study's own constants, never on patients."""


class SitePolicy(BaseModel):
    """The policy of a real hospital.

    maximum_epsilon: of one study; _year: of any 365 days; _lifetime: of everything; for every patient.
    minimum_noise: least noise sd ÷ sensitivity of anything that leaves.
    minimum_secure_peers: other hospitals without whose answers nobody sees this one's; 0: the noise is enough.
    trusted_peers: names and keys that this hospital verified itself; only these ever count.
    plan_signatures: who must have signed a study before its first round.
    human_approval: a study is approved by a person at a terminal, never by a script.
    consent: who is in a cohort: everybody who did not refuse (`opt-out`), or only who agreed (`opt-in`).

    - refuses a study without privacy: comparisons exist in simulations only
    - refuses a split that a file names: whoever writes the file would choose who is tested
    - refuses a price above its own maximum, and noise below its own minimum
    - refuses models, signals, releases and servers that it does not name
    - refuses a study in which an update is seen alone where it asks for peers
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    maximum_epsilon: Positive
    maximum_epsilon_year: Positive
    maximum_epsilon_lifetime: Positive
    maximum_delta: Annotated[Number, Field(gt=0, lt=1)]
    minimum_patients: Count
    minimum_noise: Positive
    minimum_secure_peers: Annotated[int, Field(ge=0)]
    allowed_models: Annotated[tuple[ModelName, ...], Field(strict=False)]
    allowed_signals: Annotated[tuple[Literal["*"] | Key, ...], Field(strict=False)]
    allowed_releases: Annotated[tuple[Literal["model-update", "score-histogram"], ...], Field(strict=False)]
    allowed_bundles: Annotated[tuple[Bundle, ...], Field(strict=False)]
    allowed_servers: Annotated[tuple[PublicKey, ...], Field(strict=False)]
    plan_signatures: Literal["coordinator", "every-site"]
    human_approval: bool
    consent: Literal["opt-in", "opt-out"]
    valid_until: date
    trusted_peers: Mapping[Name, PublicKey]

    @model_validator(mode="after")
    def _check(self) -> SitePolicy:
        study, year, life = self.maximum_epsilon, self.maximum_epsilon_year, self.maximum_epsilon_lifetime
        require(study <= year, field="maximum_epsilon_year", expected="at least maximum_epsilon", found=year)
        require(year <= life, field="maximum_epsilon_lifetime", expected="at least maximum_epsilon_year", found=life)
        return self

    def refuses(self, study: Study) -> RefusalCode | None:
        """See `Policy.refuses`."""
        return RefusalCode.POLICY if self.objections(study) else None

    def objections(self, study: Study) -> tuple[str, ...]:
        """Return, in words for the hospital's own people, everything that stands against the study."""
        privacy, noise = study.privacy, min(study.privacy.noise_multiplier, study.evaluation.noise_multiplier)
        found = []
        if privacy.mode == "none":
            found.append('privacy.mode "none" gives patients no protection')
        if study.split.rule == "column":
            found.append('split.rule "column" exists in simulations only')
        if not privacy.epsilon <= self.maximum_epsilon:
            found.append(f"privacy.epsilon {privacy.epsilon:g} is above this hospital's {self.maximum_epsilon:g}")
        if not privacy.delta <= self.maximum_delta:
            found.append(f"privacy.delta {privacy.delta:g} is above this hospital's {self.maximum_delta:g}")
        if not noise >= self.minimum_noise:
            found.append(f"noise_multiplier {noise:g} is below this hospital's {self.minimum_noise:g}")
        if self.minimum_secure_peers:
            # Every mode there is lets the coordinator see each update by itself.
            found.append(f"an update is seen alone, where this hospital asks for {self.minimum_secure_peers} peers")
        if study.model.name not in self.allowed_models:
            found.append(f"model.name {study.model.name} is not one that this hospital allows")
        if EVERYTHING not in self.allowed_signals:
            others = (name for name in columns_read(study) if name not in {study.outcome, *self.allowed_signals})
            found += [f"{name} is not a signal that this hospital allows" for name in others]
        found += [
            f"a {release} is not a release that this hospital allows"
            for release in (MODEL_UPDATE, SCORE_HISTOGRAM)
            if release not in self.allowed_releases
        ]
        return tuple(found)

    def describe(self) -> tuple[str, ...]:
        """Return the policy as lines that a person reads."""
        document = self.model_dump(mode="json")
        return tuple(f"{name}: {_write(value)}" for name, value in document.items())

    def statement(self, site: str) -> bytes:
        """Return the one byte form of this policy of `site`, which the hospital signs."""
        return canonical_json({"policy": self.model_dump(mode="json"), "site": site})

    def digest(self, site: str) -> str:
        """Return the SHA-256 of `statement`: what a ledger says of the policy in force."""
        return digest(self.statement(site))


def _write(value: object) -> str:
    """Return a value of the policy in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {key}" for name, key in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
