"""deploy/coordinator: what `init` writes, what systemd, compose and nginx accept, and commands that run."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from fedtwin_server.config import CONFIG_FILE, CoordinatorConfig, CoordinatorDirectory, read_directory
from fedtwin_server.coordinator import is_healthy
from fedtwin_server.front import BODY_BYTES, FLEET_PATHS, PASSED_REQUEST_HEADERS, RELEASE_PATTERN
from fedtwin_server.installation import (
    COMPOSE_FILE,
    UNIT_FILE,
    Place,
    create_coordinator,
    find_place,
    render_compose,
    render_config,
    render_unit,
)
from fedtwin_shared.documents import read_toml
from fedtwin_shared.supervision import wait_until
from tests.authority import free_ports, make_server_identity
from tests.server.directories import make_directory

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "coordinator"
PLACE = Place(program="/opt/fedtwin/bin/fedtwin", user="fedtwin", owner="1000:1000")


def example() -> CoordinatorDirectory:
    config = read_toml(DEPLOY / CONFIG_FILE, CoordinatorConfig)
    return CoordinatorDirectory(root=Path("/var/lib/fedtwin/coordinator"), config=config)


def test_the_examples_are_what_init_writes() -> None:
    config = example().config
    written = render_config(
        name=config.name, address=config.front.address, listen=config.front.listen, link_port=config.link.port
    )
    assert (DEPLOY / CONFIG_FILE).read_bytes() == written
    assert (DEPLOY / UNIT_FILE).read_bytes() == render_unit(example(), PLACE)
    assert (DEPLOY / COMPOSE_FILE).read_bytes() == render_compose(example(), PLACE)


def test_every_key_of_the_configuration_is_explained() -> None:
    lines = (DEPLOY / CONFIG_FILE).read_text().splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            above = next(other for other in reversed(lines[:number]) if "=" not in other or other.startswith("#"))
            assert above.startswith("#"), line


@pytest.mark.parametrize("folder", ["coordinator", "a coordinator 100%", "$HOME"])
def test_systemd_accepts_the_unit(tmp_path: Path, folder: str) -> None:
    directory = make_directory(tmp_path / folder)
    unit = directory.root / UNIT_FILE
    assert unit.read_bytes() == render_unit(directory, find_place())
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("ExecStart=", "ExecStart=/nonexistent").replace("Type=exec", "Type=what"))
    broken = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert broken.stderr  # the check can fail


def test_the_unit_hides_what_flower_puts_on_a_command_line_and_is_hardened() -> None:
    lines = set((DEPLOY / UNIT_FILE).read_text().splitlines())
    assert {
        "ProtectProc=invisible",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "LimitCORE=0",
        "UMask=0077",
        "RestartPreventExitStatus=2",
    } <= lines


def test_the_container_is_hardened_and_publishes_the_front_only() -> None:
    (service,) = yaml.safe_load((DEPLOY / COMPOSE_FILE).read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"] == {"core": 0}
    assert service["ports"] == ["9092:9092"]
    assert [mount["target"] for mount in service["volumes"]] == [str(example().root)]


def test_a_path_with_special_characters_survives_yaml_and_compose(tmp_path: Path) -> None:
    root = tmp_path / 'a "coordinator": $HOME #1'
    make_directory(root)
    (service,) = yaml.safe_load((root / COMPOSE_FILE).read_text())["services"].values()
    assert service["command"][-1].replace("$$", "$") == str(root)
    assert service["volumes"][0]["source"].replace("$$", "$") == str(root)


@pytest.mark.slow
def test_the_compose_files_commands_run(tmp_path: Path) -> None:
    front, link = free_ports(2)
    directory = make_directory(tmp_path / "coordinator", front=front, link=link)
    (service,) = yaml.safe_load((directory.root / COMPOSE_FILE).read_text())["services"].values()
    scripts = sysconfig.get_path("scripts")
    kind, *check = service["healthcheck"]["test"]
    assert (kind, service["command"][0], check[0]) == ("CMD", "fedtwin", "fedtwin")
    run, check = [f"{scripts}/fedtwin", *service["command"][1:]], [f"{scripts}/fedtwin", *check[1:]]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    coordinator = subprocess.Popen(run, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_healthy(directory), what="coordinator", deadline_seconds=90)
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    finally:
        coordinator.send_signal(signal.SIGTERM)
        assert coordinator.wait(timeout=30) == 0
    assert not is_healthy(read_directory(directory.root))


def test_the_dockerfile_copies_what_exists_and_installs_the_server() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()
    ]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(wheel["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(copied)
    assert "'.[server]'" in text


def test_the_image_never_holds_anything_but_sources() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"


def test_nginx_passes_the_paths_and_headers_of_our_own_front_and_no_others() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    (names,) = re.findall(r"location ~ \^/v1/fleet/\(([a-z|-]+)\)\$ \{", text)
    assert {f"/v1/fleet/{name}".encode() for name in names.split("|")} == FLEET_PATHS
    assert re.findall(r"location (?!~)(.+) \{", text) == ["= /health", "/"]
    assert re.findall(r'location ~ "\^(.+)\$"', text) == [RELEASE_PATTERN]
    passed = {name.lower().encode() for name, value in re.findall(r"proxy_set_header (\S+) (\$\S+);", text)}
    assert passed == PASSED_REQUEST_HEADERS
    assert "proxy_pass_request_headers off;" in text
    assert "$request_uri != $uri" in text
    assert f"client_max_body_size {BODY_BYTES // 1024**2}m;" in text


UPSTREAM = """\
import sys, uvicorn
async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    seen = scope["raw_path"] + b"?" + scope["query_string"] + b"\\n"
    seen += b"\\n".join(sorted(name for name, _ in scope["headers"]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": seen})
uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), ssl_certfile=sys.argv[2], ssl_keyfile=sys.argv[3],
    log_level="warning")
"""


@pytest.mark.slow
def test_where_nginx_is_installed_it_behaves_as_our_own_front(tmp_path: Path) -> None:
    program = shutil.which("nginx")
    if program is None:  # then the test above is what there is
        return
    identity, (front, link) = make_server_identity(tmp_path / "tls"), free_ports(2)
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in {
        "/run/nginx.pid": str(tmp_path / "pid"),
        "/var/lib/fedtwin/coordinator/tls": str(tmp_path / "tls"),
        "/var/lib/fedtwin/coordinator/releases": str(tmp_path / "releases"),
        "127.0.0.1:9093": f"127.0.0.1:{link}",
        "listen 9092 ssl": f"listen 127.0.0.1:{front} ssl",
        "access_log off;": "access_log off; " + " ".join(f"{name}_temp_path {tmp_path};" for name in TEMPORARY),
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    arguments = [program, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "errors")]
    tested = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    upstream = subprocess.Popen(
        [sys.executable, "-c", UPSTREAM, str(link), str(identity.certificate), str(identity.private_key)]
    )
    released = tmp_path / "releases" / ("ab" * 32)
    released.mkdir(parents=True)
    for name in ("release.signed.json", "weights.npz", "other"):
        (released / name).write_text(name)
    user = "user root;" if os.geteuid() == 0 else ""  # else the workers are nobody, whom a test's folder is closed to
    nginx = subprocess.Popen([*arguments, "-g", f"daemon off; {user}"])
    trusted = ssl.create_default_context(cafile=str(identity.certificate_authority))
    try:
        with httpx.Client(base_url=f"https://localhost:{front}", verify=trusted, trust_env=False) as client:
            wait_until(lambda: _answers(client), what="nginx", deadline_seconds=30)
            for path in FLEET_PATHS:
                headers = {"flwr-public-key": "k", "x-forwarded-for": "1.2.3.4", "cookie": "c", "flwr-task-token": "t"}
                seen = client.post(path.decode(), content=b"x", headers=headers)
                assert seen.text.splitlines()[0] == path.decode() + "?"
                passed = {name.encode() for name in seen.text.splitlines()[1:]}
                framing = {b"host", b"content-length", b"accept-encoding"}
                assert passed - framing <= PASSED_REQUEST_HEADERS
                assert b"flwr-public-key" in passed
            for name in ("release.signed.json", "weights.npz"):
                assert client.get(f"/v1/release/{released.name}/{name}").text == name
            for method, raw in REFUSED:
                assert client.request(method, raw).status_code in (403, 404, 405), raw
    finally:
        for process in (nginx, upstream):
            process.terminate()
            process.wait(timeout=20)


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
REFUSED = [
    ("GET", "/v1/fleet/pull-messages"),
    ("POST", "/v1/fleet/pull-messages?x=1"),
    ("POST", "/v1/fleet/register-node"),
    ("POST", "/v1/fleet/pull-messages/"),
    ("POST", "/v1/%66leet/pull-messages"),
    ("POST", "/v1//fleet/pull-messages"),
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/control/..%2ffleet/pull-messages"),
    ("POST", "/v1/runtime/acquire-task"),
    ("POST", "/health"),
    ("POST", f"/v1/release/{'ab' * 32}/weights.npz"),
    ("GET", f"/v1/release/{'ab' * 32}/other"),
    ("GET", f"/v1/release/{'ab' * 32}/weights.npz?x"),
    ("GET", f"/v1/release/{'cd' * 32}/weights.npz"),
    ("GET", "/"),
]


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_the_example_address_is_in_the_certificate(tmp_path: Path) -> None:

    made = create_coordinator(
        tmp_path / "c",
        name="consortium",
        address=example().config.front.address,
        listen=example().config.front.listen,
        link_port=example().config.link.port,
        now=dt.datetime.now(dt.UTC),
    )
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", made.server.certificate],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "DNS:coordinator.example.org, DNS:localhost, IP Address:127.0.0.1" in shown.stdout
