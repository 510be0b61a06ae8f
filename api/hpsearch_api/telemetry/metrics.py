"""Numbers for Prometheus. Labels are bounded: routes by their template, studies and workers the most important ones.

https://prometheus.io/docs/practices/naming/ on names and units.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hpsearch.errors import StoreError
from hpsearch.store import Store
from hpsearch_storage import SqlStore

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MOST_WORKERS = 1000
"""Workers that have a label of their own; the reports of others count under ``other``."""
OTHER = "other"


class Meters:
    """The numbers of one server process, in a registry of its own."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        labels = ("method", "route", "status")
        self._requests = Histogram(
            "hpsearch_request_seconds", "Time of answers", labels, buckets=SECONDS, registry=self.registry
        )
        self._store = Histogram(
            "hpsearch_store_seconds", "Time of transactions", ("kind",), buckets=SECONDS, registry=self.registry
        )
        self._epochs = Counter("hpsearch_epochs", "Epochs (steps) reported", ("worker",), registry=self.registry)
        self.streams = Gauge("hpsearch_event_streams", "Event streams open", registry=self.registry)
        self._answers: dict[tuple[str, str, int], Histogram] = {}
        self._workers: dict[str, Counter] = {}
        if isinstance(store, SqlStore):
            by_kind = {kind: self._store.labels(kind) for kind in ("read", "write")}
            store.observe(lambda kind, seconds: by_kind[kind].observe(seconds))
            self.registry.register(_StoreCollector(store))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. ``route`` is a template, never a path that a client chose."""
        answers = self._answers.get((method, route, status))
        if answers is None:  # looking for it by its labels takes longer than counting
            answers = self._answers[method, route, status] = self._requests.labels(method, route, str(status))
        answers.observe(seconds)

    def reported(self, worker: str, n_epochs: int) -> None:
        """Count epochs that a worker reported."""
        if not n_epochs:
            return
        epochs = self._workers.get(worker)
        if epochs is None:
            is_known = len(self._workers) < MOST_WORKERS
            epochs = self._epochs.labels(worker if is_known else OTHER)
            if is_known:
                self._workers[worker] = epochs
        epochs.inc(n_epochs)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format. Waits for the store."""
        return generate_latest(self.registry)


class _StoreCollector(Collector):
    """Reads the store whenever it is asked, so that all servers on one store say the same."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily("hpsearch_store_up", "1: the store answers")
        try:
            gauges = self._store.gauges()
        except StoreError:
            reachable.add_metric([], 0)
            yield reachable
            return
        reachable.add_metric([], 1)
        yield reachable
        studies = GaugeMetricFamily("hpsearch_studies", "Studies", labels=["state"])
        for state, n in gauges.studies.items():
            studies.add_metric([state], n)
        yield studies
        leases = GaugeMetricFamily("hpsearch_leases", "Trials that workers hold")
        leases.add_metric([], gauges.n_leases)
        yield leases
        held = GaugeMetricFamily("hpsearch_worker_leases", "Trials that a worker holds", labels=["worker"])
        for worker, n in gauges.workers.items():
            held.add_metric([worker], n)
        yield held
        waiting = GaugeMetricFamily("hpsearch_study_waiting", "Trials that could be leased", labels=["study"])
        leased = GaugeMetricFamily("hpsearch_study_leases", "Trials that workers hold", labels=["study"])
        epochs = GaugeMetricFamily("hpsearch_study_epochs", "Epochs trained so far", labels=["study"])
        for study in gauges.open_studies:
            waiting.add_metric([study.name], study.waiting)
            leased.add_metric([study.name], study.leased)
            epochs.add_metric([study.name], study.epochs)
        yield from (waiting, leased, epochs)
