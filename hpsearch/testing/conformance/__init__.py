"""The contract of a store as tests. Subclass :class:`StoreConformance`, override its fixture ``store``, run pytest."""

from hpsearch.testing.conformance.care import Care
from hpsearch.testing.conformance.leases import Leases
from hpsearch.testing.conformance.opening import Opening
from hpsearch.testing.conformance.results import Results
from hpsearch.testing.conformance.rungs import Rungs
from hpsearch.testing.conformance.studies import Studies
from hpsearch.testing.conformance.threads import Threads
from hpsearch.testing.conformance.trials import Trials


class StoreConformance(Studies, Trials, Leases, Results, Care, Opening, Rungs, Threads):
    """Every sentence of :class:`hpsearch.store.Store`; a subclass's fixture ``store`` gives a fresh, empty store."""


__all__ = ["StoreConformance"]
