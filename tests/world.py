"""A small consortium in memory: keys, roster and a study, for tests that need a valid one to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.signing import format_public_key
from fedtwin_shared.study import Study

SITES = ("north", "south", "east", "west")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everybody's private keys, which only tests hold in one place."""

    coordinator: Ed25519PrivateKey
    sites: dict[str, Ed25519PrivateKey]
    roster: Roster
    study: Study

    @property
    def coordinator_key(self) -> str:
        """The coordinator's public key."""
        return format_public_key(self.coordinator.public_key())


def make_world(*, sites: tuple[str, ...] = SITES, **changes: Any) -> World:
    """Return a consortium with new keys; `changes` replace whole tables of the study."""
    coordinator = Ed25519PrivateKey.generate()
    keys = {name: Ed25519PrivateKey.generate() for name in sites}
    roster = Roster(
        version=1,
        coordinator=Site(name="consortium", public_key=format_public_key(coordinator.public_key())),
        sites=tuple(Site(name=name, public_key=format_public_key(key.public_key())) for name, key in keys.items()),
    )
    study = Study.model_validate(study_document(roster, sites) | changes)
    return World(coordinator=coordinator, sites=keys, roster=roster, study=study)


def study_document(roster: Roster, sites: tuple[str, ...] = SITES) -> dict[str, Any]:
    """Return a valid study as TOML would give it."""
    return {
        "name": "deterioration",
        "version": 1,
        "question": "Who deteriorates within a day?",
        "outcome": "deteriorated",
        "roster": roster.digest,
        "participants": [{"site": name, "patients": 100, "weight": 1.0} for name in sites],
        "cohort": {"minimum_patients": 10},
        "features": {
            "window_hours": 24.0,
            "step_hours": 6.0,
            "series": [{"signal": "heart_rate", "statistics": ["mean", "max"], "hinges": True}],
            "facts": [{"signal": "age"}],
            "categories": ["sex"],
        },
        "model": {"name": "logistic"},
        "training": {"rounds": 3, "learning_rate": 1.0, "minimum_sites": 2},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.0},
        "evaluation": {"noise_multiplier": 4.0},
    }
