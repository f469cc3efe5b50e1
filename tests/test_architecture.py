"""The import rules as a test: it reads as the diagram, and a planted violation fails it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# simulations ──► client | server ──► shared
ALLOWED = {
    "fedtwin_shared": set[str](),
    "fedtwin_client": {"fedtwin_shared"},
    "fedtwin_server": {"fedtwin_shared"},
    "fedtwin_simulations": {"fedtwin_shared", "fedtwin_client", "fedtwin_server"},
}
FOLDERS = {name: name.removeprefix("fedtwin_") for name in ALLOWED}

FLOWER_FILES = {
    "client_app.py",
    "server_app.py",
    "strategy.py",
    "executor.py",
    "supernode.py",
    "local_grid.py",
    "secagg_workflow.py",
    "wire.py",
}
# Private Flower API: our executor and our launcher at the hospital; the in-process runtime of simulations.
PRIVATE_FLOWER_FILES = {
    "client/fedtwin_client/executor.py",
    "client/fedtwin_client/supernode.py",
    "simulations/fedtwin_simulations/local_grid.py",
}
PUBLIC_FLOWER = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
PATIENT_NOUNS = {"Observation", "PatientTwin", "Cohort", "HospitalRecords", "Examples"}
# torch draws nothing private but through the one module that names its randomness.
BASE_MODULES = (
    "fedtwin_shared.cli",
    "fedtwin_shared.audit_cli",
    "fedtwin_shared.round",
    "fedtwin_shared.secagg.price",
    "fedtwin_shared.secagg.unmasking",
    "fedtwin_shared.documents",
    "fedtwin_shared.ledger.export",
    "fedtwin_shared.ledger.report_page",
    "fedtwin_shared.ledger.statement",
    "fedtwin_shared.ledger.witness_client",
    "fedtwin_shared.ledger.witness_store",
    "fedtwin_shared.release",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module and the file that imports it, relative to the repository."""

    file: str
    module: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports_of(source: str, file: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(file=file, module=alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield Import(file=file, module=node.module or "")


def sources() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS.values():
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def violations(files: Iterator[tuple[str, str]]) -> list[str]:
    found: list[str] = []
    for file, source in files:
        package = file.split("/")[1]
        name = file.rsplit("/", 1)[-1]
        for used in imports_of(source, file):
            if used.package in ALLOWED and used.package != package and used.package not in ALLOWED[package]:
                found.append(f"{file}: {package} must not import {used.module}")
            if used.package == "flwr" and name not in FLOWER_FILES:
                found.append(f"{file}: flwr belongs to {sorted(FLOWER_FILES)}")
            if (
                used.package == "flwr"
                and file not in PRIVATE_FLOWER_FILES
                and not used.module.startswith(PUBLIC_FLOWER)
            ):
                found.append(f"{file}: {used.module} is private Flower API")
            if used.package == "opacus" and "/training/" not in file:
                found.append(f"{file}: opacus belongs to client/fedtwin_client/training/")
            if used.package == "torch" and package in {"fedtwin_shared", "fedtwin_server"}:
                found.append(f"{file}: {package} needs no torch")
            if used.package == "tests":
                found.append(f"{file}: nothing imports tests")
        if package in {"fedtwin_shared", "fedtwin_server"}:
            found += [f"{file}: {noun} is a patient-level noun" for noun in sorted(PATIENT_NOUNS & names_in(source))]
    return found


def names_in(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
    return names


def test_the_import_rules_hold() -> None:
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("server/fedtwin_server/rounds.py", "import fedtwin_client.cohort"),
        ("client/fedtwin_client/gate.py", "from fedtwin_server import rounds"),
        ("shared/fedtwin_shared/study.py", "import fedtwin_client"),
        ("client/fedtwin_client/cohort.py", "import fedtwin_simulations.demo"),
        ("client/fedtwin_client/cohort.py", "import flwr.app"),
        ("server/fedtwin_server/server_app.py", "from flwr.supercore import run"),
        ("client/fedtwin_client/cohort.py", "def f():\n    import opacus"),
        ("server/fedtwin_server/rounds.py", "import torch"),
        ("server/fedtwin_server/rounds.py", "class Cohort: pass"),
        ("shared/fedtwin_shared/study.py", "from tests.world import check_world"),
    ],
)
def test_a_planted_violation_is_found(file: str, source: str) -> None:
    assert len(violations(iter([(file, source)]))) == 1


def test_the_two_private_flower_files_of_the_client_are_exactly_two() -> None:
    assert len([file for file in PRIVATE_FLOWER_FILES if file.startswith("client/")]) == 2


def signers(files: Iterator[tuple[str, str]]) -> set[str]:
    """Files that could sign a `SiteUpdate` or a `Refusal`: by the name of its type or the type itself, or, inside a
    hospital, by signing an envelope of any type at all."""
    found = set()
    for file, source in files:
        forbidden = {"UPDATE_TYPE", "REFUSAL_TYPE"} | (
            {"sign_envelope", "sign_document"} if file.startswith("client/") else set()
        )
        nodes = list(ast.walk(ast.parse(source)))
        named = names_in(source) | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if named & forbidden or any(kind in text for text in texts for kind in ("site-update+json", "refusal+json")):
            found.add(file)
    return found


def test_only_the_gate_signs_answers() -> None:
    # shared/round.py defines the types and verifies; nothing else may name them.
    assert signers(sources()) == {"shared/fedtwin_shared/round.py", "client/fedtwin_client/gate.py"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("client/fedtwin_client/hospital.py", "sign(b'', payload_type=UPDATE_TYPE, key=key)"),
        ("client/fedtwin_client/hospital.py", "sign_envelope(b'', payload_type=kind, key=key)"),
        ("client/fedtwin_client/hospital.py", "signing.sign_envelope(b'', payload_type=kind, key=key)"),
        ("client/fedtwin_client/hospital.py", "KIND = 'application/vnd.fedtwin.site-update+json'"),
        ("server/fedtwin_server/rounds.py", "KIND = f'application/vnd.fedtwin.{x}refusal+json'"),
    ],
)
def test_a_planted_signer_is_found(file: str, source: str) -> None:
    assert signers(iter([(file, source)])) == {file}


def test_the_base_install_imports_neither_torch_nor_flwr() -> None:
    program = (
        "import sys\n"
        + "".join(f"import {module}\n" for module in BASE_MODULES)
        + "loaded = {'torch', 'flwr', 'opacus', 'pandas'} & set(sys.modules)\n"
        + "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_base_install_needs_neither_torch_nor_flwr(tmp_path: Path) -> None:
    # The command with everything that is not in the base install made unimportable, as on an auditor's machine.
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'flwr', 'opacus', 'pandas', 'pyarrow', 'sklearn', 'matplotlib'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fedtwin_shared.cli import main\nmain(sys.argv[1:])\n"
    )
    run = [sys.executable, "-c", program]
    golden = ROOT / "tests" / "vectors" / "ledger" / "golden"
    evidence = [str(golden / "honest.zip"), "--keys", str(golden / "pinned-keys.json"), "--out", str(tmp_path)]
    audited = subprocess.run([*run, "audit", "report", *evidence], capture_output=True, text=True, check=False)
    assert audited.returncode == 0, audited.stderr
    assert (tmp_path / "report.html").exists()
    listed = subprocess.run([*run, "--help"], capture_output=True, text=True, check=False)
    assert listed.returncode == 0
    assert "client" in listed.stdout


def test_a_missing_extra_names_the_install_command() -> None:
    program = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else real(name, package)\n"
        "from fedtwin_shared.cli import main\nmain(['client', 'run', 'somewhere'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'fedtwin[client]'" in done.stderr
