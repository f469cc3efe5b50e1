"""A run's state as bytes and back: one npz whose entry `state` is JSON and whose other entries are arrays.

Design note: arrays keep their type and every bit, because a resumed run must end as an uninterrupted one.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtwin_server.errors import RunError
from fedtwin_server.release import describe_record
from fedtwin_server.rounds import GlobalModel, ProofRule, RoundRecord, RunState
from fedtwin_shared.round import RefusalCode, Task

FORMAT = 1
_STATE = "state"

Arrays = Mapping[str, npt.NDArray[Any]]


def encode_state(state: RunState) -> bytes:
    """Return the state as the bytes of an npz file."""
    document = {
        "format": FORMAT,
        "run": state.run,
        "study": state.study,
        "rounds_done": state.rounds_done,
        "attempt": state.attempt,
        "history": [describe_record(record) for record in state.history],
        "failed": None if state.failed is None else describe_record(state.failed),
        "proof": None if state.proof is None else _describe_rule(state.proof),
    }
    groups: dict[str, Arrays] = {
        "model": state.model.parameters,
        "first": state.model.first_moment,
        "second": state.model.second_moment,
        "total": state.total,
        **{f"histogram/{number}": counts for number, counts in state.histograms.items()},
    }
    return encode_arrays(
        {_STATE: np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)}
        | {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    )


def encode_arrays(arrays: Arrays) -> bytes:
    """Return arrays by name as the bytes of an npz file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())  # a fixed date: the same bytes again
    return buffer.getvalue()


def decode_state(data: bytes) -> RunState:
    """Return what `encode_state` wrote. Raises `RunError` for anything else.

    - every array has the bits that it had
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        document = json.loads(arrays.pop(_STATE).tobytes())
        if document["format"] != FORMAT:
            raise RunError(field="format", expected=str(FORMAT), found=str(document["format"]))
        return _as_state(document, arrays)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as err:
        raise RunError(expected="a checkpoint", found=f"damage ({type(err).__name__})") from err


def _as_state(document: Mapping[str, Any], arrays: Arrays) -> RunState:
    histograms: dict[int, dict[str, npt.NDArray[np.float64]]] = {}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if group == "histogram":
            number, _, site = rest.partition("/")
            histograms.setdefault(int(number), {})[site] = array
    return RunState(
        run=document["run"],
        study=document["study"],
        model=GlobalModel(
            parameters=_group(arrays, "model"),
            first_moment=_group(arrays, "first"),
            second_moment=_group(arrays, "second"),
        ),
        rounds_done=document["rounds_done"],
        attempt=document["attempt"],
        total=_group(arrays, "total"),
        histograms=histograms,
        history=tuple(_as_record(record) for record in document["history"]),
        failed=None if document["failed"] is None else _as_record(document["failed"]),
        proof=None if document.get("proof") is None else _as_rule(document["proof"]),  # absent before it was fixed
    )


def _describe_rule(rule: ProofRule) -> dict[str, Any]:
    return {"witnesses": list(rule.witnesses), "faulty": rule.faulty}


def _as_rule(document: Mapping[str, Any]) -> ProofRule:
    return ProofRule(witnesses=tuple(document["witnesses"]), faulty=document["faulty"])


def _group(arrays: Arrays, group: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(f"{group}/"): array for name, array in arrays.items() if name.startswith(f"{group}/")}


def _as_record(document: Mapping[str, Any]) -> RoundRecord:
    return RoundRecord(
        task=Task(document["task"]),
        round=document["round"],
        attempt=document["attempt"],
        sites=tuple(document["sites"]),
        refusals={site: RefusalCode(code) for site, code in document["refusals"].items()},
        errors=document["errors"],
        unverified=document["unverified"],
    )
