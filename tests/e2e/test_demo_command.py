"""The demo as a person runs it: a small one to its end, and one that is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.supervision import wait_until
from fedtwin_simulations.deployment import DeploymentError
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "starting" in line:
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
