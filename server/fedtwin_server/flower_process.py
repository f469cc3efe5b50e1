"""One of Flower's own programs, as its console command starts it, that ends with its supervisor and pauses less.

    python -m fedtwin_server.flower_process flower-superlink --isolation=process …

Design note: Flower and its libraries load some 150,000 objects that live as long as the process. Python's garbage
collector goes through all of them again and again, a tenth of a second in which no hospital is answered; frozen, they
are left alone. Only the program's console entry point is used.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from fedtwin_server.errors import RunError
from fedtwin_shared.supervision import end_with_parent

YOUNG_OBJECTS = 10_000  # allocated before the next collection; 700 in Python, some ten collections for each request


def flower_command(program: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs one of Flower's programs here."""
    return (sys.executable, "-m", "fedtwin_server.flower_process", program, *arguments)


def main(arguments: Sequence[str]) -> None:
    """Become the program named first, with the arguments behind it. Raises `RunError` when there is none such.

    - it ends when its supervisor does, however that ends
    """
    end_with_parent()
    found = list(entry_points(group="console_scripts", name=arguments[0])) if arguments else []
    if not found:
        raise RunError(field="program", expected="one of Flower's console commands", found=repr(arguments[:1]))
    serve = found[0].load()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    sys.argv = list(arguments)
    sys.exit(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
