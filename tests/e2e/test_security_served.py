"""Servers as processes: tokens from the command line, TLS, slow, silent or many clients, and an orderly end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser

from hpsearch.client import Client
from hpsearch.errors import ServerError
from hpsearch.http import Connection
from processes import House, digits, eventually

EXTERNAL: dict[str, Any] = {
    "name": "s",
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "stages": [{"name": "coarse", "trials": 10_000}],
}


def token(house: House, store: str, name: str, *scopes: str, expires: str | None = None) -> str:
    options = [part for scope in scopes for part in ("--scope", scope)] + (["--expires", expires] if expires else [])
    made = house.run("token", "create", name, *options, "--store", store)
    assert made.popen.wait(60) == 0, made.output
    return eventually(lambda: re.search(r"hps_[\w-]{43}", made.output), 5).group()


def address(server: Client) -> tuple[str, int]:
    parts = httpx2.URL(server.server)
    return str(parts.host), int(parts.port or 0)


def read(connection: socket.socket, seconds: float) -> bytes:
    """All that comes until the other side closes, or the time is over."""
    connection.settimeout(seconds)
    found = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def test_tokens_from_making_to_revoking(house: House, sqlite_url: str, tmp_path: Path) -> None:
    admin, work = token(house, sqlite_url, "boss", "admin"), token(house, sqlite_url, "gpu-box", "work", expires="1d")
    _, client = house.serve(sqlite_url, "--host", "0.0.0.0", "--workers", "1", "--log-format", "json")
    url = client.server.replace("0.0.0.0", "127.0.0.1")
    boss = Client(url, token=admin)
    house.clients.append(boss)
    study = boss.submit(digits())
    worker = Connection(url, token=work)
    house.clients.append(worker)
    with pytest.raises(ServerError, match="this needs the scope 'read'"):
        worker.call("GET", "/api/v1/studies/digits")
    study.wait()  # the server's own worker has a token of its own
    assert study.read()["state"] == "completed"
    listed = house.run("token", "list", "--json", "--store", sqlite_url)
    assert listed.popen.wait(60) == 0
    rows = json.loads(listed.output)
    assert [(row["name"], row["scopes"], row["state"]) for row in rows] == [
        ("boss", ["admin"], "valid"),
        ("gpu-box", ["work"], "valid"),
    ]
    assert house.run("token", "revoke", "gpu-box", "--store", sqlite_url).popen.wait(60) == 0

    def is_refused() -> bool:
        try:
            worker.call("POST", "/api/v1/leases", body={"worker": "w"})
        except ServerError as error:
            return "a valid token is needed" in str(error)
        return False

    eventually(is_refused, 10)
    server = house.processes[2]
    eventually(lambda: '"path": "/api/v1/leases", "status": 401' in server.output, 10, lambda: server.output)
    audit = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    done = [(line["who"], line["method"], line["path"]) for line in audit if line["logger"] == "hpsearch.audit"]
    assert ("boss", "POST", "/api/v1/studies") in done
    assert (None, "POST", "/api/v1/leases") in done
    assert all(re.fullmatch(r"[0-9a-f]{16}", line["request"]) for line in audit if line["logger"] == "hpsearch.audit")
    kept = (tmp_path / "store.db").read_bytes() + (tmp_path / "store.db-wal").read_bytes()
    assert admin.encode() not in kept
    assert admin not in server.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--host", "0.0.0.0"], "would open the server to the network without a token"),
        (["serve", "--token", " "], "the token is empty"),
        (["serve", "--tls-cert", "a.pem"], "--tls-cert and --tls-key belong together"),
        (["serve", "--tls-cert", "a.pem", "--tls-key", "b.pem"], "no certificate with its key"),
        (["serve", "--trusted-proxy", "proxy.example"], "give an address or a network"),
        (["serve", "--limit", "speed=9"], "names are body, studies"),
        (["serve", "--log-format", "xml"], "--log-format xml: give text or json"),
        (["token", "create", "a"], "say what the token is for"),
        (["token", "create", "a", "--scope", "all"], "the scope 'all' is unknown"),
        (["token", "create", "a", "--scope", "read", "--expires", "soon"], "'soon' is no duration"),
        (["token", "revoke", "a"], "there is no token 'a'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(house: House, arguments: list[str], words: str) -> None:
    port = ["--port", "0"] if arguments[0] == "serve" else []
    refused = house.run(*arguments, *port)
    assert refused.popen.wait(60) == 2, refused.output
    eventually(lambda: words in refused.output, 5, lambda: refused.output)
    assert "Traceback" not in refused.output


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself."""
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return files


def test_tls(house: House, sqlite_url: str, certificate: tuple[Path, Path]) -> None:
    import ssl

    cert, key = certificate
    secret = token(house, sqlite_url, "a", "admin")
    server = house.run("serve", "--store", sqlite_url, "--port", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    url = server.wait_for(r"serving (https://\S+)").group(1)
    trusted = ssl.create_default_context(cafile=str(cert))
    with httpx2.Client(base_url=url, verify=trusted, headers={"Authorization": f"Bearer {secret}"}) as client:
        assert client.get("/api/v1/studies").status_code == 200
        login = client.post("/login", data={"token": secret})
        assert "Secure" in login.headers["set-cookie"]
    with pytest.raises(httpx2.HTTPError), httpx2.Client() as plain:
        plain.get(url.replace("https", "http")).raise_for_status()


def test_forwarded_headers_count_from_named_proxies_only(house: House, sqlite_url: str) -> None:
    secret = token(house, sqlite_url, "a", "admin")
    sent = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    for options, seen in (([], "127.0.0.1"), (["--trusted-proxy", "127.0.0.0/8"], "203.0.113.9")):
        server, client = house.serve(sqlite_url, "--log-format", "json", *options)
        login = httpx2.post(f"{client.server}/login", data={"token": secret}, headers=sent)
        assert ("secure" in login.headers["set-cookie"].lower()) is bool(options)
        lines = eventually(lambda: [line for line in server.lines if '"path": "/login"' in line], 5)  # noqa: B023
        assert json.loads(lines[0])["client"] == seen
        assert server.stop() == 0


@pytest.fixture
def busy(house: House, sqlite_url: str) -> Client:
    """A server with a study that waits for somebody, and short patience."""
    _, client = house.serve(sqlite_url, "--limit", "header_seconds=2", "--limit", "body_seconds=3")
    client.submit(EXTERNAL)
    return client


def lease_seconds(client: Client, n: int = 20) -> list[float]:
    """How long each of some leases took."""
    took = []
    for i in range(n):
        started = time.perf_counter()
        body = {"worker": f"quick-{i}", "study": "s"}
        assert client.connection.call("POST", "/api/v1/leases", body=body)["leases"]
        took.append(time.perf_counter() - started)
    return took


def drip(client: Client, text: bytes, stop: threading.Event) -> socket.socket:
    """A connection on which a byte is sent every half second."""
    connection = socket.create_connection(address(client))

    def send() -> None:
        with contextlib.suppress(OSError):
            for i in range(len(text)):
                if stop.wait(0.5):
                    return
                connection.send(text[i : i + 1])

    threading.Thread(target=send, daemon=True).start()
    return connection


def test_slow_and_silent_clients_disturb_nobody_and_are_let_go(busy: Client) -> None:
    stop = threading.Event()
    head = b"POST /api/v1/leases HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    whole = head + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    slow_heads = [drip(busy, head * 50, stop) for _ in range(20)]
    slow_bodies = []
    for _ in range(20):
        connection = socket.create_connection(address(busy))
        connection.send(whole + b"{")
        slow_bodies.append(connection)
    silent = [socket.create_connection(address(busy)) for _ in range(20)]
    half_closed = [socket.create_connection(address(busy)) for _ in range(20)]
    for connection in half_closed:
        connection.send(whole + b"{")
        connection.shutdown(socket.SHUT_WR)
    endless = socket.create_connection(address(busy))
    with contextlib.suppress(OSError):
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 4_000_000)
    assert max(lease_seconds(busy)) < 5, "nobody waits until the slow ones are given up"
    for connection in slow_heads + silent:
        assert read(connection, 15) == b""  # closed without an answer: there was no request
    for connection in slow_bodies:
        began = time.monotonic()
        answer = read(connection, 15)
        assert time.monotonic() - began < 10, "it is closed"
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 3 s" in answer
    for connection in half_closed:
        read(connection, 15)
    answer = read(endless, 15)  # what is sent before the connection is reset may get lost
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    stop.set()
    for connection in [*slow_heads, *slow_bodies, *silent, *half_closed, endless]:
        connection.close()
    assert busy.connection.call("GET", "/healthz") == {"status": "ok"}


def test_five_hundred_event_streams(busy: Client) -> None:
    streams = []
    request = b"GET /api/v1/studies/s/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
    for _ in range(500):
        connection = socket.create_connection(address(busy))
        connection.send(request)
        streams.append(connection)
    text = httpx2.get(f"{busy.server}/metrics").text

    def all_open() -> bool:
        nonlocal text
        text = httpx2.get(f"{busy.server}/metrics").text
        return "hpsearch_event_streams 500.0" in text

    eventually(all_open, 60, lambda: text)
    took = lease_seconds(busy)
    assert sorted(took)[len(took) // 2] < 2, took
    for connection in streams:  # each has every event: 20 leases after the study and its stage
        found = b""
        connection.settimeout(30)
        while b"\nid: 22\n" not in found.replace(b"\r", b"") and b"id: 22\n" not in found:
            found += connection.recv(65536)
    for connection in streams:
        connection.close()
    eventually(lambda: "hpsearch_event_streams 0.0" in httpx2.get(f"{busy.server}/metrics").text, 60)


def test_more_event_streams_than_allowed(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url, "--limit", "streams=1")
    client.submit(EXTERNAL)
    url = f"{client.server}/api/v1/studies/s/events"
    with httpx2.stream("GET", url) as first:
        assert first.status_code == 200
        parts = first.iter_bytes()  # kept: without it the connection is closed
        next(parts)
        more = httpx2.get(url)
        assert (more.status_code, more.headers["retry-after"]) == (429, "5")


def test_no_report_is_lost_when_the_server_stops(house: House, sqlite_url: str) -> None:
    """Ten clients report while the server is told to stop and started again; each step that was answered is there."""
    server, client = house.serve(sqlite_url, "--drain-seconds", "3")
    port = address(client)[1]
    client.submit(EXTERNAL)
    answered: dict[int, list[int]] = {}
    is_over = threading.Event()

    def report(name: str) -> None:
        connection = Connection(client.server)
        house.clients.append(connection)
        lease = connection.call("POST", "/api/v1/leases", body={"worker": name, "study": "s"})["leases"][0]
        steps = answered.setdefault(lease["trial"], [])
        step = 0
        while not is_over.is_set():
            body = {"worker": name, "reports": [{"token": lease["token"], "step": step + 1, "metrics": {"score": 1.0}}]}
            try:
                decision = connection.call("POST", "/api/v1/leases/report", body=body)["decisions"][0]
            except ServerError:
                time.sleep(0.05)
                continue
            assert decision["action"] == "continue", decision
            step += 1
            steps.append(step)
            time.sleep(0.01)

    threads = [threading.Thread(target=report, args=(f"w{i}",)) for i in range(10)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answered) == 10 and min(map(len, answered.values())) > 3, 60)
    lines: list[str] = []

    def follow() -> None:
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.stream("GET", f"{client.server}/api/v1/studies/s/events") as s,
        ):
            lines.extend(s.iter_lines())

    follower = threading.Thread(target=follow)
    follower.start()
    eventually(lambda: lines, 30)
    server.popen.send_signal(signal.SIGTERM)
    eventually(lambda: httpx2.get(f"{client.server}/readyz").status_code == 503, 10)
    assert server.popen.wait(30) == 0, server.output
    follower.join(10)
    assert "retry: 1000" in lines
    before = {trial: len(steps) for trial, steps in answered.items()}
    house.serve(sqlite_url, port=port)
    eventually(lambda: all(len(steps) > before[trial] + 3 for trial, steps in answered.items()), 60)
    is_over.set()
    for thread in threads:
        thread.join(30)
    for trial, steps in answered.items():
        kept = client.connection.call("GET", f"/api/v1/studies/s/trials/{trial}/metrics")["items"]
        assert set(steps) <= {item["step"] for item in kept}


@pytest.mark.browser
def test_a_person_logs_in_works_and_logs_out(house: House, sqlite_url: str, browser: Browser) -> None:
    secret = token(house, sqlite_url, "ada", "submit")
    _, client = house.serve(sqlite_url)
    submitter = Client(client.server, token=secret)
    house.clients.append(submitter)
    submitter.submit(EXTERNAL)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{client.server}/studies/s")
    assert page.url == f"{client.server}/login?next=%2Fstudies%2Fs"
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    assert "not known here" in page.get_by_role("alert").inner_text()
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{client.server}/studies/s")
    assert page.evaluate("document.cookie") == "", "scripts cannot read the session"
    paused = page.evaluate("fetch('/api/v1/studies/s/pause', {method: 'POST'}).then(answer => answer.status)")
    assert paused == 200
    page.get_by_role("link", name="Access").click()
    assert "ada" in page.get_by_role("main").inner_text()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{client.server}/login")
    page.goto(f"{client.server}/studies/s")
    assert "/login" in page.url
    context.close()
