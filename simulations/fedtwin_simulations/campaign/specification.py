"""A campaign as a TOML file: hospitals, a study, and the cases that are compared under every seed.

Design note: a case says only in what it differs. `[[cases]]` and `[hospitals]` are checked strictly, and the study as
every study is, so a misspelt key cannot silently give the wrong experiment.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedtwin_shared.documents import check_document, read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import Count, NonNegative, Number, Positive, Rate, Section, require
from fedtwin_shared.roster import Name
from fedtwin_shared.signing import canonical_json, digest

Share = Annotated[Number, Field(ge=0, le=1)]
Kind = Literal["learning", "inversion", "membership"]
Method = Literal[
    "alone", "pooled", "fedavg", "fedprox", "fedadam", "fedyogi", "scaffold", "ditto", "fedbn"
]  # alone: each site its own model; the last three send or keep more than a study does: simulations only
Measure = Literal[
    "auroc",
    "site_auroc",
    "worst_site_auroc",
    "auprc",
    "brier",
    "calibration_error",
    "gain_over_alone",
    "sites_better_than_alone",
    "worst_group_auroc",
    "group_gap",
    "answers",
    "waited_hours",
    "seconds",
    "recovered",
    "reconstruction_error",
    "attack_auroc",
    "attack_advantage",
    "train_auroc",
]


class Hospitals(Section):
    """Virtual hospitals.

    count, patients: hospitals, and patients of each on average.
    label_skew: α of a Dirichlet distribution over hospitals by which patients of each outcome are dealt (Hsu et al.
    2019, arXiv:1909.06335); without it, patients stay where they were admitted.
    case_mix: α of a Dirichlet distribution over illnesses from which each hospital's own mix is drawn; without it, the
    usual four kinds of hospitals. The smaller α, the more hospitals differ.
    """

    count: Annotated[int, Field(ge=1, le=100_000)] = 8
    patients: Annotated[int, Field(ge=20)] = 250
    label_skew: Positive | None = None
    case_mix: Positive | None = None


class Case(Section):
    """One line of the table.

    epsilon: price of the whole study, None: no privacy. noise: each site's own, or one shared by all under secure
    aggregation, which is assumed here.
    hospitals, changes: laid over the campaign's hospitals and study.
    absent, slow: share of sites that cannot be reached in a round, and that answer only after `slow_hours`.
    batch: patients in the attacked step (inversion).
    group, x: of the plot: which line, and where on it.
    """

    name: str
    method: Method = "fedavg"
    epsilon: Positive | None = None
    noise: Literal["local", "distributed"] = "local"
    hospitals: dict[str, Any] = Field(default_factory=dict)
    changes: dict[str, Any] = Field(default_factory=dict)
    absent: Share = 0.0
    slow: Share = 0.0
    slow_hours: NonNegative = 24.0
    batch: Count = 4
    group: str = ""
    x: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Case:
        shared = self.noise == "distributed"
        require(
            not shared or self.epsilon is not None, field="epsilon", expected="a price to share", found=self.epsilon
        )
        personal = self.method in ("scaffold", "ditto", "fedbn")
        words = "none with scaffold, ditto and fedbn, which send or keep more than is charged"
        require(not personal or self.epsilon is None, field="epsilon", expected=words, found=self.epsilon)
        several = shared and self.method in ("alone", "pooled")
        require(not several, field="noise", expected="local where there is one site", found=self.noise)
        return self


class Plot(Section):
    """How the figure is drawn: one line for each group of cases over x, or a bar for each case."""

    x: str = ""
    y: Measure
    log: bool = False


class Span(Section):
    """Between what a number is looked for; log: evenly in its logarithm."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Span:
        require(self.low < self.high, field="low", expected=f"below high, {self.high:g}", found=self.low)
        require(not self.log or self.low > 0, field="low", expected="above 0 with log", found=self.low)
        return self


class Sweep(Section):
    """What is tuned, and on whom. space: by path in the study, such as "training.learning_rate"."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, strict=False)]
    trials: Count
    space: Annotated[dict[str, Span], Field(min_length=1)]


class Campaign(Section):
    """A whole campaign. `study`: a study's tables without roster, participants and price."""

    format: Literal[1] = 1
    name: Name
    title: str
    question: str
    kind: Kind = "learning"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1, strict=False)]
    delta: Rate = 1e-5
    measures: Annotated[tuple[Measure, ...], Field(min_length=1, strict=False)]  # the first one is primary
    hospitals: Hospitals
    cases: Annotated[tuple[Case, ...], Field(min_length=1, strict=False)]
    plot: Plot
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sweep: Sweep | None = None
    study: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Campaign:
        names = [case.name for case in self.cases]
        for place, name in enumerate(names):
            require(name not in names[:place], field=f"cases.{place}.name", expected="each once", found=repr(name))
        require(len(set(self.seeds)) == len(self.seeds), field="seeds", expected="each once", found=list(self.seeds))
        tuned = set(self.sweep.seeds if self.sweep is not None else ()) & set(self.seeds)
        words = "seeds that the campaign does not report"
        require(not tuned, field="sweep.seeds", expected=words, found=sorted(tuned))
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the file says."""
        return digest(
            canonical_json(
                self.model_dump(mode="json", exclude={"study", "cases"})
                | {
                    "study": _exact(self.study),
                    "cases": [_exact(case.model_dump(mode="python")) for case in self.cases],
                }
            )
        )

    def case(self, name: str) -> Case:
        """Return the case of that name. Raises `ConfigurationError`."""
        for case in self.cases:
            if case.name == name:
                return case
        known = ", ".join(case.name for case in self.cases)
        raise ConfigurationError(field="case", expected=f"one of {known}", found=name)


def _exact(value: Any) -> Any:
    """Numbers as decimal strings, as canonical JSON wants them."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _exact(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(one) for one in value]
    return value


def list_campaigns() -> tuple[str, ...]:
    """Return the names of the packaged campaigns."""
    folder = files("fedtwin_simulations") / "campaigns"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def is_campaign(name: str) -> bool:
    """Return whether this is a packaged campaign or a TOML file with cases."""
    if name in list_campaigns():
        return True
    try:
        return "cases" in tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it as an experiment says what is wrong


def read_campaign(name: str) -> Campaign:
    """Return a packaged campaign by its name, or the one in the file of that path.

    Raises `ConfigurationError` naming the file, the field and what was expected.
    """
    path = Path(str(files("fedtwin_simulations") / "campaigns" / f"{name}.toml"))
    if name not in list_campaigns():
        path = Path(name)
        if not path.is_file():
            known = ", ".join(list_campaigns())
            raise ConfigurationError(file=name, expected=f"one of {known}, or the path of a TOML file", found="neither")
    campaign = read_toml(path, Campaign)
    for place, case in enumerate(campaign.cases):
        hospitals_of(campaign, case, file=f"{path}: cases.{place}.hospitals")
    return campaign


def hospitals_of(campaign: Campaign, case: Case, *, file: str = "") -> Hospitals:
    """Return the hospitals of one case. Raises `ConfigurationError` for a key or value that none has."""
    return check_document({**campaign.hospitals.model_dump(), **case.hospitals}, Hospitals, file=file or campaign.name)
