"""The signed agreement: what is asked, of whom, on which signals, by which model, at which price in privacy.

Design note: everything that could depend on a patient is a constant here (sampling rate, denominators, clipping,
noise, weights, edges), because a constant that a hospital approved cannot leak and a number in a message can lie.
A study names a model from the closed registry (`fedtwin_shared.models`); it never ships code.
A study is written as TOML, checked strictly, and frozen as canonical JSON, in which numbers that are not integers
are decimal strings. Its digest is in every later message.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtwin_shared.fields import Count, Key, NonNegative, Number, Positive, Rate, Section, Words, require
from fedtwin_shared.privacy import DELTA_SLACK, Mechanism, PrivacyBudget, PrivacyEvent, accounted_delta, compute_epsilon
from fedtwin_shared.roster import Name
from fedtwin_shared.signal import CATEGORIES, SIGNALS
from fedtwin_shared.signing import canonical_json, digest

ModelName = Literal["logistic", "mlp", "lstm", "gru", "mingru", "tcn"]
Statistic = Literal["mean", "min", "max", "first", "last", "sd", "slope", "count", "observed"]
LEVELS: frozenset[Statistic] = frozenset({"mean", "min", "max", "first", "last"})  # the statistics that are z-scores


class Participant(Section):
    """What the plan fixes about one site.

    patients: public nominal number of training patients; the denominator of every mean of gradients.
    weight: public weight of its update; weights are divided by their sum over the sites that answered.
    """

    site: Name
    patients: Count
    weight: Positive = 1.0


class Eligibility(Section):
    """Which patients: those with the outcome recorded and all of `requires` observed or known."""

    minimum_patients: Count
    requires: Annotated[tuple[Key, ...], Field(strict=False)] = ()


class Series(Section):
    """One signal over time, reduced in every time step to some statistics.

    hinges: adds max(0, z - 1), max(0, -z - 1) of every statistic in `LEVELS`, which shows a linear model both extremes.
    """

    signal: Key
    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1, strict=False)] = ("mean",)
    hinges: bool = False


class Fact(Section):
    """One number known at admission, repeated over time.

    observed: adds 1 where the number is known and 0 where it is not, since what was not measured tells something too.
    """

    signal: Key
    hinges: bool = False
    observed: bool = False


class Features(Section):
    """How a patient becomes x[windows, time, features].

    Windows of `window_hours` start at admission, one after the other; each has window_hours / step_hours time steps.
    """

    window_hours: Positive
    windows: Count = 1
    step_hours: Positive
    series: Annotated[tuple[Series, ...], Field(strict=False)] = ()
    facts: Annotated[tuple[Fact, ...], Field(strict=False)] = ()
    categories: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    site_indicator: bool = False
    carry_forward: bool = False
    limit: Positive = 4.0  # z-scores beyond ± limit are set to it

    @property
    def steps(self) -> int:
        """Number of time steps in one window."""
        return round(self.window_hours / self.step_hours)

    @model_validator(mode="after")
    def _check(self) -> Features:
        of_series, of_facts = [part.signal for part in self.series], [part.signal for part in self.facts]
        some = bool(of_series or of_facts or self.categories)
        require(some, field="series", expected="at least one of series, facts, categories", found="none")
        whole = self.steps > 0 and math.isclose(self.steps * self.step_hours, self.window_hours)
        require(whole, field="window_hours", expected="a multiple of step_hours", found=self.window_hours)
        for field, names, table, what in (
            ("series", of_series, SIGNALS, "a signal of the Signal table"),
            ("facts", of_facts, SIGNALS, "a signal of the Signal table"),
            ("categories", self.categories, CATEGORIES, "a category of the Category table"),
        ):
            for position, name in enumerate(names):
                require(name in table, field=f"{field}.{position}", expected=what, found=repr(name))
                require(
                    name not in names[:position], field=f"{field}.{position}", expected="each once", found=repr(name)
                )
        return self


class Split(Section):
    """Who is held out. `hash`: by a keyed digest of the patient id; `column`: by the file, in simulations only."""

    rule: Literal["hash", "column"] = "hash"
    test_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.25
    salt: str = "fedtwin"


class Model(Section):
    """A model of the closed registry and its size."""

    name: ModelName
    hidden: Count = 16
    layers: Count = 1
    kernel: Count = 3
    mask_as_input: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Training(Section):
    """Rounds, and what a site does in one round. Weight decay spares biases, which no prior holds near zero.

    positive_weight: constant weight of patients with the outcome in the loss.
    server_learning_rate, server_tau: η and τ of FedAdam and FedYogi (Reddi et al., ICLR 2021, algorithm 2); the others
        move by server_learning_rate times the mean update.
    average_from_round: the released model is the mean of the global models from this round on (0: the last one).
    """

    algorithm: Literal["fedavg", "fedprox", "fedadam", "fedyogi"] = "fedavg"
    rounds: Count
    local_steps: Count = 1
    learning_rate: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0
    proximal: NonNegative = 0.0
    server_learning_rate: Positive = 1.0
    server_tau: Positive = 1e-3
    positive_weight: Positive = 1.0
    average_from_round: Annotated[int, Field(ge=0)] = 0
    minimum_sites: Count
    patience_seconds: Positive = 30.0  # after this, a round goes on with minimum_sites
    deadline_seconds: Positive = 300.0  # after this, a round without minimum_sites ends the run

    @model_validator(mode="after")
    def _check(self) -> Training:
        start, patience = self.average_from_round, self.patience_seconds
        require(start <= self.rounds, field="average_from_round", expected="at most rounds", found=start)
        soon = patience <= self.deadline_seconds
        require(soon, field="patience_seconds", expected="at most deadline_seconds", found=patience)
        agrees = (self.algorithm == "fedprox") == (self.proximal > 0)
        require(agrees, field="proximal", expected="above 0 with fedprox and only then", found=self.proximal)
        return self


class Privacy(Section):
    """The price. One patient may spend (epsilon, delta); the mechanism is fixed.

    mode: `local`: every site adds its own whole noise and trusts nobody; `none`: simulations only.
    sampling_rate: probability with which a patient takes part in a step.
    noise_multiplier: noise sd on the sum of clipped gradients ÷ clip.
    spare_rounds: rounds that may be trained a second time after a crash; they are part of the price.
    """

    mode: Literal["local", "none"] = "local"
    epsilon: Positive
    delta: Annotated[Number, Field(gt=DELTA_SLACK, lt=1)]
    sampling_rate: Rate = 1.0
    # Far from the ends of float32, where noise would round away or overflow.
    clip: Annotated[Number, Field(ge=1e-6, le=1e6)] = 1.0
    noise_multiplier: Annotated[Number, Field(ge=0, le=1e6)]
    spare_rounds: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Privacy:
        agrees = (self.mode == "none") == (self.noise_multiplier == 0)
        require(
            agrees, field="noise_multiplier", expected='above 0, or 0 with mode "none"', found=self.noise_multiplier
        )
        return self


class Evaluation(Section):
    """Score histograms: one score per test patient, per class, over public edges, with Gaussian noise.

    rounds: the rounds whose model is evaluated (0: the initial one); the released model is evaluated after the last.
    noise_multiplier: noise sd ÷ √(number of overlapping groups); 0 with privacy mode `none` only.
    bins, low, high: bins of equal width in the logit of the score between low and high, plus one at either end.
    """

    rounds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    bins: Annotated[int, Field(ge=2, le=1000)] = 10  # every bin brings noise of its own: few tell more than many
    low: Number = -4.0
    high: Number = 2.0
    noise_multiplier: NonNegative
    subgroups: Annotated[tuple[Key, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        require(self.low < self.high, field="low", expected=f"below high, {self.high:g}", found=self.low)
        ordered = list(self.rounds) == sorted(set(self.rounds))
        require(ordered, field="rounds", expected="increasing numbers, each once", found=list(self.rounds))
        for position, name in enumerate(self.subgroups):
            what = "a category of the Category table"
            require(name in CATEGORIES, field=f"subgroups.{position}", expected=what, found=repr(name))
        return self


class Study(Section):
    """A whole study.

    - it cannot be written down at a price above its own budget: the accountant's ε of the whole plan is checked
    """

    format: Literal[1] = 1
    name: Name
    version: Count
    question: Words
    outcome: Key
    roster: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    participants: Annotated[tuple[Participant, ...], Field(min_length=1, strict=False)]
    cohort: Eligibility
    features: Features
    split: Split = Split()
    model: Model
    training: Training
    privacy: Privacy
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> Study:
        names = [part.site for part in self.participants]
        for position, name in enumerate(names):
            place = f"participants.{position}.site"
            require(name not in names[:position], field=place, expected="every participant once", found=name)
        fewest, evaluated = self.training.minimum_sites, self.evaluation.rounds
        require(
            fewest <= len(names), field="training.minimum_sites", expected=f"at most {len(names)} sites", found=fewest
        )
        require(
            not evaluated or evaluated[-1] < self.training.rounds,
            field="evaluation.rounds",
            expected=f"rounds before training.rounds, {self.training.rounds}: the released model is evaluated anyway",
            found=list(evaluated),
        )
        noise, private = self.evaluation.noise_multiplier, self.privacy.mode != "none"
        agrees = (noise > 0) == private
        words = 'above 0, or 0 with privacy.mode "none"'
        require(agrees, field="evaluation.noise_multiplier", expected=words, found=noise)
        if private:
            price, most = self.price(), self.privacy.epsilon
            words = f"at least the price of the plan, {price:.4f}"
            require(price <= most, field="privacy.epsilon", expected=words, found=most)
        return self

    @property
    def budget(self) -> PrivacyBudget:
        """The most one patient may spend in this study."""
        return PrivacyBudget(epsilon=self.privacy.epsilon, delta=self.privacy.delta)

    @property
    def planned_steps(self) -> int:
        """Private steps that one site may ever run for this study."""
        return self.training.local_steps * (self.training.rounds + self.privacy.spare_rounds)

    @property
    def planned_evaluations(self) -> int:
        """Histograms that one site may ever release for this study: the named rounds and the released model."""
        return len(self.evaluation.rounds) + 1 + self.privacy.spare_rounds

    def training_event(self, steps: int) -> PrivacyEvent:
        """What `steps` steps are to one training patient."""
        if self.privacy.mode == "none":
            return PrivacyEvent(mechanism=Mechanism.NOT_PRIVATE, noise_multiplier=0.0, count=steps)
        return PrivacyEvent(
            mechanism=Mechanism.POISSON_GAUSSIAN,
            noise_multiplier=self.privacy.noise_multiplier,
            sampling_rate=self.privacy.sampling_rate,
            count=steps,
        )

    def evaluation_event(self, releases: int) -> PrivacyEvent:
        """What `releases` histograms are to one test patient."""
        if self.privacy.mode == "none":
            return PrivacyEvent(mechanism=Mechanism.NOT_PRIVATE, noise_multiplier=0.0, count=releases)
        return PrivacyEvent(
            mechanism=Mechanism.GAUSSIAN, noise_multiplier=self.evaluation.noise_multiplier, count=releases
        )

    def spent(self, *, steps: int, releases: int) -> float:
        """Return the nominal ε of the patient who spent most.

        A patient is in the training or in the test part, decided by their own id alone, so the two compose in
        parallel: the maximum, not the sum.
        """
        delta = accounted_delta(self.privacy.delta)
        trained = compute_epsilon([self.training_event(steps)], delta=delta)
        tested = compute_epsilon([self.evaluation_event(releases)], delta=delta)
        return max(trained, tested)

    def price(self) -> float:
        """Return the ε of the whole plan, spare rounds included."""
        return self.spent(steps=self.planned_steps, releases=self.planned_evaluations)

    def participant(self, site: str) -> Participant | None:
        """Return what the plan fixes about `site`, or None when it takes no part."""
        indexed, by_site = self._by_site
        if indexed is not self.participants:  # `model_copy` takes the index of other participants along
            by_site = _index(self.participants)
        return by_site.get(site)

    @functools.cached_property
    def _by_site(self) -> tuple[tuple[Participant, ...], dict[str, Participant]]:
        return self.participants, _index(self.participants)

    def feature_names(self) -> tuple[str, ...]:
        """Return the name of each feature in the order of the tensors' last dimension."""
        parts: list[str] = []
        for series in self.features.series:
            for statistic in series.statistics:
                parts += _with_hinges(f"{series.signal}.{statistic}", series.hinges and statistic in LEVELS)
        for fact in self.features.facts:
            parts += _with_hinges(fact.signal, fact.hinges)
            parts += [f"{fact.signal}.observed"] if fact.observed else []
        for key in self.features.categories:
            parts += [f"{key}={level}" for level in CATEGORIES[key].levels]
        if self.features.site_indicator:
            parts += [f"site={part.site}" for part in self.participants]
        return tuple(parts)

    def canonical(self) -> bytes:
        """Return the study's one byte form."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form."""
        return digest(self.canonical())


def _index(participants: tuple[Participant, ...]) -> dict[str, Participant]:
    return {part.site: part for part in participants}


def _with_hinges(name: str, hinges: bool) -> list[str]:
    return [name, f"{name}.high", f"{name}.low"] if hinges else [name]


def columns_read(study: Study) -> tuple[str, ...]:
    """Return everything that the study reads of a patient, each once: outcome, signals, facts and categories."""
    features = study.features
    names = [study.outcome, *(part.signal for part in features.series), *(fact.signal for fact in features.facts)]
    names += [*features.categories, *study.cohort.requires, *study.evaluation.subgroups]
    return tuple(dict.fromkeys(names))


def is_held_out(split: Split, patient: str) -> bool:
    """Return whether the patient is in the test part under rule `hash`: public rule, own id only.

    - the part of one patient does not depend on any other patient
    """
    drawn = hashlib.sha256(f"{split.salt}\n{patient}".encode()).digest()[:8]
    return int.from_bytes(drawn, "big") < split.test_fraction * 2**64
