"""The board over HTTP for whoever shows it: read only, typed, with a token, on loopback.

GET /v1/board            every patient, the most urgent first
GET /v1/patients/{id}    one patient's page
GET /v1/cds-services     discovery of CDS Hooks
401 without the token, 404 for a patient who is not known; there is no method that changes anything.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fedtwin_client.monitoring.board import Board, Page, WardWatch
from fedtwin_client.monitoring.cds_hooks import list_services
from fedtwin_shared.durable import create_file

SHORTEST_TOKEN: Final = 32
LOOPBACK: Final = "127.0.0.1"
READY_SECONDS: Final = 20.0

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def make_api(watch: WardWatch, *, token: str) -> FastAPI:
    """Return the application. Raises `ValueError` for a token that could be guessed."""
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(f"expected a token of at least {SHORTEST_TOKEN} characters")

    def check(credentials: Credentials) -> None:
        shown = "" if credentials is None else credentials.credentials
        if not hmac.compare_digest(shown.encode(), token.encode()):
            raise HTTPException(status_code=401, detail="a token is needed", headers={"WWW-Authenticate": "Bearer"})

    # The description of the interface holds no patient, but it is nobody's business either.
    api = FastAPI(title="fedtwin ward board", version="1", dependencies=[Depends(check)], docs_url=None, redoc_url=None)

    @api.get("/v1/board")
    def read_board() -> Board:
        """Every patient, the most urgent first."""
        return watch.board()

    @api.get("/v1/patients/{patient}")
    def read_patient(patient: str) -> Page:
        """One patient's page."""
        page = watch.page(patient)
        if page is None:
            raise HTTPException(status_code=404, detail="not known here")
        return page

    @api.get("/v1/cds-services")
    def read_services() -> dict[str, list[dict[str, str]]]:
        """What CDS Hooks can be asked."""
        return list_services()

    return api


def keep_token(file: Path) -> str:
    """Return the token in `file`, which its owner alone may read; a new one where there is no file yet."""
    if not file.exists():
        create_file(file, secrets.token_urlsafe(SHORTEST_TOKEN).encode())
    return file.read_text(encoding="ascii").strip()


@contextmanager
def board_served(watch: WardWatch, *, token: str, port: int = 0) -> Iterator[int]:
    """Serve the board on loopback while the block runs; yields the port. `port` 0: one that is free."""
    settings = uvicorn.Config(
        make_api(watch, token=token),
        host=LOOPBACK,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, name="board", daemon=True)
    thread.start()
    deadline = time.monotonic() + READY_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise OSError(f"the board could not listen on port {port}")
        time.sleep(0.02)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
