"""``kind: command``: any program, its metrics as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import InvalidSpec
from hpsearch.objective import CommandObjective
from hpsearch.objective.command import as_text, variable
from hpsearch.space import Value
from hpsearch.spec import parse_study
from hpsearch.trial import Action, TrialState
from hpsearch.worker.command import CommandRunner, number
from hpsearch.worker.folders import Folders
from hpsearch.worker.session import LeasedTrial, PreflightTask
from own_code import Heard, lease


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Callable[..., CommandRunner]]:
    made: list[CommandRunner] = []

    def make(*allow: str) -> CommandRunner:
        folders = Folders(str(tmp_path / "checkpoints"), every_seconds=0)
        made.append(CommandRunner(allow=allow or ["*"], folders=[tmp_path], checkpoints=folders))
        return made[-1]

    yield make
    for each in made:
        each.close()


def script(text: str, *arguments: str, **changes: Any) -> LeasedTrial:
    """A trial that runs a script of the shell."""
    braces = text.replace("{", "{{").replace("}", "}}")
    objective = {"kind": "command", "argv": ["/bin/sh", "-c", braces, "sh", *arguments], **changes.pop("objective", {})}
    return lease(objective, **changes)


def test_metrics_are_lines_of_json_among_others(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    text = """
        echo starting; echo '{"level": 30, "msg": "a log line"}'; echo '{"step": 1, "note": "no number"}'
        echo '{"step": 1, "loss": 3.5, "note": "x"}'; echo '{"step": 1, "accuracy": 0.5}'
        printf '{"step": 2, '; sleep 0.05; echo '"loss": 2, "good": true}'
        echo '{"loss": 1.5}'; echo '[1]'; echo '{broken}'
        echo '{"step": -1, "loss": 9}'; echo '{"step": 1.5, "loss": 9}'
        printf '{"step": 4, "loss": 1}'
    """
    runner().run([script(text)], heard)
    assert heard.steps == [
        (1, {"loss": 3.5}),
        (1, {"loss": 3.5, "accuracy": 0.5}),
        (2, {"loss": 2.0}),
        (3, {"loss": 1.5}),
        (4, {"loss": 1.0}),
    ]
    assert (heard.result.state, heard.result.value) == (TrialState.COMPLETED, 1.0)
    assert heard.logs["t0"].startswith('starting\n{"level": 30')


POST = """
import json, os, sys, urllib.error, urllib.request

def post(body, token=os.environ["HPSEARCH_METRICS_TOKEN"]):
    headers = {"Authorization": "Bearer " + token}
    request = urllib.request.Request(os.environ["HPSEARCH_METRICS_URL"], body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
"""


def python(text: str, **changes: Any) -> LeasedTrial:
    """A trial that runs Python."""
    argv = [sys.executable, "-c", (POST + text).replace("{", "{{").replace("}", "}}")]
    return lease({"kind": "command", "argv": argv}, **changes)


def test_metrics_may_be_posted(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    text = """
assert post(b'{"step": 1, "loss": 3}') == (200, {"action": "continue"})
assert post(b'{"step": 2, "loss": 2}\\n{"step": 3, "loss": 1}') == (200, {"action": "continue"})
assert post(b'no json')[0] == 200
assert post(b'{"step": 4, "loss": 0}', token="wrong")[0] == 401
assert post(b'{"step": 4, "loss": 0}' + b" " * 2**23)[0] == 413
print(os.environ["HPSEARCH_METRICS_TOKEN"], file=open("token", "w"))
"""
    runner().run([python(text)], heard)
    assert (heard.result.state, heard.result.value) == (TrialState.COMPLETED, 1.0), heard.result
    assert heard.steps == [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})]


def test_a_token_holds_for_its_own_trial_alone(runner: Callable[..., CommandRunner]) -> None:
    own, first, second = runner(), Heard(), Heard()
    keep = """
post(b'{"step": 1, "loss": 3}')
print(os.environ["HPSEARCH_METRICS_TOKEN"], end="", file=open("token", "w"))
"""
    late = """
assert post(b'{"step": 9, "loss": 0}', token=open("token").read())[0] == 401
post(b'{"step": 1, "loss": 5}')
"""
    own.run([python(keep)], first)
    own.run([python(late)], second)
    assert (first.result.state, first.result.value) == (TrialState.COMPLETED, 3.0)
    assert (second.result.state, second.result.value) == (TrialState.COMPLETED, 5.0), second.result


def test_params_come_in_three_ways(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    params = {"lr": 1e-05, "model.kind": "a b'\"$HOME;", "flag": True, "none": None, "sizes": [5, 5]}
    arguments = ["--lr={lr}", "{model.kind}", "{sizes}", "{seed}/{epochs}/{trial}/{fixed}", "{params_file}", "{{lr}}"]
    text = """
        for each in "$@"; do echo "arg $each"; done
        env | grep '^HPSEARCH_' | sort; echo json $(cat "$HPSEARCH_PARAMS_FILE")
        echo '{"step": 1, "loss": 1}' >> "$HPSEARCH_METRICS_FILE"
        test -d "$HPSEARCH_CHECKPOINT_DIR" && printf '{"step": 2, "loss": 0.5}' >> "$HPSEARCH_METRICS_FILE"
    """
    leased = script(text, *arguments, params=params, trial=4, objective={"params": {"fixed": 9, "lr": 7}})
    command = runner()
    command.run([leased], heard)
    command.run([script("exit 0", trial=5)], heard)  # has nothing of it
    assert "reports nothing" in str(heard.results.pop().reason)
    lines = heard.logs["t4"].split("\n")
    assert lines[:4] == ["arg --lr=1e-05", "arg a b'\"$HOME;", "arg [5, 5]", "arg 7/3/4/9"]
    assert lines[5] == "arg {lr}"
    said = dict(line.split("=", 1) for line in lines if line.startswith("HPSEARCH_"))
    assert said["HPSEARCH_PARAM_LR"] == "1e-05"
    assert said["HPSEARCH_PARAM_MODEL_KIND"] == "a b'\"$HOME;"
    assert said["HPSEARCH_PARAM_FLAG"] == "true"
    assert said["HPSEARCH_PARAM_NONE"] == "null"
    assert (said["HPSEARCH_SEED"], said["HPSEARCH_EPOCHS"], said["HPSEARCH_TRIAL"]) == ("7", "3", "4")
    assert (said["HPSEARCH_STUDY"], said["HPSEARCH_STAGE"]) == ("s", "a")
    (document,) = [json.loads(line[5:]) for line in lines if line.startswith("json ")]
    assert document == {**params, "fixed": 9}
    assert heard.steps == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]


def test_the_worker_keeps_its_token(runner: Callable[..., CommandRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_TOKEN", "secret")
    heard = Heard()
    runner().run([script("env; echo '{\"loss\": 1}'")], heard)
    assert "secret" not in heard.logs["t0"]


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        ("exit 0", TrialState.FAILED, "the objective never reports 'loss': it reports nothing; report it, or name"),
        ('echo \'{"step": 1, "accuracy": 1}\'', TrialState.FAILED, "never reports 'loss': it reports accuracy;"),
        ('echo \'{"step": 1, "loss": "low"}\'', TrialState.FAILED, "reports 'loss' as 'low', and not as a number"),
        ("echo '{\"loss\": [1]}'", TrialState.FAILED, "reports 'loss' as [1], and not as a number: report a number"),
        ("echo '{\"loss\": 1}'; echo why >&2; exit 3", TrialState.FAILED, "it exited with status 3:\nwhy"),
        ("kill -11 $$", TrialState.FAILED, "it was ended by SIGSEGV"),
        ("kill -9 $$", TrialState.FAILED, "it was ended by SIGKILL, as the system does where memory runs out"),
        ("exit 80", TrialState.DIVERGED, "it exited with status 80, which says that it diverged"),
        ('echo \'{"step": 2, "loss": NaN}\'; sleep 30', TrialState.DIVERGED, "loss is nan at step 2"),
        ('echo \'{"step": 2, "loss": "-Infinity"}\'; sleep 30', TrialState.DIVERGED, "loss is -inf at step 2"),
    ],
)
def test_ends(runner: Callable[..., CommandRunner], text: str, state: TrialState, said: str) -> None:
    heard = Heard()
    runner().run([script(text)], heard)
    assert heard.result.state is state
    assert said in str(heard.result.reason)


def test_a_temporary_failure_is_tried_again_twice(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    command = runner()
    for _ in range(3):
        command.run([script("exit 75")], heard)
    assert heard.released == ["t0", "t0"]
    assert heard.result.state is TrialState.FAILED
    assert "a temporary failure, 3 times on this worker" in str(heard.result.reason)


IGNORING = "trap '' TERM; echo '{\"step\": 1, \"loss\": 4}'; while true; do sleep 0.05; done"
GRACEFUL = """
    trap 'echo bye; echo saved > "$HPSEARCH_CHECKPOINT_DIR/state"; exit 0' TERM
    echo '{"step": 1, "loss": 4}'; while true; do sleep 0.02; done
"""


@pytest.mark.parametrize(("text", "grace"), [(IGNORING, 0.3), (GRACEFUL, 20)], ids=["ignoring", "graceful"])
def test_stopped_by_sigterm_and_then_by_sigkill(
    runner: Callable[..., CommandRunner], tmp_path: Path, text: str, grace: float
) -> None:
    heard = Heard({("t0", 1): Action.STOP})
    began = time.monotonic()
    runner().run([script(text, objective={"limits": {"grace_seconds": grace}}, keep_stopped=1)], heard)
    assert time.monotonic() - began < 10
    assert (heard.result.state, heard.result.value) == (TrialState.PRUNED, 4.0)
    assert heard.result.reason == "said stop"
    assert ("bye" in heard.logs["t0"]) == (text == GRACEFUL)
    kept = list((tmp_path / "checkpoints").glob("*/state"))
    assert len(kept) == (text == GRACEFUL)  # it may be promoted


def test_what_it_started_ends_with_it(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    began = time.monotonic()
    runner().run([script("sleep 60 & echo pid $!; echo '{\"loss\": 1}'")], heard)
    assert time.monotonic() - began < 10  # nobody waits for who holds its output open
    assert heard.result.state is TrialState.COMPLETED
    pid = heard.logs["t0"].split()[1]
    status = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 5
    while status.exists() and ") Z" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or ") Z" in status.read_text()


def test_limits_and_a_worker_that_stops(runner: Callable[..., CommandRunner]) -> None:
    heard = Heard()
    leased = script("sleep 30", objective={"limits": {"seconds": 0.2, "grace_seconds": 0}})
    runner().run([leased], heard)
    assert "it took longer than limits.seconds, 0.2" in str(heard.result.reason)
    threading.Timer(0.3, heard.stop.set).start()
    runner().run([script("sleep 30", trial=1)], heard)
    assert heard.released == ["t1"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("no-such-command", "there is no command 'no-such-command' on the worker's PATH: install it, or give its path"),
        ("beside.sh", "there is no command 'beside.sh' on the worker's PATH; a file of that name is here: write ./b"),
        ("./missing.sh", "there is no file './missing.sh' (looked in "),
        ("./beside.sh", "beside.sh is not executable: chmod +x ./beside.sh"),
    ],
)
def test_a_command_that_is_not_there(
    runner: Callable[..., CommandRunner], tmp_path: Path, program: str, said: str
) -> None:
    (tmp_path / "beside.sh").write_text("#!/bin/sh\n")
    heard = Heard()
    command = runner()
    objective = {"kind": "command", "argv": [program]}
    command.preflight(PreflightTask("s", "t", objective, {}, 0), heard)
    command.run([lease(objective)], heard)
    (check,) = heard.checks
    assert (check["name"], check["status"]) == ("command", "fail")
    assert said in check["message"]
    assert said in str(heard.result.reason)


def test_a_file_that_cannot_be_started(runner: Callable[..., CommandRunner], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\x00\x01\x02")
    os.chmod(tmp_path / "data", 0o755)
    heard = Heard()
    runner().run([lease({"kind": "command", "argv": ["./data"]})], heard)
    assert "data cannot be started: Exec format error; is it executable, with a #! line?" in str(heard.result.reason)


def test_only_what_is_allowed_runs(runner: Callable[..., CommandRunner], tmp_path: Path) -> None:
    heard = Heard()
    (tmp_path / "mine.py").write_text(f"#!{sys.executable}\nprint('{{\"loss\": 2}}')")
    os.chmod(tmp_path / "mine.py", 0o755)
    objective = {"kind": "command", "argv": ["./mine.py"]}
    refusing, allowing = runner("mine.py"), runner("./*.py")
    for each in (refusing, allowing):
        each.preflight(PreflightTask("s", "t", objective, {}, 0), heard)
        each.run([lease(objective)], heard)
    assert [(check["name"], check["status"]) for check in heard.checks] == [("allow", "fail"), ("command", "pass")]
    assert "start the worker with --allow './mine.py'" in str(heard.results[0].reason)
    assert heard.results[1].value == 2.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("Infinity", float("inf")), (True, None), ("1", None), (10**400, None), ({}, None)],
)
def test_numbers(value: object, expected: float | None) -> None:
    assert number(value) == expected


# The study


def test_words() -> None:
    values: list[Value] = [0.1, "x y", False, None, [1, "a"]]
    assert variable("model.lr-é") == "HPSEARCH_PARAM_MODEL_LR__"
    assert [as_text(value) for value in values] == [
        "0.1",
        "x y",
        "false",
        "null",
        '[1, "a"]',
    ]


def study(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "objective": {"kind": "command", "argv": ["./train.sh", "{lr}"]},
        "metric": {"name": "anything", "direction": "maximize"},
        "space": {"lr": {"type": "float", "low": 0.1, "high": 1}},
        "stages": [{"name": "a", "trials": 1}],
        **changes,
    }


def test_a_study() -> None:
    objective = parse_study(study()).objective
    assert isinstance(objective, CommandObjective)
    assert objective.command({"lr": 0.25}) == ["./train.sh", "0.25"]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({}, "objective.argv: this key is missing"),
        ({"argv": []}, "objective.argv"),
        ({"argv": "./train.sh {lr}"}, "objective.argv"),
        ({"argv": ["./{lr}.sh"]}, "objective.argv: the program './{lr}.sh' must be named without placeholders"),
        ({"argv": ["x", "{lrr}"]}, "objective.argv.1: unknown placeholder 'lrr'; did you mean 'lr'"),
        ({"argv": ["x", '{"a": 1}']}, "braces themselves are written {{ and }}"),
        ({"argv": ["x"], "params": {"LR": 1}}, "'lr' and 'LR' share the variable HPSEARCH_PARAM_LR: rename one"),
        ({"argv": ["x"], "limits": {"memory_mib": 0}}, "objective.limits.memory_mib"),
        ({"argv": ["x"], "shell": True}, "unknown key 'shell'"),
    ],
)
def test_bad_studies(objective: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_study(study(objective={"kind": "command", **objective}))
    assert said in str(caught.value)
