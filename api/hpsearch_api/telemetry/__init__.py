"""How the server tells how it is: metrics for Prometheus, a line of log for what was done, traces."""

from hpsearch_api.telemetry.metrics import Meters
from hpsearch_api.telemetry.middleware import Telemetry

__all__ = ["Meters", "Telemetry"]
