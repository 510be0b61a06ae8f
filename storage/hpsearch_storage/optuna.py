"""Optuna's storage over a store of this process: no server is needed, any number of processes may share one store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hpsearch.integrations.optuna.backend import Backend, Created, Needs, Outcome, Patch, Position, StudyDocument, View
from hpsearch.integrations.optuna.storage import BackendStorage
from hpsearch_storage.opening import open_store
from hpsearch_storage.store import SqlStore


class StoreStorage(BackendStorage):
    """``optuna.create_study(storage=StoreStorage("sqlite:///hpsearch.db"))``.

    Args:
        url: of the store, as for ``hpsearch serve --store``.
        more: as for :class:`BackendStorage`.

    Raises:
        InvalidInput, StoreError: as :func:`hpsearch_storage.open_store`.
    """

    def __init__(self, url: str, **more: Any) -> None:
        self.url = url
        super().__init__(**more)

    def _connect(self) -> Backend:
        return StoreBackend(open_store(self.url))

    def _settings(self) -> tuple[str, ...]:
        return (*super()._settings(), "url")


class StoreBackend:
    """:class:`Backend` by a store of this process, which it closes."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._records = store.optuna

    def create_study(self, name: str | None, directions: Sequence[str], key: str) -> StudyDocument:
        """See Backend."""
        return self._records.create_study(name, directions, key, now=_now())

    def delete_study(self, study_id: int) -> None:
        """See Backend."""
        self._records.delete_study(study_id)

    def studies(self) -> list[StudyDocument]:
        """See Backend."""
        return self._records.studies()

    def study(self, *, study_id: int | None = None, name: str | None = None) -> StudyDocument:
        """See Backend."""
        return self._records.study(study_id=study_id, name=name)

    def set_attributes(self, study_id: int, kind: str, attributes: dict[str, str]) -> None:
        """See Backend."""
        self._records.set_attributes(study_id, kind, attributes)

    def create_trial(self, study_id: int, template: Patch | None, times: Sequence[int | None], key: str) -> Created:
        """See Backend."""
        return self._records.create_trial(study_id, template, times, key, now=_now())

    def apply(self, patches: Sequence[Patch]) -> list[Outcome]:
        """See Backend."""
        return self._records.apply(patches, now=_now())

    def sync(
        self, study_id: int, position: Position, patches: Sequence[Patch], needs: Needs
    ) -> tuple[list[Outcome], View]:
        """See Backend."""
        outcomes = self._records.apply(patches, now=_now())
        return outcomes, json.loads(self._records.view(study_id, position, needs))

    def trial(self, trial_id: int) -> tuple[int, View]:
        """See Backend."""
        answer = json.loads(self._records.trial(trial_id))
        return answer["study"], answer["view"]

    def heartbeat(self, trial_id: int) -> None:
        """See Backend."""
        self._records.heartbeat(trial_id, now=_now())

    def stale_trials(self, study_id: int, grace_seconds: float) -> list[int]:
        """See Backend."""
        return self._records.stale_trials(study_id, timedelta(seconds=grace_seconds), now=_now())

    def close(self) -> None:
        """See Backend."""
        self._store.close()


def _now() -> datetime:
    return datetime.now(UTC)
