"""A consortium of virtual hospitals as a TOML file: who is admitted where, by what devices and habits it is charted.

format = 1
seed = 7                       # the same seed writes the same bytes; there is no default

[[hospitals]]
name = "north"
count = 20                     # north, north-2 … north-20: the same kind of hospital, other patients
patients = 150
event_share = 0.2              # optional: labels shifted to this share, patients of a label as they are

[hospitals.population]         # fields and defaults of `plant.patient.Population`
age_mean = 70.0
male_share = 0.45
type_two_share = 0.3
[hospitals.population.scenarios]
stable = 0.6
sepsis = 0.4

[hospitals.device]             # of `plant.sensor.Device`
noise = 1.2
skew_minutes = 3.0

[hospitals.charting]           # of `virtual_hospitals.Charting`
observed = 0.6
units = { temperature = "[degF]" }
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtwin_client.units import CONVERSIONS
from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import Count, NonNegative, Number, Section
from fedtwin_shared.roster import Name
from fedtwin_simulations.plant.patient import Population
from fedtwin_simulations.plant.scenario import NAMES
from fedtwin_simulations.plant.sensor import CHANNELS, Device
from fedtwin_simulations.virtual_hospitals import CaseMix, Charting, write_hospital

Share = Annotated[Number, Field(ge=0, le=1)]


class PopulationTable(Section):
    """Whom a hospital admits."""

    age_mean: Annotated[Number, Field(ge=18, le=100)] = 65.0
    age_sd: Annotated[Number, Field(ge=0, le=40)] = 14.0
    male_share: Share = 0.5
    type_one_share: Share = 0.02
    type_two_share: Share = 0.2
    smoker_share: Share = 0.2
    adherence: Share = 0.9
    severity: Annotated[Number, Field(gt=0, le=2)] = 0.5
    frailty: Annotated[Number, Field(ge=0, le=2)] = 1.0
    scenarios: dict[str, NonNegative]

    @model_validator(mode="after")
    def _check(self) -> PopulationTable:
        if not self.type_one_share + self.type_two_share <= 1:
            raise ValueError("expected type_one_share + type_two_share <= 1, found more")
        for name in self.scenarios:
            if name not in NAMES:
                raise ValueError(f"expected scenarios of {', '.join(NAMES)}, found {name!r}")
        if not sum(self.scenarios.values()) > 0:
            raise ValueError("expected scenarios with a sum above 0, found none")
        return self


class DeviceTable(Section):
    """The hospital's devices."""

    noise: Annotated[Number, Field(ge=0, le=10)] = 1.0
    drift: Annotated[Number, Field(ge=0, le=0.2)] = 0.005
    artefact_share: Share = 0.01
    gap_share: Annotated[Number, Field(ge=0, le=0.9)] = 0.05
    skew_minutes: Annotated[Number, Field(ge=-60, le=60)] = 0.0


class ChartingTable(Section):
    """What the hospital writes down, and how."""

    observed: Annotated[Number, Field(gt=0, le=1)] = 0.8
    vigilance: Annotated[Number, Field(ge=-1, le=1)] = 0.1
    units: dict[str, str] = Field(default_factory=dict)
    heaping: Annotated[int, Field(ge=1, le=20)] = 1
    unknown: Share = 0.02
    coded: Share = 0.9

    @model_validator(mode="after")
    def _check(self) -> ChartingTable:
        for signal, unit in self.units.items():
            if signal not in CHANNELS:
                raise ValueError(f"expected units of {', '.join(CHANNELS)}, found {signal!r}")
            if (signal, unit) not in CONVERSIONS:
                raise ValueError(f"expected a unit that a hospital's reader converts for {signal}, found {unit!r}")
        return self


class HospitalTable(Section):
    """One kind of hospital, `count` times."""

    name: Name
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    patients: Count
    event_share: Share | None = None
    population: PopulationTable
    device: DeviceTable = Field(default_factory=DeviceTable)
    charting: ChartingTable = Field(default_factory=ChartingTable)

    def list_case_mixes(self) -> tuple[CaseMix, ...]:
        """Return the hospitals of this kind."""
        return tuple(
            CaseMix(
                site=self.name if number == 1 else f"{self.name}-{number}",
                patients=self.patients,
                population=Population(**self.population.model_dump()),
                device=Device(**self.device.model_dump()),
                charting=Charting(**self.charting.model_dump()),
                event_share=self.event_share,
            )
            for number in range(1, self.count + 1)
        )


class ConsortiumFile(Section):
    """A whole consortium."""

    format: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    hospitals: Annotated[tuple[HospitalTable, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _check(self) -> ConsortiumFile:
        names = [case.site for kind in self.hospitals for case in kind.list_case_mixes()]
        if len(set(names)) != len(names):
            raise ValueError("expected every hospital's name once, found one twice")
        return self

    def list_case_mixes(self) -> tuple[CaseMix, ...]:
        """Return every hospital."""
        return tuple(case for kind in self.hospitals for case in kind.list_case_mixes())


def read_consortium(path: Path) -> ConsortiumFile:
    """Return the consortium of a TOML file. Raises `ConfigurationError` as `read_toml` does."""
    return read_toml(path, ConsortiumFile)


def write_consortium(path: Path, target: Path) -> tuple[str, ...]:
    """Write one directory for each hospital of the file `path` into `target`, and return their names.

    Raises `ConfigurationError` before anything is written when the file is malformed or the folder is not empty.

    - the same file writes the same bytes, and a hospital's depend on the seed and its own table and name alone
    """
    consortium = read_consortium(path)
    check_empty(target)
    cases = consortium.list_case_mixes()
    for case in cases:
        write_hospital(target / case.site, case, seed=consortium.seed)
    return tuple(case.site for case in cases)


def check_empty(target: Path) -> None:
    """Raise `ConfigurationError` unless `target` is a new or an empty folder."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigurationError(file=target, expected="a new or an empty folder", found="something in it")
