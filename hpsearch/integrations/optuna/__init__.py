"""Optuna on the service: ``optuna.create_study(storage=ServiceStorage("http://127.0.0.1:8765"))``."""

from hpsearch.integrations.optuna.service import ServiceStorage
from hpsearch.integrations.optuna.storage import BackendStorage

__all__ = ["BackendStorage", "ServiceStorage"]
