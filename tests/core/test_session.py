"""What a worker says to a server that goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hpsearch.http import Connection
from hpsearch.trial import Report, Result, TrialState
from hpsearch.worker.session import Session


class Server(ThreadingHTTPServer):
    """Takes calls; breaks the connection of the first report once that is allowed, unanswered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, list[int | None]]] = []
        self.came, self.breaks = threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.path.rsplit("/", 1)[1]
        if what == "report" and not self.server.came.is_set():
            self.server.came.set()
            assert self.server.breaks.wait(20)
            self.close_connection = True
            return
        self.server.told.append((what, [each.get("step") for each in body.get("reports", [])]))
        answer: dict[str, Any] = {
            "decisions": [{"token": r["token"], "action": "continue", "reason": None} for r in body.get("reports", [])],
            "outcomes": [{"token": r["token"], "accepted": True, "reason": None} for r in body.get("results", [])],
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[tuple[Server, Session]]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = Connection(f"http://127.0.0.1:{server.server_port}")
    try:
        yield server, Session(connection, "w", {}, threading.Event())
    finally:
        connection.close()
        server.shutdown()
        server.server_close()


def test_a_result_does_not_overtake_a_report_that_another_thread_is_sending() -> None:
    with served() as (server, session):
        reporting = threading.Thread(target=session.report, args=([Report("t", 7, {"loss": 1.0})],))
        reporting.start()
        assert server.came.wait(20)
        finishing = threading.Thread(target=session.finish, args=([Result("t", TrialState.COMPLETED, 1.0)],))
        finishing.start()
        finishing.join(0.3)
        server.breaks.set()
        finishing.join(20)
        reporting.join(20)
        assert server.told == [("report", [7]), ("finish", [])]
