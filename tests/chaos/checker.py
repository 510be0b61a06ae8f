"""What must hold after chaos: the database against what was acknowledged to the workers. Nothing of ours is used."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

MAX_LOST = MAX_FAILED = 3
FINISHED = ("completed", "pruned", "diverged", "failed")


class Tables:
    """Rows of a database as dictionaries."""

    def __init__(self, url: str) -> None:
        self._connection: Any
        if url.startswith("sqlite:///"):
            self._connection = sqlite3.connect(url.removeprefix("sqlite:///"))
            self.damage = [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        else:
            self._connection = psycopg.connect(url)
            self.damage = []

    def rows(self, query: str) -> list[dict[str, Any]]:
        cursor = self._connection.execute(query)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def close(self) -> None:
        self._connection.close()


def read_journals(folder: Path) -> list[dict[str, Any]]:
    """Every line of every worker; the last of a killed one may be cut off."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


def check(url: str, journals: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, int]]:
    """Faults, a sentence each; and what was there to check."""
    tables = Tables(url)
    studies = tables.rows("SELECT * FROM studies")
    stages = {row["id"]: row for row in tables.rows("SELECT * FROM stages")}
    trials = {row["id"]: row for row in tables.rows("SELECT * FROM trials")}
    attempts = {row["token"]: row for row in tables.rows("SELECT * FROM attempts")}
    metrics = {(r["trial_id"], r["step"]): r["values"] for r in tables.rows("SELECT * FROM metrics")}
    events = tables.rows("SELECT study_id, seq, kind, data FROM events ORDER BY study_id, seq")
    went_on = Counter((r["stage_id"], r["trial"]) for r in tables.rows("SELECT * FROM rungs WHERE went_on = 1"))
    faults = [f"damage: {line}" for line in tables.damage]
    tables.close()
    faults += _of_studies(studies, stages, trials, events)
    faults += _of_trials(trials, attempts, went_on)
    faults += _of_journals(journals, trials, attempts, metrics)
    by_stage: dict[int, Counter[str]] = defaultdict(Counter)
    for trial in trials.values():
        by_stage[trial["stage_id"]][trial["state"]] += 1
    n_given_up = sum(map(is_given_up, by_stage.values()))
    if n_given_up > max(1, len(stages) // 50):
        faults.append(f"{n_given_up} of {len(stages)} stages were given up")
    counts = Counter(entry["kind"] for entry in journals)
    counts |= Counter({"stages": len(stages), "stages given up": n_given_up})
    counts |= Counter({f"trials {state}": n for state, n in Counter(t["state"] for t in trials.values()).items()})
    counts |= Counter({f"attempts {state}": n for state, n in Counter(a["state"] for a in attempts.values()).items()})
    return faults, dict(counts)


def _of_studies(studies: Any, stages: Any, trials: Any, events: Any) -> list[str]:
    faults = []
    for study in studies:
        name, mine = study["name"], [t for t in trials.values() if t["study_id"] == study["id"]]
        if study["state"] != "completed":
            faults.append(f"{name} is {study['state']}, not completed")
        if sorted(t["number"] for t in mine) != list(range(study["next_number"])):
            faults.append(f"{name}: its numbers have a gap or a double")
        log = [e for e in events if e["study_id"] == study["id"]]
        if [e["seq"] for e in log] != list(range(1, study["last_event"] + 1)):
            faults.append(f"{name}: its log has a gap")
        told = [(event["kind"], json.loads(event["data"])) for event in log]
        ended = Counter(data["number"] for kind, data in told if kind == "trial" and data["state"] == "completed")
        faults += [f"{name}/{number} completed {n} times by its log" for number, n in ended.items() if n != 1]
        opened = Counter(data["stage"] for kind, data in told if kind == "stage" and data["state"] == "running")
        faults += [f"{name}: the stage {stage} was opened {n} times" for stage, n in opened.items() if n != 1]
    for stage in stages.values():
        mine = [t for t in trials.values() if t["stage_id"] == stage["id"]]
        where = f"the stage {stage['name']} of study {stage['study_id']}"
        states = Counter(t["state"] for t in mine)
        if is_given_up(states):  # where the first trials all lost their workers, and the study says so
            (owner,) = [study for study in studies if study["id"] == stage["study_id"]]
            if f"no trial of the stage {stage['name']!r} completed" not in (owner["reason"] or ""):
                faults.append(f"{where} was given up in silence: {owner['reason']!r}")
        elif len(mine) != stage["n_trials"] or sum(states[s] for s in FINISHED) != stage["n_trials"]:
            faults.append(f"{where} of {stage['n_trials']} trials trained {dict(states)}")
        faults += [f"{where} counts {stage[f'n_{s}']} {s}, not {n}" for s, n in states.items() if stage[f"n_{s}"] != n]
        if stage["n_created"] != len(mine):
            faults.append(f"{where} counts {stage['n_created']} created, not {len(mine)}")
    return faults


def is_given_up(states: Counter[str]) -> bool:
    """Whether at least three trials failed, and none ended in another way before the rest was cancelled."""
    return states["failed"] >= MAX_FAILED and states["cancelled"] > 0 and set(states) == {"failed", "cancelled"}


def _of_trials(trials: Any, attempts: Any, went_on: Any) -> list[str]:
    faults = []
    tries = defaultdict(list)
    for attempt in attempts.values():
        tries[attempt["trial_id"]].append(attempt)
    for trial in trials.values():
        where = f"trial {trial['number']} of study {trial['study_id']}"
        mine = sorted(tries[trial["id"]], key=lambda a: int(a["number"]))
        states = Counter(a["state"] for a in mine)
        if trial["state"] in ("queued", "running"):
            faults.append(f"{where} is stuck: {trial['state']}")
        if states["running"]:
            faults.append(f"{where} has a lease that nobody holds")
        if [a["number"] for a in mine] != list(range(1, len(mine) + 1)):
            faults.append(f"{where}: attempts {[a['number'] for a in mine]}")
        most = 1 + went_on[trial["stage_id"], trial["number"]]  # stopped, promoted, and finished once more
        if trial["state"] in ("completed", "pruned") and not 1 <= states["finished"] <= most:
            faults.append(f"{where} is {trial['state']} by {states['finished']} attempts")
        if trial["state"] == "failed" and states["lost"] < MAX_LOST:
            faults.append(f"{where} failed with {dict(states)}: {trial['reason']}")
        if trial["state"] == "completed" and trial["value"] is None:
            faults.append(f"{where} has no value")
    return faults


def _of_journals(journals: Any, trials: Any, attempts: Any, metrics: Any) -> list[str]:
    faults = []
    accepted: dict[str, float | None] = {}
    by_trial: dict[int, set[str]] = defaultdict(set)
    sent = {e["token"] for e in journals if e["kind"] == "sent"}
    for entry in journals:
        if entry["kind"] not in ("accepted", "refused", "reported"):
            continue
        attempt = attempts.get(entry["token"])
        if attempt is None:
            faults.append(f"{entry['kind']} {entry['token']}: there is no such attempt")
            continue
        trial = trials[attempt["trial_id"]]
        where = f"trial {trial['number']} of study {trial['study_id']}"
        if entry["kind"] == "accepted":
            accepted[entry["token"]] = entry.get("value")
            if attempt["state"] != "finished":
                faults.append(f"{where}: an acknowledged result was lost, its attempt is {attempt['state']}")
            if entry["state"] == "completed":
                by_trial[trial["id"]].add(entry["token"])
                if (trial["state"], trial["value"]) != ("completed", entry["value"]):
                    said = (trial["state"], trial["value"])
                    faults.append(f"{where}: {entry['value']} was acknowledged, the store has {said}")
        elif entry["kind"] == "refused":
            if attempt["state"] == "finished":
                faults.append(f"{where}: a result was refused that counts")
            if "late result came" not in (attempt["reason"] or ""):
                faults.append(f"{where}: a late result left no trace in {attempt['reason']!r}")
        elif attempt["state"] == "finished":
            kept = metrics.get((trial["id"], entry["step"]))
            ours = by_last(trial, attempt, attempts)
            if ours and (kept is None or json.loads(kept)["loss"] != entry["value"]):
                faults.append(f"{where} step {entry['step']}: {entry['value']} was acknowledged, the store has {kept}")
    faults += [f"trial {key}: {len(found)} results were accepted" for key, found in by_trial.items() if len(found) > 1]
    for token, attempt in attempts.items():
        if attempt["state"] == "finished" and token not in sent:
            faults.append(f"attempt {attempt['id']} finished without a result that was sent")
    return faults


def by_last(trial: Any, attempt: Any, attempts: Any) -> bool:
    """Whether no later attempt may have written over what this one reported."""
    later = [a for a in attempts.values() if a["trial_id"] == trial["id"] and a["number"] > attempt["number"]]
    return not later
