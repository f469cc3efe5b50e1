"""`GET /health` on loopback: whether the node's processes are up. No patient, no count of patients.

Design note: the standard library's server, in threads of the node's own process: a monitor asks it every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from fedtwin_shared.errors import ConfigurationError

PROBE_SECONDS: Final = 1.0
REQUEST_SECONDS: Final = 5.0  # a client that says nothing is hung up on


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a monitor may know about a hospital's node.

    transport, executor: the process runs. connected: the coordinator accepted this node, and can be reached now.
    studies: digests of the approved studies.
    """

    transport: bool
    executor: bool
    connected: bool
    studies: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the node can take tasks."""
        return self.transport and self.executor and self.connected


@contextlib.contextmanager
def serve_health(port: int, look: Callable[[], Health]) -> Iterator[None]:
    """Answer on 127.0.0.1:`port` with 200 while `look()` is ok and 503 otherwise; the body is `Health` as JSON.

    Raises `ConfigurationError` when the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS
        server_version, sys_version = "fedtwin", ""

        def do_GET(self) -> None:
            if self.path != "/health":
                self.send_error(404)
                return
            health = look()
            body = json.dumps({"ok": health.ok, **asdict(health)}).encode()
            self.send_response(200 if health.ok else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as err:
        raise ConfigurationError(field="ports.health", expected="a free port", found=f"{port} in use") from err
    thread = threading.Thread(target=server.serve_forever, name="fedtwin-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_serving(port: int) -> bool:
    """Return whether something answers GET /health on loopback with 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy of the environment
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=PROBE_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def is_reachable(address: str) -> bool:
    """Return whether something listens at `address` (host:port)."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


if __name__ == "__main__":  # for the health check of a container: python -m fedtwin_client.health PORT
    sys.exit(0 if is_serving(int(sys.argv[1])) else 1)
