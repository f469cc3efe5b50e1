"""The audit passes the real step and fails eight broken ones; what it signs is checked without torch."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtwin_client.cohort import Examples
from fedtwin_client.conformance import CLIP, MOST_STEPS, STANDARD, Effort, audit_step, claim_of
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital import Train
from fedtwin_client.randomness import KeyStream, Randomness, SystemRandomness
from fedtwin_client.studies import open_studies
from fedtwin_client.training import grid, local_steps, train
from fedtwin_client.training.batch import Batch
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_client.training.sampling import draw_batch
from fedtwin_shared.cli import main
from fedtwin_shared.conformance_result import Claim, ConformanceResult, Verdict, judge, verify_conformance
from fedtwin_shared.documents import verify_study
from fedtwin_shared.models import Parameters
from fedtwin_shared.signing import format_public_key, load_signing_key
from fedtwin_shared.study import Participant, Study
from fedtwin_simulations.seeded_randomness import SeededStream
from tests.client.premises import make_premises, write_study
from tests.client.small import Seeded, small_study
from tests.soak import only_in_soak
from tests.world import make_world

# Sharp enough to tell in a second: little noise, few steps.
CLAIM = Claim(sampling_rate=0.25, noise_multiplier=0.6, steps=12, delta=1e-5)
EFFORT = Effort(canaries=800, runs=1)
DAY = dt.date(2030, 1, 2)
soak = only_in_soak("a long campaign")


def measure(
    train: Train = train, *, claim: Claim = CLAIM, randomness: Randomness | None = None, effort: Effort = EFFORT
) -> ConformanceResult:
    return audit_step(
        claim,
        train=train,
        randomness=randomness or Seeded(),
        effort=effort,
        site="north",
        engine="opacus",
        day=DAY,
    )


def kinds(verdict: Verdict) -> set[str]:
    """Return which of the tests failed."""
    words = {"attacker": "curve", "variance": "noise", "correlation": "lag"}
    return {kind for failure in verdict.failures for word, kind in words.items() if word in failure}


def with_privacy(**changes: Callable[[float], float]) -> Train:
    """Return a `train` that runs other numbers than those it is told."""

    def broken(
        study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        numbers = {name: change(getattr(study.privacy, name)) for name, change in changes.items()}
        other = study.model_copy(update={"privacy": study.privacy.model_copy(update=numbers)})
        return train(other, participant, parameters, examples, randomness)

    return broken


def test_the_real_step_passes() -> None:
    verdict = judge(measure())
    assert verdict.failures == ()
    assert 0 < verdict.lower_bound < verdict.epsilon


@soak
def test_the_real_step_passes_at_full_effort_with_the_systems_chance() -> None:
    claims = [STANDARD, STANDARD.model_copy(update={"noise_multiplier": 2.0}), CLAIM]
    claims += [Claim(sampling_rate=1.0, noise_multiplier=8.0, steps=30, delta=1e-5)]
    for claim in claims:
        verdict = judge(measure(claim=claim, randomness=SystemRandomness(), effort=Effort()))
        assert verdict.failures == ()
        assert verdict.lower_bound < verdict.epsilon


def test_the_claim_is_the_studys_own() -> None:
    study = small_study(training={"rounds": 7, "local_steps": 3}, privacy={"noise_multiplier": 1.5, "delta": 1e-4})
    assert claim_of(study) == Claim(sampling_rate=1.0, noise_multiplier=1.5, steps=21, delta=1e-4)
    assert claim_of(small_study(training={"rounds": 5000})).steps == MOST_STEPS
    with pytest.raises(ValueError, match="no claim"):
        claim_of(small_study(privacy={"mode": "none"}))


@pytest.mark.parametrize("factor", [0.5, 0.1, 0.9])
def test_less_noise_fails(factor: float) -> None:
    verdict = judge(measure(with_privacy(noise_multiplier=lambda noise: noise * factor)))
    assert "noise" in kinds(verdict)
    assert ("curve" in kinds(verdict)) == (factor < 0.9)


def test_a_forgotten_times_clip_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    deviation = grid.noise_deviation
    monkeypatch.setattr(grid, "noise_deviation", lambda *given, **named: deviation(*given, **named) / CLIP)
    assert kinds(judge(measure())) == {"curve", "noise"}


def test_clipping_records_instead_of_patients_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PrivateStep.sum_patients

    def by_record(self: PrivateStep, batch: Batch) -> grid.Total:
        windows = batch.x.shape[1]
        x, mask = (part.flatten(0, 1).unsqueeze(1) for part in (batch.x, batch.mask))
        return whole(self, Batch(x=x, mask=mask, y=batch.y.repeat_interleave(windows)))

    monkeypatch.setattr(PrivateStep, "sum_patients", by_record)
    assert kinds(judge(measure())) == {"curve"}


def test_no_clipping_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def unclipped(norms: grid.Floats, *, clip: float) -> grid.Factors:
        return np.full(len(norms), grid.scale(clip), np.float32)

    monkeypatch.setattr(grid, "clip_factors", unclipped)
    assert kinds(judge(measure())) == {"curve"}


def test_a_doubled_sampling_rate_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(everybody: Batch, *, rate: float, stream: KeyStream) -> Batch:
        return draw_batch(everybody, rate=2 * rate, stream=stream)

    monkeypatch.setattr(local_steps, "draw_batch", twice)
    assert kinds(judge(measure())) == {"curve"}


def test_one_seed_for_all_rounds_fails() -> None:
    class Repeated(Seeded):
        def stream(self, task: str) -> KeyStream:
            return SeededStream(bytes(32)) if task == "train" else super().stream(task)

    assert "lag" in kinds(judge(measure(randomness=Repeated())))


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", "conformance", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_hospital_signs_its_results_and_no_patient_is_read_or_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    hospital = make_premises(tmp_path / "north", world)
    open_studies(hospital, open_gate(hospital)).add(
        verify_study(write_study(tmp_path, world).read_bytes(), coordinator=world.coordinator_key)
    )
    shutil.rmtree(hospital.data)  # there is nothing that it could read
    monkeypatch.setattr("fedtwin_client.randomness.SystemRandomness", Seeded)
    effort = ("--canaries", "300", "--runs", "1")
    assert fedtwin(hospital.root, *effort) == 0
    assert "as claimed" in capsys.readouterr().out
    (file,) = (hospital.root / "conformance").iterdir()
    key = format_public_key(load_signing_key(hospital.signing_key).public_key())
    result = verify_conformance(file.read_bytes(), key=key)
    assert judge(result).passed
    assert (result.site, result.claim) == ("north", claim_of(world.study))
    assert not hospital.journal.exists()
    monkeypatch.setattr("fedtwin_client.training.train", with_privacy(noise_multiplier=lambda noise: noise / 3))
    assert fedtwin(hospital.root, *effort) == 1
    assert "NOT as claimed" in capsys.readouterr().out
    assert not judge(verify_conformance(file.read_bytes(), key=key)).passed


def test_a_study_file_is_audited_without_a_hospital(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedtwin() == 2
    assert "DIRECTORY or --study FILE" in capsys.readouterr().err
    assert fedtwin("--study", tmp_path / "none.toml") == 2
    assert "none.toml" in capsys.readouterr().err
