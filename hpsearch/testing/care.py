"""The memory store's part for preflight, the test split and logs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from hpsearch.errors import NotFound
from hpsearch.study import Acknowledgement, Border, Event, Preflight, PreflightStatus, Study, StudyState
from hpsearch.testing.kept import Kept


class Care:
    """What the memory store keeps, and what is checked before and read after a study."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: dict[int, Kept] = {}
        self._last_id = 0
        self.logs = Logs(self._kept, self._lock)

    # -- preflight --------------------------------------------------------------------------------------------

    def preflight(self, study_id: int) -> Preflight:
        """See Store."""
        with self._lock:
            return self._of(study_id).preflight

    def claim_preflight(
        self, worker: str, *, kinds: Iterable[str], now: datetime, ttl: timedelta
    ) -> tuple[Study, str] | None:
        """See Store."""
        with self._lock:
            for kept in self._waiting_for_checks(worker, kinds, now):
                token = f"preflight-{self._next_id()}"
                kept.preflight = Preflight(PreflightStatus.RUNNING, (), worker, token, now + ttl)
                return kept.study, token
            return None

    def n_checks_waiting(self, *, kinds: Iterable[str] | None = None, now: datetime) -> int:
        """See Store."""
        with self._lock:
            return sum(1 for _ in self._waiting_for_checks(None, kinds, now))

    def _waiting_for_checks(self, worker: str | None, kinds: Iterable[str] | None, now: datetime) -> Iterator[Kept]:
        wanted = None if kinds is None else set(kinds)
        for kept in self._kept.values():
            before = kept.preflight
            expired = before.expires_at is not None and before.expires_at <= now
            waits = before.status is PreflightStatus.WAITING or (
                before.status is PreflightStatus.RUNNING and (expired or before.worker == worker)
            )
            mine = wanted is None or kept.study.spec.objective.kind in wanted
            if kept.study.state is StudyState.PREFLIGHT and waits and mine:
                yield kept

    def finish_preflight(
        self, study_id: int, token: str, checks: Sequence[dict[str, Any]], *, failure: str | None, now: datetime
    ) -> bool:
        """See Store."""
        with self._lock:
            kept = self._of(study_id)
            if kept.preflight.token != token:
                return False
            if kept.preflight.status is PreflightStatus.RUNNING:
                status = PreflightStatus.PASSED if failure is None else PreflightStatus.FAILED
                kept.preflight = replace(kept.preflight, status=status, checks=tuple(checks), expires_at=None)
                if kept.study.state is StudyState.PREFLIGHT:
                    state = StudyState.RUNNING if failure is None else StudyState.PREFLIGHT
                    kept.study = replace(kept.study, state=state, reason=failure)
                    kept.log_state(now)
            return True

    # -- flags ------------------------------------------------------------------------------------------------

    def acknowledge(self, study_id: int, border: Border, note: str | None, *, now: datetime) -> None:
        """See Store."""
        with self._lock:
            kept = self._of(study_id)
            if note is None:
                kept.acknowledged.pop(border, None)
            else:
                kept.acknowledged[border] = Acknowledgement(note, now)
            kept.log("flag", {**asdict(border), "note": note}, now)

    def acknowledgements(self, study_id: int) -> dict[Border, Acknowledgement]:
        """See Store."""
        with self._lock:
            return dict(self._of(study_id).acknowledged)

    # -- the test split ---------------------------------------------------------------------------------------

    def test_reading(self, study_id: int) -> dict[str, Any] | None:
        """See Store."""
        with self._lock:
            return next((event.data for event in self._of(study_id).events if event.kind == "test"), None)

    def log_test(self, study_id: int, reading: dict[str, Any], *, now: datetime) -> dict[str, Any]:
        """See Store."""
        with self._lock:
            before = self.test_reading(study_id)
            if before is None:
                self._of(study_id).log("test", dict(reading), now)
            return before or dict(reading)

    # -- the log ----------------------------------------------------------------------------------------------

    def events(self, study_id: int, *, after: int, limit: int) -> list[Event]:
        """See Store."""
        with self._lock:
            return self._of(study_id).events[max(after, 0) :][:limit]

    def last_event(self, study_id: int) -> int:
        """See Store."""
        with self._lock:
            return len(self._of(study_id).events)

    def _of(self, study_id: int) -> Kept:
        if study_id not in self._kept:
            raise NotFound("study", study_id)
        return self._kept[study_id]

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


class Logs:
    """What trials wrote, in memory."""

    def __init__(self, kept: dict[int, Kept], lock: threading.RLock) -> None:
        self._kept = kept
        self._lock = lock

    def keep(self, texts: Mapping[str, str]) -> None:
        """See Logs."""
        with self._lock:
            for kept in self._kept.values():
                holding = [item for tries in kept.tries.values() for item in tries if item.holds]
                kept.logs |= {item.trial: texts[item.token] for item in holding if item.token in texts}

    def of_trial(self, study_id: int, number: int) -> str | None:
        """See Logs."""
        with self._lock:
            if study_id not in self._kept or number >= len(self._kept[study_id].trials):
                raise NotFound("trial", number)
            return self._kept[study_id].logs.get(number)
