"""The demo as a person runs it: a small one to its end, and one that is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.ledger.bundle import read_audit_bundle
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import Refusal, Release, Seal
from fedtwin_shared.supervision import wait_until
from fedtwin_simulations.deployment import DeploymentError
from fedtwin_simulations.ledgers import BUNDLE, PINNED
from fedtwin_simulations.specification import merge
from fedtwin_simulations.toml_text import write_toml
from tests.e2e.whole_world import processes_under
from tests.simulations.laboratory import experiment_document, study_document

pytestmark = pytest.mark.slow

SITES = ("coast", "valley")


def write_small_demo(folder: Path) -> Path:
    """Write an experiment of two hospitals and three rounds."""
    participants = [{"site": site, "patients": 300} for site in SITES]
    study = merge(study_document(), {"participants": participants, "training": {"rounds": 3}})
    file = folder / "small.toml"
    file.write_text(write_toml(experiment_document() | {"study": study}), encoding="utf-8")
    return file


def start_demo(folder: Path) -> subprocess.Popen[str]:
    line = (flower_program("fedtwin"), "simulate", "demo", "--study", str(write_small_demo(folder)))
    return subprocess.Popen(
        (*line, "--output", str(folder / "demo")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_demo_ends_with_its_reports_and_without_its_processes(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    said, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, said
    assert "finished" in said
    document = json.loads((tmp_path / "demo" / "report.json").read_text())
    primary = [(row["method"], row["epsilon"], row["metric"]) for row in document["results"] if row["primary"]]
    assert primary == [
        ("pooled", None, "auroc"),
        ("local", None, "auroc"),
        ("federated", None, "auroc"),
        ("private", 3.0, "auroc"),
    ]
    assert all(set(row["per_site"]) == set(SITES) for row in document["results"] if row["primary"])
    assert "nominal ε" in (tmp_path / "demo" / "report.html").read_text().lower()
    assert processes_under(tmp_path) == {}
    assert "refused a study at ε = 12" in said
    check_bundle(tmp_path / "demo")


def check_bundle(demo: Path) -> None:
    """What an auditor does, where neither torch nor Flower can be imported."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'flwr', 'opacus', 'pandas', 'pyarrow', 'starlette', 'uvicorn'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fedtwin_shared.cli import main\nmain(sys.argv[1:])\n"
    )
    verify = [sys.executable, "-c", program, "audit", "verify", str(demo / BUNDLE), "--keys", str(demo / PINNED)]
    found = subprocess.run([*verify, "--json"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    ledgers = json.loads(found.stdout)["ledgers"]
    assert set(ledgers) == set(SITES)
    assert all(len(ledger["cosigned"]) == 3 for ledger in ledgers.values())
    (report,) = (demo / "coordinator" / "runs").glob("*/release/report.json")
    proof = json.loads(report.read_text(encoding="utf-8"))["proof"]
    assert (proof["asked"], proof["required"]) == (True, 3)
    bundle = read_audit_bundle((demo / BUNDLE).read_bytes())
    kinds = {site: [parse_entry(entry) for entry in log.entries] for site, log in bundle.logs.items()}
    (refusal,) = (entry for entry in kinds[SITES[0]] if isinstance(entry, Refusal))
    assert refusal.code == "policy"
    assert refusal.plan in bundle.documents
    assert not any(isinstance(entry, Refusal) for entry in kinds[SITES[1]])
    for entries in kinds.values():
        released = {entry.task: entry for entry in entries if isinstance(entry, Release)}
        sealed = {entry.task: place for place, entry in enumerate(entries) if isinstance(entry, Seal)}
        assert released.keys() == sealed.keys()
        assert len(released) == 5  # three rounds, two models evaluated
        assert all(released[task].checkpoint == place + 1 for task, place in sealed.items())


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "approved the study"), (signal.SIGTERM, "starting"), (signal.SIGKILL, "starting")],
)
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals, said: str, tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if said in line:
                break
        else:
            raise DeploymentError(field="demo", expected="processes", found="none")
        assert len(processes_under(tmp_path)) > 1
        demo.send_signal(number)
        demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode not in (0, None)
    if number is signal.SIGKILL:  # nobody is left to wait for them
        wait_until(lambda: processes_under(tmp_path) == {}, what="their end", deadline_seconds=30)
    assert processes_under(tmp_path) == {}
