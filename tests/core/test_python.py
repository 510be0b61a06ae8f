"""``kind: python``: the user's function in a process of its own."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import InvalidSpec
from hpsearch.objective import PythonObjective
from hpsearch.spec import parse_study
from hpsearch.trial import Action, TrialState
from hpsearch.worker.folders import Folders
from hpsearch.worker.python import PythonRunner
from hpsearch.worker.session import LeasedTrial, PreflightTask
from own_code import Heard, lease

SCRIPT = """
import math, os, sys, threading, time
from pathlib import Path
import hpsearch

def whole(trial):
    for epoch in range(1, trial.epochs + 1):
        trial.report(epoch, loss=trial.params["lr"] / epoch, other=epoch)

def value(trial): return trial.params["lr"] * 2
def table(trial):
    trial.report(1, loss=3.0, other=5)
    return {"loss": 1, "size": 9}
def silent(trial): pass
def others(trial): trial.report(1, accuracy=0.5)
def text(trial): trial.report(1, loss="low")
def listed(trial): return [1.0]
def unnamed(trial): return {"accuracy": 1}
def nothing(trial): trial.report(0, loss=1)
def half(trial): trial.report(1.5, loss=1)
def nan(trial):
    trial.report(1, loss=1.0)
    trial.report(2, loss=math.nan)
    print("never here")
def infinite(trial): return math.inf
def inner(trial): raise ValueError("no\\x00 such file")
def raising(trial): inner(trial)
def deep(trial, n=30): return deep(trial, n - 1) if n else 1 / 0
def leaving(trial): sys.exit(3)
def dying(trial): os._exit(3)
def crashing(trial): os.kill(os.getpid(), 11)
def printing(trial):
    print("out of", trial.number)
    sys.stderr.write("err\\n")
    os.system("echo from a shell")
    return 1.0
def much(trial):
    print("x" * 300_000 + "end")
    return 1.0
def environment(trial):
    print(sorted(n for n in os.environ if n.startswith("HPSEARCH_")), os.environ.get("OTHER"))
    return float(os.getpid())
def stubborn(trial):
    while True:
        try: trial.report(1, loss=1.0)
        except hpsearch.TrialStopped as stop: print(trial.should_stop, stop)
        time.sleep(0.02)
def catching(trial):
    try: trial.report(1, loss=1.0)
    except hpsearch.TrialStopped: return 5.0
def polite(trial):
    while not trial.should_stop: time.sleep(0.01)
    (trial.checkpoint_dir / "left").write_text("x")
def endless(trial):
    while True: time.sleep(0.1)
def hungry(trial):
    kept = [bytearray(2**20) for _ in range(400)]
    time.sleep(30)
def counting(trial):
    file = trial.checkpoint_dir / "deep" / "count"
    before = int(file.read_text()) if file.exists() else 0
    file.parent.mkdir(exist_ok=True)
    file.write_text(str(before + 1))
    trial.report(1, loss=before)
def drawn(trial):
    import random
    return random.random()
def forked(trial):
    import subprocess
    (Path(trial.params["file"])).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
    time.sleep(60)
def slow(trial):
    time.sleep(1.2)
    return 1
class Warm:
    def __init__(self): self.calls = 0
    def __call__(self, trial):
        self.calls += 1
        return self.calls
class Unmade:
    def __init__(self, what): pass
def two(trial, other): pass
constant = 3
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Callable[..., PythonRunner]]:
    (tmp_path / "mine.py").write_text(SCRIPT)
    made: list[PythonRunner] = []

    def make(allow: str = "*", place: str = "") -> PythonRunner:
        folders = Folders(place or str(tmp_path / "checkpoints"), every_seconds=0)
        made.append(PythonRunner(allow=[allow], folders=[tmp_path], checkpoints=folders))
        return made[-1]

    yield make
    for each in made:
        each.close()


def trial(name: str, **changes: Any) -> LeasedTrial:
    objective = {"kind": "python", "entrypoint": f"mine:{name}", **changes.pop("objective", {})}
    return lease(objective, **changes)


def in_turn(python: PythonRunner, heard: Heard, *leases: LeasedTrial) -> None:
    """Each leased by itself: what is leased together is given back where it takes long."""
    for each in leases:
        python.run([each], heard)


def test_reports_and_the_last_value(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    runner().run([trial("whole", objective={"params": {"lr": 9.0, "momentum": 0.9}})], heard)
    assert heard.steps == [(n, {"loss": 0.5 / n, "other": n}) for n in (1, 2, 3)]
    assert heard.result.state is TrialState.COMPLETED
    assert heard.result.value == 0.5 / 3
    assert heard.logs == {}


@pytest.mark.parametrize(
    ("name", "value", "steps"),
    [
        ("value", 1.0, [(1, {"loss": 1.0})]),
        ("table", 1.0, [(1, {"loss": 3.0, "other": 5.0}), (1, {"loss": 3.0, "other": 5.0, "size": 9.0})]),
    ],
)
def test_what_is_returned_is_the_value(
    runner: Callable[..., PythonRunner], name: str, value: float, steps: list[Any]
) -> None:
    heard = Heard()
    runner().run([trial(name)], heard)
    assert (heard.result.state, heard.result.value) == (TrialState.COMPLETED, value)
    assert heard.steps == steps  # the curve stays as it was reported


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("silent", TrialState.FAILED, "never reports 'loss': it reports nothing; report it, or name another metric"),
        ("others", TrialState.FAILED, "never reports 'loss': it reports accuracy;"),
        ("text", TrialState.FAILED, "TypeError: the metric 'loss' is 'low', a text: report a number"),
        ("listed", TrialState.FAILED, "the metric 'loss' is of type list: report a number"),
        ("unnamed", TrialState.FAILED, "what was returned has no 'loss', but 'accuracy'"),
        ("nothing", TrialState.FAILED, "ValueError: the step is 0: epochs count from 1"),
        ("half", TrialState.FAILED, "TypeError: the step is 1.5: report the epoch, a whole number from 1"),
        ("nan", TrialState.DIVERGED, "loss is nan at step 2"),
        ("infinite", TrialState.DIVERGED, "loss is inf at step 1"),
        ("leaving", TrialState.FAILED, "SystemExit: 3"),
        ("dying", TrialState.FAILED, "the process of the objective: it exited with status 3"),
        ("crashing", TrialState.FAILED, "it was ended by SIGSEGV"),
        ("deep", TrialState.FAILED, "more …"),
    ],
)
def test_ends(runner: Callable[..., PythonRunner], name: str, state: TrialState, said: str) -> None:
    heard = Heard()
    in_turn(runner(), heard, trial(name), trial("value", trial=1))
    assert heard.results[0].state is state
    assert said in str(heard.results[0].reason)
    assert len(str(heard.results[0].reason)) <= 2000
    assert heard.results[1].state is TrialState.COMPLETED  # the worker lives on
    assert "never here" not in str(heard.logs)


def test_an_exception_is_told_with_the_lines_that_led_to_it(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    runner().run([trial("raising")], heard)
    line = next(n for n, text in enumerate(SCRIPT.split("\n"), 1) if text.startswith("def inner"))
    assert str(heard.result.reason).split("\n") == [
        "ValueError: no\ufffd such file",
        f"  mine.py, line {line + 1}, in raising: def raising(trial): inner(trial)",
        f'  mine.py, line {line}, in inner: def inner(trial): raise ValueError("no\\x00 such file")',
    ]
    assert "Traceback (most recent call last)" in heard.logs["t0"]


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [
        ("no_such_module_of_mine:f", "there is no module 'no_such_module_of_mine' for the entry point .*--path"),
        ("mine:valeu", "unknown function or class 'valeu'; did you mean 'value'"),
        ("mine:constant", "unknown function or class 'constant'"),
        ("mine:Unmade", "mine:Unmade: making it without arguments failed: TypeError"),
        ("mine:two", r"mine:two\(trial, other\) cannot be called as objective\(trial\) .*: give it one parameter"),
        ("broken:f", r"importing broken failed; mend it .*: ZeroDivisionError: .*\n  broken.py, line 2, in <module>"),
        ("lacking:f", "importing lacking failed; mend it .*: ModuleNotFoundError: No module named 'not_installed'"),
        ("unparsable:f", "importing unparsable failed; .*SyntaxError: "),
        ("killing:f", "killing:f: importing it: the process of the objective: it was ended by SIGKILL"),
    ],
)
def test_bad_entry_points(runner: Callable[..., PythonRunner], tmp_path: Path, entrypoint: str, said: str) -> None:
    (tmp_path / "broken.py").write_text("\n1 / 0")
    (tmp_path / "lacking.py").write_text("import not_installed")
    (tmp_path / "unparsable.py").write_text("def")
    (tmp_path / "killing.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    heard = Heard()
    python = runner()
    objective = {"kind": "python", "entrypoint": entrypoint}
    python.preflight(PreflightTask("s", "t", objective, {}, 0), heard)
    python.run([lease(objective)], heard)
    (check,) = heard.checks
    assert (check["name"], check["status"]) == ("entrypoint", "fail")
    assert re.search(said, check["message"], re.DOTALL), check["message"]
    assert heard.result.state is TrialState.FAILED
    assert re.search(said, str(heard.result.reason), re.DOTALL)


def test_checks_and_refusals(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    objective = {"kind": "python", "entrypoint": "mine:value"}
    runner().preflight(PreflightTask("s", "t", objective, {}, 0), heard)
    refusing = runner(allow="other:*")
    refusing.preflight(PreflightTask("s", "t", objective, {}, 0), heard)
    refusing.run([lease(objective)], heard)
    assert [(check["name"], check["status"]) for check in heard.checks] == [("entrypoint", "pass"), ("allow", "fail")]
    assert "start the worker with --allow 'mine:value'" in heard.checks[1]["message"]
    assert heard.result.reason == heard.checks[1]["message"]


def test_output_is_the_trials_log_and_no_neighbours(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    in_turn(runner(), heard, trial("printing"), trial("value", trial=1), trial("printing", trial=2))
    assert sorted(heard.logs["t0"].split("\n")) == ["", "err", "from a shell", "out of 0"]
    assert "out of 2" in heard.logs["t2"]
    assert "t1" not in heard.logs


def test_a_long_log_keeps_its_end(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    runner().run([trial("much")], heard)
    head, _, kept = heard.logs["t0"].partition("\n")
    assert head == f"… the first {300_004 - 65_536} bytes are left out …"
    assert len(kept) == 65_536
    assert kept.endswith("xend\n")


def test_the_process_is_warm_and_has_no_token(
    runner: Callable[..., PythonRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_TOKEN", "secret")
    monkeypatch.setenv("HPSEARCH_STORE", "postgresql://u:secret@h/d")
    monkeypatch.setenv("OTHER", "kept")
    heard = Heard()
    in_turn(runner(), heard, trial("environment"), trial("environment", trial=1))
    assert heard.logs["t0"] == "[] kept\n"
    assert heard.results[0].value == heard.results[1].value != os.getpid()


def test_a_class_is_made_once(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    in_turn(runner(), heard, *(trial("Warm", trial=n) for n in range(3)))
    assert [result.value for result in heard.results] == [1.0, 2.0, 3.0]


def test_random_numbers_follow_the_seed(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    in_turn(runner(), heard, *(trial("drawn", trial=n, seed=seed) for n, seed in enumerate((1, 2, 1))))
    first, second, third = (result.value for result in heard.results)
    assert first == third != second


@pytest.mark.parametrize("name", ["whole", "catching", "stubborn"])
def test_a_trial_that_is_stopped_early_is_pruned(runner: Callable[..., PythonRunner], name: str) -> None:
    heard = Heard({("t0", 1): Action.STOP})
    leased = trial(name, objective={"limits": {"grace_seconds": 0.3}})
    in_turn(runner(), heard, leased, trial("value", trial=1))
    assert heard.results[0].state is TrialState.PRUNED
    assert heard.results[0].value == {"whole": 0.5}.get(name, 1.0)
    assert heard.results[0].reason == "said stop"
    assert [step for step, _ in heard.steps] == [1, 1]  # one of each trial
    assert heard.results[1].state is TrialState.COMPLETED
    assert name != "stubborn" or "True said stop" in heard.logs["t0"]


def test_stop_at_the_last_epoch_completes(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard({("t0", 3): Action.STOP})
    runner().run([trial("whole")], heard)
    assert heard.result.state is TrialState.COMPLETED


def test_a_trial_that_was_taken_back_ends_without_a_word(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard({("t0", 1): Action.ABANDON, ("t1", None): Action.ABANDON})
    runner().run([trial("whole")], heard)
    runner().run([trial("polite", trial=1, lease_seconds=0.0)], heard)  # heard of between reports
    assert heard.results == []
    assert heard.released == []


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("endless", {"seconds": 0.2}, "it took longer than limits.seconds, 0.2"),
        ("hungry", {"memory_mib": 150}, r"MiB of memory, and limits.memory_mib is 150"),
    ],
)
def test_limits(runner: Callable[..., PythonRunner], name: str, limits: dict[str, Any], said: str) -> None:
    heard = Heard()
    leased = trial(name, objective={"limits": {**limits, "grace_seconds": 0.1}})
    python = runner()
    in_turn(python, heard, leased, trial("value", trial=1))
    assert heard.results[0].state is TrialState.FAILED
    assert said in str(heard.results[0].reason)
    assert heard.results[1].state is TrialState.COMPLETED


def test_a_worker_that_stops_gives_trials_back(runner: Callable[..., PythonRunner]) -> None:
    heard = Heard()
    threading.Timer(0.5, heard.stop.set).start()
    began = time.monotonic()
    runner().run([trial("polite"), trial("polite", trial=1)], heard)
    assert time.monotonic() - began < 5
    assert sorted(heard.released) == ["t0", "t1"]
    assert heard.results == []


@pytest.mark.parametrize("place", ["folder", "memory://own-code"])
def test_checkpoints_are_there_again(runner: Callable[..., PythonRunner], tmp_path: Path, place: str) -> None:
    url = str(tmp_path / "kept") if place == "folder" else place
    heard = Heard({("t0", 1): Action.ABANDON})
    counting = trial("counting")
    runner(place=url).run([counting], heard)  # its worker is taken for lost: another goes on
    kept = replace(counting, token="t1", attempt=2, keep_completed=1)
    runner(place=url).run([kept], heard)
    assert heard.result.value == 1.0
    parent = {"stage": "a", "trial": 0, "step": 1, "epochs": 3}
    child = replace(kept, token="t2", trial=5, epochs=9, stage="b", resume_from=parent, keep_completed=0)
    runner(place=url).run([child], heard)
    assert heard.results[1].value == 2.0
    runner(place=url).run([replace(child, token="t3")], heard)  # its own folder went when it completed
    assert heard.results[2].value == 2.0
    other = replace(child, token="t4", resume_from={**parent, "trial": 1})
    runner(place=url).run([other], heard)
    assert heard.results[3].value == 0.0
    assert heard.results[3].reason == "trained anew: this worker has no checkpoint of trial 1 to go on from"


def test_the_best_folders_are_kept(runner: Callable[..., PythonRunner], tmp_path: Path) -> None:
    python = runner(place=str(tmp_path / "kept"))
    heard = Heard()
    in_turn(python, heard, *(trial("counting", trial=n, seed=n, keep_completed=2) for n in range(4)))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_trials_that_take_no_time_are_leased_together(runner: Callable[..., PythonRunner]) -> None:
    python = runner()
    assert python.capacity == 1
    heard = Heard()
    for _ in range(5):
        python.run([trial("value", trial=n) for n in range(python.capacity)], heard)
    assert python.capacity > 1
    assert heard.released == []
    python.run([trial("slow", trial=n) for n in range(3)], heard)
    assert heard.released == ["t1", "t2"]  # long trials are left to others
    assert python.capacity == 1
    assert all(result.state is TrialState.COMPLETED for result in heard.results)


GUARDED = """
import sys
from hpsearch.worker.folders import Folders
from hpsearch.worker.python import PythonRunner
from own_code import Heard, lease
objective = {"kind": "python", "entrypoint": "mine:forked", "params": {"file": sys.argv[1]}}
PythonRunner(allow=["*"], checkpoints=Folders(sys.argv[1] + "s", every_seconds=0)).run([lease(objective)], Heard())
"""


def test_nothing_is_left_of_a_worker_that_was_killed(runner: Callable[..., PythonRunner], tmp_path: Path) -> None:
    runner()
    file = tmp_path / "pid"
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    worker = subprocess.Popen([sys.executable, "-c", GUARDED, str(file)], cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        grandchild = int(file.read_text())
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        while Path(f"/proc/{grandchild}").exists() and time.monotonic() < deadline:
            if "Z" in Path(f"/proc/{grandchild}/stat").read_text().rsplit(")", 1)[1][:3]:
                break
            time.sleep(0.05)
        else:
            assert not Path(f"/proc/{grandchild}").exists()
    finally:
        worker.kill()
        worker.wait()


# The study


def study(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "objective": {"kind": "python", "entrypoint": "mine:whole"},
        "metric": {"name": "anything at all", "direction": "maximize"},
        "space": {"any/name": {"type": "float", "low": 0.1, "high": 1}},
        "stages": [{"name": "a", "trials": 4}, {"name": "b", "top": 2, "seeds": 3}],
        **changes,
    }


def test_a_study() -> None:
    spec = parse_study(study())
    assert isinstance(spec.objective, PythonObjective)
    assert spec.objective.limits.grace_seconds == 10
    assert spec.stages[0].n_epochs == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"kind": "python"}}, "objective.entrypoint: this key is missing"),
        ({"objective": {"kind": "python", "entrypoint": "mine.whole"}}, "objective.entrypoint"),
        ({"objective": {"kind": "python", "entrypoint": "a:b", "limit": {}}}, "mean 'limits'"),
        ({"objective": {"kind": "python", "entrypoint": "a:b", "limits": {"seconds": 0}}}, "greater than 0, but is 0"),
        ({"objective": {"kind": "python", "entrypoint": "a:b", "params": {"x": math.nan}}}, "must be finite"),
        ({"stages": [{"name": "a", "trials": 4, "folds": 3}]}, "stages.0.folds: code of kind python is called once"),
        ({"stages": [{"name": "a", "trials": 4, "seeds": 3}]}, "stages.0.seeds: code of kind python is called once"),
        ({"space": {}}, "the space is empty"),
    ],
)
def test_bad_studies(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_study(study(**changes))
    assert said in str(caught.value)
