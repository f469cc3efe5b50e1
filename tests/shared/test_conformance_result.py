"""The auditor's half of the audit: the curve that a claim allows, the verdict from counts, and the signed record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.stats import norm

from fedtwin_shared.cli import main
from fedtwin_shared.conformance_result import (
    Claim,
    ConformanceResult,
    Noise,
    Point,
    allow_rates,
    judge,
    sign_conformance,
    verify_conformance,
)
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.signing import format_public_key

GAUSSIAN = Claim(sampling_rate=1.0, noise_multiplier=2.0, steps=4, delta=1e-5)  # exactly 1-Gaussian privacy
KEY = Ed25519PrivateKey.generate()
PUBLIC = format_public_key(KEY.public_key())


def result(
    *, true: int = 259, false: int = 50, variance: float = 1.0, lag: float = 0.0, claim: Claim = GAUSSIAN
) -> ConformanceResult:
    return ConformanceResult(
        site="north",
        day="2030-01-02",
        engine="opacus",
        versions={"fedtwin": "0.1.0"},
        claim=claim,
        points=(Point(false_positives=false, absent=1000, true_positives=true, present=1000),),
        noise=Noise(numbers=100_000, variance=variance, lag=lag),
    )


def test_the_curve_of_a_gaussian_is_the_known_one() -> None:
    # Dong, Roth, Su (JRSS B 2022) §2.3: G_μ(α) = Φ(Φ⁻¹(1 - α) - μ), here of true against false positives.
    rates = [1e-4, 0.01, 0.05, 0.3, 0.9]
    expected = [float(norm.cdf(norm.ppf(rate) + 1.0)) for rate in rates]
    found = allow_rates(GAUSSIAN, rates)
    assert found == pytest.approx(expected, rel=0.02)
    assert all(most >= true for most, true in zip(found, expected, strict=True))


def test_sampling_amplifies() -> None:
    sampled = Claim(sampling_rate=0.1, noise_multiplier=2.0, steps=4, delta=1e-5)
    assert allow_rates(sampled, [0.05])[0] < 0.1 < allow_rates(GAUSSIAN, [0.05])[0]


def test_what_the_claim_allows_passes_and_more_fails() -> None:
    assert judge(result()).passed  # right on the curve: 5 % and 26 %
    found = judge(result(true=400))
    assert [failure.startswith("an attacker finds") for failure in found.failures] == [True]
    assert 0 < judge(result()).lower_bound < found.lower_bound < found.gaussian_bound


def test_a_true_step_fails_no_more_often_than_stated() -> None:
    generator = np.random.default_rng(0)
    draws = zip(generator.binomial(1000, 0.05, 150), generator.binomial(1000, 0.2595, 150), strict=True)
    failed = sum(not judge(result(false=int(false), true=int(true))).passed for false, true in draws)
    assert failed <= 2  # expected: 150 · ERROR at most


@pytest.mark.parametrize(
    ("noise", "words"), [({"variance": 0.97}, "variance"), ({"lag": 0.02}, "correlation"), ({"lag": -0.02}, "corr")]
)
def test_noise_that_is_too_small_or_repeats_itself_fails(noise: dict[str, float], words: str) -> None:
    (failure,) = judge(result(**noise)).failures  # type: ignore[arg-type]  # one of the two numbers
    assert words in failure
    assert judge(result(variance=0.995, lag=0.005)).passed


def test_a_signed_result_is_what_was_signed() -> None:
    assert verify_conformance(sign_conformance(result(), KEY), key=PUBLIC) == result()


def test_others_signatures_and_impossible_counts_are_refused() -> None:
    signed = sign_conformance(result(), KEY)
    other = format_public_key(Ed25519PrivateKey.generate().public_key())
    with pytest.raises(VerificationError, match="trusted signer"):
        verify_conformance(signed, key=other)
    with pytest.raises(VerificationError, match="envelope"):
        verify_conformance(signed.replace(b"payload", b"payroll"), key=PUBLIC)
    with pytest.raises(VerificationError, match="points"):
        verify_conformance(sign_conformance(result(true=1001), KEY), key=PUBLIC)


def test_what_a_site_calls_its_engine_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "north.signed.json"
    file.write_bytes(sign_conformance(result().model_copy(update={"engine": "[/bold]"}), KEY))
    with pytest.raises(SystemExit) as ended:
        main(["audit", "conformance", str(file), "--key", PUBLIC])
    assert ended.value.code in (0, None)
    assert "[/bold]" in capsys.readouterr().out


def test_an_auditor_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'flwr', 'opacus', 'pandas'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fedtwin_shared.cli import main\nmain(sys.argv[1:])\n"
    )
    for true, code in ((259, 0), (400, 1)):
        file = f"{tmp_path}/north.signed.json"
        with open(file, "wb") as opened:
            opened.write(sign_conformance(result(true=true), KEY))
        run = [sys.executable, "-c", program, "audit", "conformance", file, "--key", PUBLIC, "--json"]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["as_claimed"] == (code == 0)
