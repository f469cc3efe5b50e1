"""An experiment as a TOML file: one study, several methods at several prices, and how patients are dealt into folds.

Design note: the file states the study once, without its price; every method may change parts of it. The noise is never
written down: it is calibrated to the method's ε for the steps and histograms that the study plans, so no figure can
claim an ε that its steps did not have. Packaged experiments lie in `experiments/`; a path to another file works too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedtwin_shared.documents import check_document, read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import Positive, Rate, Section, require
from fedtwin_shared.privacy import (
    Mechanism,
    PrivacyBudget,
    PrivacyEvent,
    accounted_delta,
    calibrate_noise,
    compute_epsilon,
)
from fedtwin_shared.roster import Name, Roster
from fedtwin_shared.study import Study
from fedtwin_simulations.results import Method

Dataset = Literal["virtual", "virtual-large", "heart", "eicu", "physionet2012"]
Metric = Literal["auroc", "auprc", "accuracy", "brier", "calibration_error", "event1"]
Figure = Literal["overall", "site_mean"]

POOLED = "pooled"  # the one site of a pooled training
NOISE_DIGITS = 4  # noise multipliers are rounded up to this many decimals


class Partition(Section):
    """How patients are dealt into training and test parts.

    rule: `published`, the data set's own published split; `resplit`, the same recipe under every seed; `folds`, cross-
    validation; `hash`, the rule of real studies.
    suffix: of the metric's name in results.
    """

    rule: Literal["published", "resplit", "folds", "hash"]
    suffix: str = ""
    folds: Annotated[int, Field(ge=2)] = 5
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, strict=False)]


class MethodEntry(Section):
    """One method at one price. `changes` are laid over the experiment's study; `variant` names them in results.

    noise: `local`, every site adds the whole noise; `distributed`, each of n sites adds 1/√n of it, and the price holds
    for who sees the sum of all sites only: what secure aggregation among honest sites gives, simulated here.
    """

    method: Method
    epsilon: Positive | None = None
    noise: Literal["local", "distributed"] = "local"
    variant: str = ""
    primary: bool = True
    changes: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> MethodEntry:
        agrees = (self.method == "private") == (self.epsilon is not None)
        require(agrees, field="epsilon", expected='a price with method "private" and only then', found=self.epsilon)
        agrees = self.noise == "local" or self.method == "private"
        require(agrees, field="noise", expected='"distributed" with method "private" only', found=self.noise)
        return self


class ReferenceEntry(Section):
    """A published figure to compare with."""

    name: str
    metric: str
    value: float
    source: str


class Experiment(Section):
    """A whole experiment. `study`: a study's tables without roster, ε, δ and noise."""

    format: Literal[1] = 1
    name: Name
    title: str
    dataset: Dataset
    address: str = ""  # where the public data set is downloaded
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, strict=False)]  # the first one is primary
    figure: Figure = "overall"
    delta: Rate
    demo_epsilon: Positive = 3.0
    partitions: Annotated[tuple[Partition, ...], Field(min_length=1, strict=False)]
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1, strict=False)]
    references: Annotated[tuple[ReferenceEntry, ...], Field(strict=False)] = ()
    policy: Annotated[tuple[str, ...], Field(strict=False)] = ()
    study: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        seen: set[object] = set()
        for position, entry in enumerate(self.methods):
            one = (entry.method, entry.epsilon)
            new = not entry.primary or one not in seen
            words = "one primary method for each price: set primary = false on the others"
            require(new, field=f"methods.{position}.primary", expected=words, found="another one")
            seen |= {one} if entry.primary else set()
        suffixes = [partition.suffix for partition in self.partitions]
        for position, suffix in enumerate(suffixes):
            place = f"partitions.{position}.suffix"
            require(suffix not in suffixes[:position], field=place, expected="each once", found=repr(suffix))
        return self

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the participants."""
        return tuple(part["site"] for part in self.study["participants"])


def list_experiments() -> tuple[str, ...]:
    """Return the names of the packaged experiments."""
    folder = files("fedtwin_simulations") / "experiments"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def read_experiment(name: str) -> Experiment:
    """Return a packaged experiment by its name, or the one in the file of that path.

    Raises `ConfigurationError` naming the file and the field, also for a study that is not valid.
    """
    path = Path(str(files("fedtwin_simulations") / "experiments" / f"{name}.toml"))
    if name not in list_experiments():
        path = Path(name)
        if not path.is_file():
            known = ", ".join(list_experiments())
            raise ConfigurationError(file=name, expected=f"one of {known}, or the path of a TOML file", found="neither")
    experiment = read_toml(path, Experiment)
    if not isinstance(experiment.study.get("participants"), list) or not all(
        isinstance(part, dict) and "site" in part for part in experiment.study["participants"]
    ):
        raise ConfigurationError(file=path, field="study.participants", expected="tables with a site", found="others")
    return experiment


def draft_study(
    experiment: Experiment,
    entry: MethodEntry,
    roster: Roster,
    *,
    pooled: bool = False,
    minimum_sites: int | None = None,
) -> Study:
    """Return the study of one method, its noise calibrated to the method's ε.

    pooled: adds the site `POOLED` with everybody's patients; the hospitals keep their place in the features.
    Raises `ConfigurationError` naming the field when the study is not valid.

    - the ε of the planned steps and histograms is at most the method's; with distributed noise, to who sees sums only
    """
    document = merge(experiment.study, entry.changes)
    document["roster"] = roster.digest
    if pooled:
        patients = sum(part["patients"] for part in document["participants"])
        document["participants"] = [*document["participants"], {"site": POOLED, "patients": patients}]
    if minimum_sites is not None:
        document["training"]["minimum_sites"] = minimum_sites
    set_price(document, epsilon=entry.epsilon, delta=experiment.delta)
    if entry.noise == "distributed":
        _distribute_noise(document, file=f"experiment {experiment.name}")
    return check_document(document, Study, file=f"experiment {experiment.name}")


def _distribute_noise(document: dict[str, Any], *, file: str) -> None:
    """Give each site its share of the noise, and the study the price that a site pays when all others tell theirs.

    Raises `ConfigurationError` unless a round's mean is the sum of all patients' gradients times one number: then the
    noise of n sites is that of one, and the sum's sensitivity one patient's clip.
    """
    training, privacy, parts = document["training"], document["privacy"], document["participants"]
    rates = [part.get("weight", 1.0) / part["patients"] for part in parts]
    one_step = training.get("local_steps", 1) == 1 and training["minimum_sites"] == len(parts)
    if not (one_step and all(math.isclose(rate, rates[0]) for rate in rates)):
        raise ConfigurationError(
            file=file,
            field="methods.noise",
            expected="weights by patients, one local step and every site in every round",
            found="others",
        )
    privacy["noise_multiplier"] /= math.sqrt(len(parts))
    steps = training["rounds"] + privacy.get("spare_rounds", 0)
    alone = PrivacyEvent(
        mechanism=Mechanism.POISSON_GAUSSIAN,
        noise_multiplier=privacy["noise_multiplier"],
        sampling_rate=privacy.get("sampling_rate", 1.0),
        count=steps,
    )
    privacy["epsilon"] = 1.01 * compute_epsilon([alone], delta=accounted_delta(privacy["delta"]))


def set_price(document: dict[str, Any], *, epsilon: float | None, delta: float) -> None:
    """Write privacy and evaluation noise of a study document for a price; None: no privacy at all."""
    training, evaluation = document["training"], document.setdefault("evaluation", {})
    privacy = document.setdefault("privacy", {})
    spare = privacy.get("spare_rounds", 0)
    if epsilon is None:
        # ε is not reached by anything here: the mode says that there is no guarantee.
        privacy |= {"mode": "none", "epsilon": 1.0, "delta": delta, "noise_multiplier": 0.0}
        evaluation["noise_multiplier"] = 0.0
        return
    steps = training.get("local_steps", 1) * (training["rounds"] + spare)
    releases = len(evaluation.get("rounds", ())) + 1 + spare
    noise = calibrated_noise(steps, privacy.get("sampling_rate", 1.0), epsilon, delta)
    privacy |= {"mode": "local", "epsilon": epsilon, "delta": delta, "noise_multiplier": noise}
    evaluation["noise_multiplier"] = calibrated_noise(releases, 1.0, epsilon, delta)


@functools.cache
def calibrated_noise(count: int, sampling_rate: float, epsilon: float, delta: float) -> float:
    """Return the noise multiplier, rounded up, with which `count` runs of the sampled Gaussian cost at most ε."""
    event = PrivacyEvent(
        mechanism=Mechanism.POISSON_GAUSSIAN, noise_multiplier=1.0, sampling_rate=sampling_rate, count=count
    )
    noise = calibrate_noise(event, PrivacyBudget(epsilon=epsilon, delta=delta))
    scale = 10.0**NOISE_DIGITS
    return math.ceil(noise * scale) / scale


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, table by table; neither is changed.

    >>> merge({"model": {"name": "mlp", "hidden": 8}}, {"model": {"hidden": 16}})
    {'model': {'name': 'mlp', 'hidden': 16}}
    """
    result = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result
