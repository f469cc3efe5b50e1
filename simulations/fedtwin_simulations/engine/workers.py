"""Hospitals played by processes of this machine: each process has its own hospitals for a whole run.

Design note: processes are forked by a server that has imported everything once and has no threads; a fork of this
process would take torch's threads and locks along. They get tasks as bytes and give replies as bytes; what a hospital
raised comes back as an exception, what a process broke ends the run.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Self

from fedtwin_client.journal import Spend
from fedtwin_simulations.engine.site_tasks import Ground, SiteTasks
from fedtwin_simulations.local_grid import NodeTask


class Workers:
    """Runs tasks in `count` processes; implements `local_grid.RunTasks`. A context manager: it ends its processes.

    - the replies are byte for byte those of `SiteTasks` with the same ground and the same groups
    """

    def __init__(self, ground: Ground, count: int) -> None:
        if not count >= 1:
            raise ValueError(f"expected at least 1 process, found {count}")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        sites = ground.data.sites
        self._home = {site: place * count // len(sites) for place, site in enumerate(sites)}
        # One process each, so that a hospital's journal stays where the hospital is.
        self._pools = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_open, initargs=(ground,)) for _ in range(count)
        ]

    def __call__(self, tasks: Sequence[NodeTask]) -> list[bytes | Exception]:
        """Return the replies in the order of the tasks."""
        shares: list[list[int]] = [[] for _ in self._pools]
        for place, task in enumerate(tasks):
            shares[self._home[task.config["site"]]].append(place)
        running = [
            pool.submit(_run, [tasks[place] for place in share])
            for pool, share in zip(self._pools, shares, strict=True)
        ]
        replies: dict[int, bytes | Exception] = {}
        for share, future in zip(shares, running, strict=True):
            replies |= zip(share, future.result(), strict=True)
        return [replies[place] for place in range(len(tasks))]

    def spent(self) -> dict[str, Spend]:
        """Return what every site has charged in its process."""
        found = [pool.submit(_spent).result() for pool in self._pools]
        return {site: found[home][site] for site, home in self._home.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)


_here: list[SiteTasks] = []  # the hospitals of a worker process


def _open(ground: Ground) -> None:
    _here[:] = [SiteTasks(ground)]


def _run(tasks: list[NodeTask]) -> list[bytes | Exception]:
    return _here[0](tasks)


def _spent() -> dict[str, Spend]:
    return _here[0].spent()
