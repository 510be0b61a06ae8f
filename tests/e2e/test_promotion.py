"""Early stopping and resuming with a real server and real workers."""

from __future__ import annotations

import json
import signal
from typing import Any

import httpx2
import pytest

from processes import House, digits, eventually

ASHA = {"name": "only", "trials": 9, "epochs": 9, "early_stopping": "asha"}


def test_what_is_stopped_is_promoted_and_goes_on_from_its_checkpoint(house: House, sqlite_url: str) -> None:
    """Two workers share a folder of checkpoints; packs of two make the first rungs small, so that many are promoted."""
    env = {"HPSEARCH_CHECKPOINTS": str(house.folder / "checkpoints")}
    _, client = house.serve(sqlite_url)
    study = client.submit(digits(stages=[ASHA]))
    workers = [house.worker(client, name, "--pack", "2", env=env) for name in ("one", "two")]
    study.wait(timeout_seconds=120)
    trials = study.trials()
    assert {t["state"] for t in trials} == {"completed", "pruned"}
    promoted = [t for t in trials if t["n_attempts"] > 1]
    assert promoted
    for trial in trials:
        steps = [row["step"] for row in study.metrics(trial["number"])]
        assert steps == list(range(1, trial["step"] + 1))
        if trial["state"] == "pruned":
            assert trial["step"] in (1, 3)
            assert "is not among the best third of" in trial["reason"]
            assert trial["value"] is not None
    queued = [data for _, kind, data in first_events(study) if kind == "trial" and data["state"] == "queued"]
    assert {data["number"] for data in queued} == {t["number"] for t in promoted}
    assert all(data["reason"].startswith("promoted: ") for data in queued)
    (stage,) = study.read()["stages"]
    trained = sum(t["step"] for t in trials)
    assert stage["saved_epochs"] == 9 * 9 - trained
    assert all(worker.stop() == 0 for worker in workers)
    longest = max(promoted, key=lambda t: t["step"])
    replay = house.run("replay", study.name, str(longest["number"]), "--store", sqlite_url, "--json")
    assert replay.popen.wait(100) == 0, replay.output
    for step in json.loads(replay.output)["steps"][: longest["step"]]:
        assert step["replayed"]["val_loss"] == pytest.approx(step["recorded"]["val_loss"], rel=1e-3)


def first_events(study: Any) -> list[tuple[int, str, dict[str, Any]]]:
    last = study.read()["last_event"]
    found = []
    for event in study.events():
        found.append(event)
        if event[0] == last:
            break
    return found


def test_a_stage_resumes_its_parents_best_after_a_worker_was_killed(house: House, sqlite_url: str) -> None:
    env = {"HPSEARCH_CHECKPOINTS": str(house.folder / "checkpoints")}
    _, client = house.serve(sqlite_url, "--lease-seconds", "2")
    stages = [
        {"name": "short", "trials": 4, "epochs": 3},
        {"name": "long", "top": 2, "epochs": 60, "resume": True},
    ]
    study = client.submit(digits(stages=stages))
    victim = house.worker(client, "victim", "--pack", "4", env=env)
    eventually(lambda: [t for t in study.trials(state="running") if t["stage"] == "long" and t["step"] > 4])
    victim.stop(signal.SIGKILL)
    house.worker(client, "other", "--pack", "4", env=env)
    study.wait(timeout_seconds=120)
    long = study.trials(stage="long")
    assert [(t["state"], t["step"], t["reason"]) for t in long] == [("completed", 60, None)] * 2
    for trial in long:
        assert [row["step"] for row in study.metrics(trial["number"])] == list(range(4, 61))


@pytest.mark.parametrize("sampler", ["sobol", "tpe"])
def test_a_sampler_over_http(house: House, sqlite_url: str, sampler: str) -> None:
    _, client = house.serve(sqlite_url)
    study = client.submit(digits(stages=[{"name": "only", "trials": 14, "epochs": 1, "sampler": sampler}]))
    house.worker(client, "one", "--pack", "2")
    study.wait(timeout_seconds=120)
    assert [t["state"] for t in study.trials()] == ["completed"] * 14
    assert study.read()["spec"]["stages"][0]["sampler"] == sampler
    refused = httpx2.post(
        f"{client.server}/api/v1/studies",
        json=digits(name="b", stages=[{"name": "only", "trials": 4, "epochs": 1, "sampler": {"name": "tpe", "x": 1}}]),
    )
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == "stages.0.sampler.x"
