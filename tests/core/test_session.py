"""What a worker says to a server, when it waits for the answer, and what it does when the server goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import own_code
from hpsearch.errors import ServerRefused
from hpsearch.http import Connection
from hpsearch.trial import Action, Report, Result, TrialState
from hpsearch.worker import session as sessions
from hpsearch.worker.session import LeasedTrial, Session


class Server(ThreadingHTTPServer):
    """Takes calls; holds the first report until that is allowed, and then does with it what is to be done."""

    def __init__(self, first: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.first = first
        self.action = "continue"
        self.leases: list[LeasedTrial] = []
        self.next: list[LeasedTrial] = []
        self.asked: list[int] = []
        self.told: list[tuple[str, list[int | None]]] = []
        self.came, self.goes_on = threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.path.rsplit("/", 1)[1]
        if what == "report" and not self.server.came.is_set():
            self.server.came.set()
            assert self.server.goes_on.wait(20)
            if self.server.first == "break":
                self.close_connection = True
                return
            if self.server.first == "refuse":
                self.answer(422, {"title": "no", "detail": "no such metric"})
                return
        self.server.told.append((what, [each.get("step") for each in body.get("reports", [])]))
        action, reports, results = self.server.action, body.get("reports", []), body.get("results", [])
        decisions = [{"token": r["token"], "action": action, "reason": None} for r in reports]
        outcomes = [{"token": r["token"], "accepted": True, "reason": None} for r in results]
        leases = [asdict(lease) for lease in self.server.leases]
        answer: dict[str, Any] = {"decisions": decisions, "outcomes": outcomes, "leases": leases}
        if "next" in body:
            self.server.asked.append(body["next"]["capacity"])
            answer["next"] = {"leases": [asdict(lease) for lease in self.server.next]}
        self.answer(200, answer)

    def answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(first: str = "break", **lease: Any) -> Iterator[tuple[Server, Session]]:
    """A server, and a session that holds a trial of it, if there is to be one."""
    server = Server(first)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = Connection(f"http://127.0.0.1:{server.server_port}")
    session = Session(connection, "w", {}, threading.Event())
    if lease:
        server.leases = [own_code.lease({"kind": "python"}, token="t", **lease)]
        session.lease(lambda: 1, kinds=["python"])
        server.told.clear()
    try:
        yield server, session
    finally:
        server.goes_on.set()
        with suppress(ServerRefused):
            session.flush()
        session.release(["t"])  # who holds nothing renews nothing
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
        server.goes_on.set()
        finishing.join(20)
        reporting.join(20)
        assert server.told == [("finish", [7])], "what could not be sent before goes with it"


def steps(first: int, last: int) -> list[Report]:
    return [Report("t", step, {"loss": 1 / step}) for step in range(first, last + 1)]


def test_nobody_waits_for_an_answer_that_cannot_be_to_stop_and_what_gathers_meanwhile_goes_together() -> None:
    with served("answer", stops_from=None) as (server, session):
        for report in steps(1, 5):
            assert session.report([report])["t"].action is Action.CONTINUE
            assert server.came.wait(20)
        assert server.told == [], "the first is not answered"
        server.goes_on.set()
        session.finish([Result("t", TrialState.COMPLETED, 1.0)])
        assert server.told == [("report", [1]), ("report", [2, 3, 4, 5]), ("finish", [])]


def test_what_is_reported_in_quick_succession_goes_with_the_result() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.goes_on.set()
        for report in steps(1, 3):
            session.report([report])
        session.finish([Result("t", TrialState.COMPLETED, 1.0)])
        assert server.told == [("finish", [1, 2, 3])]


def test_reports_are_sent_soon_though_nobody_waits_for_them() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.goes_on.set()
        session.report(steps(1, 1))
        assert server.came.wait(20)


def test_what_is_next_comes_with_the_answer_to_the_last_result() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.goes_on.set()
        server.next = [own_code.lease({"kind": "python"}, token=token) for token in ("u", "v")]
        session.finish([Result("t", TrialState.COMPLETED, 1.0)])
        server.told.clear()
        found = session.lease(lambda: 2, kinds=["python"])
        assert [lease.token for lease in found.leases] == ["u", "v"]
        server.next = []
        session.finish([Result("u", TrialState.COMPLETED, 1.0)])
        assert server.asked == [1], "while another trial is held nothing is asked for"
        session.finish([Result("v", TrialState.COMPLETED, 1.0)])
        assert server.asked == [1, 2]
        assert [what for what, _ in server.told] == ["finish", "finish"]


def test_who_is_told_to_stop_asks_for_nothing_more_and_gives_back_what_came_before() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.goes_on.set()
        server.next = server.leases = [own_code.lease({"kind": "python"}, token="u")]
        session.finish([Result("t", TrialState.COMPLETED, 1.0)])
        session.stop.set()
        assert session.lease(lambda: 1, kinds=["python"]).leases == []
        assert [what for what, _ in server.told] == ["finish", "leases", "release"]
        session.finish([Result("u", TrialState.COMPLETED, 1.0)])
        assert server.asked == [1]


def test_who_waits_for_no_answer_hears_of_it_with_a_later_report() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.action = "abandon"
        server.goes_on.set()
        session.report(steps(1, 1))
        until = time.monotonic() + 20
        while session.report(steps(2, 2))["t"].action is not Action.ABANDON:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_an_answer_that_may_be_to_stop_is_waited_for() -> None:
    with served("answer", stops_from=1) as (server, session):
        server.action = "stop"
        server.goes_on.set()
        assert session.report(steps(1, 1))["t"].action is Action.STOP


def test_the_first_report_at_or_behind_a_step_that_decides_is_waited_for() -> None:
    with served("answer", stops_at=[3, 5], stops_from=None, epochs=9) as (server, session):
        session.report(steps(1, 1))
        assert server.came.wait(20)
        session.report(steps(2, 2))
        assert server.told == []
        server.goes_on.set()
        session.report(steps(4, 4))
        assert server.told == [("report", [1]), ("report", [2, 4])]
        server.action = "stop"
        assert session.report(steps(5, 5))["t"].action is Action.STOP


def test_a_sign_of_life_asks_for_the_answer() -> None:
    with served("answer", stops_from=None) as (server, session):
        server.action = "abandon"
        server.goes_on.set()
        assert session.report([Report("t")])["t"].action is Action.ABANDON


def test_who_has_more_to_send_than_goes_together_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_TOGETHER", 2)
    with served("answer", stops_from=None) as (server, session):
        server.goes_on.set()
        session.report(steps(1, 5))
        assert server.told == [("report", [1, 2]), ("report", [3, 4]), ("report", [5])]


def test_that_reports_were_refused_is_said_before_results_are_handed_over() -> None:
    with served("refuse", stops_from=None) as (server, session):
        session.report(steps(1, 1))
        assert server.came.wait(20)
        server.goes_on.set()
        with pytest.raises(ServerRefused, match="no such metric"):
            session.finish([Result("t", TrialState.COMPLETED, 1.0)])
        assert server.told == []
