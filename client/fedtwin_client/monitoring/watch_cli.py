"""`fedtwin client watch`: the ward's board in a terminal, by the board's own interface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = 30  # values of a sparkline


def watch(
    url: Annotated[str, typer.Option(help="where the board is served")],
    token_file: Annotated[Path, typer.Option(help="file that holds the board's token")],
    every: Annotated[float, typer.Option(min=0.5, help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="show it once and end")] = False,
) -> None:
    """Show patients by urgency, with reasons, readings with their age, and what came before."""
    import time
    from collections import deque

    from rich.console import Console
    from rich.live import Live

    from fedtwin_client.monitoring.board_view import render_board

    token = read_token(token_file)
    history: dict[tuple[str, str], deque[float]] = {}

    def looks() -> Iterator[dict[str, Any]]:
        while True:
            board = ask_board(url, token)
            for line in board["lines"]:
                for reading in line["readings"]:
                    kept = history.setdefault((line["patient"], reading["signal"]), deque(maxlen=KEPT))
                    kept.append(reading["value"])
            yield board

    console = Console()
    if once:
        console.print(render_board(next(looks()), {key: tuple(values) for key, values in history.items()}))
        return
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for board in looks():
            live.update(render_board(board, {key: tuple(values) for key, values in history.items()}), refresh=True)
            time.sleep(every)


def read_token(file: Path) -> str:
    """Return the token. Raises `ConfigurationError` where the file cannot be read, or others may read it."""
    from fedtwin_shared.errors import ConfigurationError

    try:
        if file.stat().st_mode & 0o077:
            raise ConfigurationError(file=file, expected="a file that only its owner may read", found="an open one")
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationError(file=file, expected="the board's token", found=type(err).__name__) from err


def ask_board(url: str, token: str) -> dict[str, Any]:
    """Return the board. Raises `FedtwinError` where there is none, or it does not know the token."""
    import json
    import urllib.request

    from fedtwin_shared.errors import FedtwinError

    if not url.startswith(("http://", "https://")):
        raise FedtwinError(field="url", expected="http:// or https://", found="something else")
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/board", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError) as err:
        raise FedtwinError(field="url", expected="a board that knows the token", found=str(err)) from err
    return found
