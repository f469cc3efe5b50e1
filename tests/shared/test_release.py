"""A released model: whatever the coordinator signs, a site accepts only what its own copy of the study says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.cli import main
from fedtwin_shared.documents import SignedStudy, sign_study, verify_study
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import cosign
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, VerifierKey, format_note, make_verifier_key, sign_note
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.release import (
    RELEASE_TYPE,
    Release,
    read_release,
    sign_release,
    state_guarantee,
    verify_release,
    verify_weights,
)
from fedtwin_shared.signing import canonical_json, digest, sign_envelope
from tests.world import World, make_world

PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1, "spare_rounds": 2}
WEIGHTS = b"the weights"
WITNESS_KEYS = [Ed25519PrivateKey.from_private_bytes(b"witness key, public, number %04d" % n) for n in range(3)]
WITNESSES = [make_verifier_key(f"w/{n}", key, algorithm=COSIGNATURE) for n, key in enumerate(WITNESS_KEYS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    world: World
    signed: SignedStudy
    release: Release

    def sign(self, **changes: Any) -> bytes:
        return sign_release(self.release.model_copy(update=changes), self.world.coordinator)

    def note(self, site: str, *, key: str = "", origin: str = "", witnesses: int = 3) -> str:
        text = Checkpoint(origin=origin or f"{site}/ledger", size=7, root=bytes(32)).text
        log = sign_note(text, name=origin or f"{site}/ledger", key=self.world.sites[key or site])
        cosigned = [
            cosign(text, name=one.name, key=secret, timestamp=1)
            for one, secret in list(zip(WITNESSES, WITNESS_KEYS, strict=True))[:witnesses]
        ]
        return format_note(text, [log, *cosigned]).decode()


def make_setting(world: World) -> Setting:
    study = world.study
    signed = verify_study(sign_study(study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    release = Release(
        study=study.digest,
        name=study.name,
        version=study.version,
        run="ab" * 16,
        weights=digest(WEIGHTS),
        model=digest(b"model"),
        time=1_800_000_000,
        sites=tuple(sorted(world.sites)),
        guarantee=state_guarantee(study, steps=3, histograms=1),
        checkpoints={},
    )
    return Setting(world=world, signed=signed, release=release)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(make_world(privacy=PRIVACY))


def check(
    setting: Setting, envelope: bytes, *, current: Release | None = None, witnesses: tuple[VerifierKey, ...] = ()
) -> Release:
    return verify_release(envelope, signed=setting.signed, current=current, witnesses=witnesses, required=2)


def test_a_release_says_what_it_guarantees_in_words_and_numbers(setting: Setting) -> None:
    release = check(setting, setting.sign())
    assert release == setting.release
    guarantee = release.guarantee
    assert guarantee.epsilon == setting.world.study.spent(steps=3, releases=1)
    assert f"ε = {guarantee.epsilon + 0.0005:.3f}" in guarantee.words
    assert "3 private training steps, 1 noised histograms" in guarantee.words
    assert verify_weights(release, WEIGHTS) == WEIGHTS


def test_other_weights_are_refused(setting: Setting) -> None:
    with pytest.raises(VerificationError, match="weights"):
        verify_weights(setting.release, WEIGHTS + b".")


def test_an_unsigned_release_and_one_of_an_unknown_key_are_refused(setting: Setting) -> None:
    payload = canonical_json(setting.release.model_dump(mode="json"))
    unsigned = json.loads(setting.sign())
    unsigned["signatures"] = []
    with pytest.raises(VerificationError, match="envelope"):
        check(setting, canonical_json(unsigned))
    for key in (Ed25519PrivateKey.generate(), next(iter(setting.world.sites.values()))):
        with pytest.raises(VerificationError, match="trusted signer"):
            check(setting, sign_envelope(payload, payload_type=RELEASE_TYPE, key=key))
    with pytest.raises(VerificationError, match="payloadType"):
        check(setting, sign_envelope(payload, payload_type="text/plain", key=setting.world.coordinator))
    envelope = setting.sign()
    with pytest.raises(VerificationError):
        check(setting, envelope.replace(b'"sig":"', b'"sig":"A'))


def test_a_release_of_another_study_is_refused(setting: Setting) -> None:
    for changes in ({"study": digest(b"another")}, {"name": "another"}, {"version": 9}):
        with pytest.raises(VerificationError, match="study"):
            check(setting, setting.sign(**changes))


def test_an_older_release_and_a_second_one_of_a_version_are_refused(setting: Setting) -> None:
    newer = setting.release.model_copy(update={"version": 2})
    with pytest.raises(VerificationError, match="version: expected the release of version 2 or of a later one"):
        check(setting, setting.sign(), current=newer)
    second = setting.release.model_copy(update={"weights": digest(b"others")})
    with pytest.raises(VerificationError, match="version"):
        check(setting, setting.sign(), current=second)
    assert check(setting, setting.sign(), current=setting.release) == setting.release
    with pytest.raises(VerificationError, match="name"):
        check(setting, setting.sign(), current=setting.release.model_copy(update={"name": "another"}))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epsilon": 0.01}, "guarantee.epsilon"),
        ({"training_steps": 4}, "guarantee.words"),
        ({"training_steps": 2}, "guarantee"),
        ({"training_steps": 6}, "guarantee"),
        ({"histograms": 0}, "guarantee"),
        ({"delta": 1e-9}, "guarantee.words"),
        ({"words": "perfectly private"}, "guarantee.words"),
    ],
)
def test_a_guarantee_that_the_study_does_not_have_is_refused(
    setting: Setting, changes: dict[str, object], field: str
) -> None:
    guarantee = setting.release.guarantee.model_copy(update=changes)
    with pytest.raises(VerificationError) as refused:
        check(setting, setting.sign(guarantee=guarantee))
    assert refused.value.field == field


def test_a_study_without_noise_is_never_released() -> None:
    privacy = {"mode": "none", "epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 0.0}
    study = make_world(privacy=privacy, evaluation={"noise_multiplier": 0.0}).study
    with pytest.raises(VerificationError, match="no guarantee"):
        state_guarantee(study, steps=1, histograms=1)


@pytest.mark.parametrize("sites", [(), ("nobody",), ("second", "first"), ("first",)])
def test_sites_that_cannot_have_made_it_are_refused(setting: Setting, sites: tuple[str, ...]) -> None:
    names = sorted(setting.world.sites)
    told = tuple({"first": names[0], "second": names[1]}.get(site, site) for site in sites)
    with pytest.raises(VerificationError):
        check(setting, setting.sign(sites=told))


def test_ledgers_are_demanded_of_every_site_and_of_enough_witnesses(setting: Setting) -> None:
    sites = setting.release.sites
    notes = {site: setting.note(site) for site in sites}
    witnesses = tuple(WITNESSES)
    assert check(setting, setting.sign(checkpoints=notes), witnesses=witnesses).checkpoints == notes
    fewer = notes | {sites[0]: setting.note(sites[0], witnesses=1)}
    assert check(setting, setting.sign(checkpoints=fewer)).checkpoints == fewer  # nobody asked for witnesses
    with pytest.raises(VerificationError, match=r"cosignatures|checkpoints"):
        check(setting, setting.sign(checkpoints=fewer), witnesses=witnesses)
    for missing in ({}, {sites[0]: notes[sites[0]]}):
        with pytest.raises(VerificationError, match="one of every site"):
            check(setting, setting.sign(checkpoints=missing), witnesses=witnesses)


def test_a_checkpoint_of_another_ledger_is_refused_even_where_nobody_asks_for_one(setting: Setting) -> None:
    first, second = setting.release.sites[:2]
    wrong = [
        {first: setting.note(first, key=second)},
        {first: setting.note(second)},
        {first: "no note"},
        {first: setting.note(first)[:-2] + "\n"},
        {"nobody": setting.note(first)},
    ]
    for checkpoints in wrong:
        with pytest.raises(VerificationError, match="checkpoints"):
            check(setting, setting.sign(checkpoints=checkpoints))


def test_another_form_of_the_same_release_is_refused(setting: Setting) -> None:
    document = setting.release.model_dump(mode="json")
    for changed in (document | {"more": 1}, document | {"format": 2}, {"release": document}):
        envelope = sign_envelope(canonical_json(changed), payload_type=RELEASE_TYPE, key=setting.world.coordinator)
        with pytest.raises(VerificationError):
            check(setting, envelope)
        with pytest.raises(VerificationError):
            read_release(envelope, coordinator=setting.world.coordinator_key)


def test_the_command_needs_the_base_install_alone(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = {site: setting.note(site) for site in setting.release.sites}
    origin = make_verifier_key("o", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    pinned = PinnedKeys(version=1, logs={"north": str(origin)}, witnesses=tuple(map(str, WITNESSES)), faulty=0)
    files = {
        "release": setting.sign(checkpoints=notes),
        "study": setting.signed.envelope,
        "weights": WEIGHTS,
        "other": b"others",
        "keys": json.dumps(pinned.model_dump(mode="json")).encode(),
        "newer": setting.sign(version=2),
    }
    paths = {name: str(tmp_path / name) for name in files}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def run(*options: str) -> int:
        command = ["audit", "release", paths["release"], "--study", paths["study"], "--json"]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--key", setting.world.coordinator_key, *options])
        return int(ended.value.code or 0)

    assert run("--weights", paths["weights"], "--keys", paths["keys"], "--current", paths["release"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == digest(WEIGHTS)
    with pytest.raises(SystemExit):
        main(["audit", "release", paths["release"], "--study", paths["study"], "--key", setting.world.coordinator_key])
    assert f"{setting.release.sites[0]}: 7 entries, 3 cosignatures" in capsys.readouterr().out
    for options in (("--weights", paths["other"]), ("--current", paths["newer"]), ("--current", paths["study"])):
        assert run(*options) == 2
        assert capsys.readouterr().err.count("\n") == 1
