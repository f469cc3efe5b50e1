"""The process that holds the hospital's data: takes tasks from the local transport and answers them.

    FEDTWIN_HOSPITAL=DIRECTORY python -m fedtwin_client.node_executor

Design note: cohorts of approved studies are read before the first task, so that a disk that fails is seen by the
hospital's own people first. A journal that could not be written is opened afresh by ending the process: the node starts
it again.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from fedtwin_client.node import secret_file
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.supervision import end_with_parent, stop_on_signals

if TYPE_CHECKING:
    from fedtwin_client.executor import TaskRecord
    from fedtwin_client.installation import Installation

LOGGER: Final = logging.getLogger("fedtwin.node")


def run_executor(installed: Installation) -> bool:
    """Answer tasks until a signal; main thread only. False when the journal broke and must be opened again."""
    from fedtwin_client.client_app import app, refuse_message
    from fedtwin_client.executor import execute_tasks

    directory = installed.directory
    with stop_on_signals() as stop:
        _prepare(installed)

        LOGGER.info("%s answers tasks of %d studies", directory.config.name, len(installed.studies.digests()))

        def stop_when_broken(record: TaskRecord) -> None:
            if installed.journal.broken:
                LOGGER.error("the journal could not be written; it is opened again")
                stop.set()

        execute_tasks(
            f"127.0.0.1:{directory.config.ports.runtime}",
            app,
            allowed_bundles=frozenset(directory.config.policy.allowed_bundles),
            refuse=refuse_message,
            stop=stop,
            secret_file=secret_file(directory),
            on_task=stop_when_broken,
        )
    return not installed.journal.broken


def _prepare(installed: Installation) -> None:
    for digest in installed.studies.digests():
        try:
            installed.hospital.prepare(digest)
        except FedtwinError as err:
            LOGGER.error("study %s is not ready: %s", digest[:12], err)
        except OSError as err:
            LOGGER.error("study %s is not ready: %s", digest[:12], type(err).__name__)


def main() -> None:
    """Run the executor of the directory that the environment names."""
    end_with_parent()  # before the seconds that importing torch takes
    from fedtwin_client.client_app import installation

    # A library has already put a handler of its own on the root logger: this one replaces it.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each poll
    try:
        whole = run_executor(installation())
    except FedtwinError as err:
        sys.exit(f"fedtwin: {err}")
    logging.shutdown()
    # A training step may still run in its own thread, which Python cannot interrupt; everything durable is synced.
    os._exit(0 if whole else 1)


if __name__ == "__main__":
    main()
