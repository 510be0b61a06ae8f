"""Who may do what: tokens and sessions, the scope that each route needs, and limits."""

from hpsearch_api.security.access import Access, Doorkeeper
from hpsearch_api.security.guard import Guard
from hpsearch_api.security.limits import Limits
from hpsearch_api.security.scopes import Scope

__all__ = ["Access", "Doorkeeper", "Guard", "Limits", "Scope"]
