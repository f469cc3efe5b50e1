"""A copy of the protocol with one check taken out: what an attack must succeed on, to be an attack at all."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import fedtwin_shared.secagg
from tests.shared.secagg import assembly

PACKAGE = Path(fedtwin_shared.secagg.__file__).parent
_numbers = itertools.count()


def ours() -> Any:
    """The protocol as it is, by way of the test's assembly around it."""
    return assembly


def weaken(folder: Path, *changes: tuple[str, str, str]) -> Any:
    """The same assembly around a copy of the protocol in which text of some modules was replaced.

    Each change is a module's name, the text that stands there once, and what stands there instead.
    """
    name = f"weakened_{next(_numbers)}"
    copy = folder / name
    copy.mkdir()
    sources = {path.stem: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    sources["assembly"] = Path(assembly.__file__).read_text(encoding="utf-8")
    for module, old, new in changes:
        assert sources[module].count(old) == 1, f"{module}: {old!r}"
        sources[module] = sources[module].replace(old, new)
    for module, source in sources.items():
        (copy / f"{module}.py").write_text(source.replace("fedtwin_shared.secagg", name), encoding="utf-8")
    return _load(copy, name)


def _load(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder.parent))
    try:
        return importlib.import_module(f"{name}.assembly")
    finally:
        sys.path.remove(str(folder.parent))
