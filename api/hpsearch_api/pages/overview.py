"""The list of studies, filtered and sorted, and several studies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from hpsearch.coordinator import Coordinator
from hpsearch.document import unknown
from hpsearch.errors import InvalidInput
from hpsearch.study import Study, StudyState
from hpsearch_api.memory import Memory
from hpsearch_api.pages.board import MANY
from hpsearch_api.views import study_view

PER_PAGE = 50
MAX_STUDIES = 2000
"""Filters and orders look at the newest so many."""
MAX_COMPARED = 6
SORTS = {"newest": "newest first", "oldest": "oldest first", "name": "name", "state": "state"}
_KEYS = ("q", "state", "tag", "sort")


def listing(coordinator: Coordinator, memory: Memory, query: Mapping[str, str]) -> dict[str, Any]:
    """One page of the studies that a query (``q``, ``state``, ``tag``, ``sort``, ``page``) asks for.

    Raises:
        InvalidInput: an unknown state or order, or a page that is no number.
    """
    chosen = {key: query.get(key, "") for key in _KEYS}
    page = query.get("page") or "1"
    if not (page.isascii() and page.isdigit() and 0 < int(page[:9]) == int(page)):
        raise InvalidInput(f"page {page!r} is no number from 1")
    every = coordinator.store.studies(limit=MAX_STUDIES).items
    matching = _sorted([study for study in every if _matches(study, chosen)], chosen["sort"] or "newest")
    first = (int(page) - 1) * PER_PAGE
    return {
        "studies": [overview(coordinator, memory, study) for study in matching[first : first + PER_PAGE]],
        "chosen": chosen,
        "n_studies": len(every),
        "n_matching": len(matching),
        "tags": sorted({tag for study in every for tag in study.spec.tags}),
        "states": [state.value for state in StudyState],
        "sorts": SORTS,
        "earlier": _address(chosen, int(page) - 1) if int(page) > 1 else None,
        "later": _address(chosen, int(page) + 1) if first + PER_PAGE < len(matching) else None,
        "here": _address(chosen, int(page)),
    }


def overview(coordinator: Coordinator, memory: Memory, study: Study) -> dict[str, Any]:
    """A study's document with its last activity; its flags only where they are known or quick to tell."""
    quick = study.next_number <= MANY or memory.has(("findings", study.id))
    view = study_view(coordinator, study, flags=quick)
    last = coordinator.store.events(study.id, after=max(view["last_event"] - 1, 0), limit=1)
    flags = [flag for flag in view["flags"] if flag["acknowledged"] is None]
    return {**view, "last_activity": last[-1].at.isoformat() if last else view["created_at"], "flags": flags}


def _matches(study: Study, chosen: Mapping[str, str]) -> bool:
    words = f"{study.name} {study.spec.notes} {' '.join(study.spec.tags)}".lower()
    if chosen["state"] and chosen["state"] not in list(StudyState):
        raise InvalidInput(unknown(chosen["state"], [state.value for state in StudyState], what="state"))
    return (
        all(word in words for word in chosen["q"].lower().split())
        and chosen["state"] in ("", study.state)
        and (not chosen["tag"] or chosen["tag"] in study.spec.tags)
    )


def _sorted(studies: list[Study], sort: str) -> list[Study]:
    if sort not in SORTS:
        raise InvalidInput(unknown(sort, list(SORTS), what="order"))
    if sort == "name":
        return sorted(studies, key=lambda study: study.name)
    if sort == "state":
        return sorted(studies, key=lambda study: list(StudyState).index(study.state))
    return studies if sort == "newest" else studies[::-1]


def _address(chosen: Mapping[str, str], page: int) -> str:
    query = {name: value for name, value in chosen.items() if value} | ({"page": str(page)} if page > 1 else {})
    return "?" + urlencode(query)


def compared(coordinator: Coordinator, memory: Memory, names: Sequence[str]) -> dict[str, Any]:
    """Studies side by side: how each stands, and only what differs of their documents.

    Raises:
        InvalidInput: fewer than two, or more than :data:`MAX_COMPARED`.
    """
    names = list(dict.fromkeys(names))
    if not 2 <= len(names) <= MAX_COMPARED:
        raise InvalidInput(f"{len(names)} studies cannot be compared: choose 2 to {MAX_COMPARED}")
    studies = [overview(coordinator, memory, coordinator.store.study(name)) for name in names]
    documents = [_document(coordinator.store.study(name)) for name in names]
    keys = dict.fromkeys(key for document in documents for key in document if key not in ("name", "notes", "tags"))
    rows = [(key, [document.get(key) for document in documents]) for key in keys]
    params = dict.fromkeys(name for study in studies if study["best"] for name in study["best"]["params"])
    return {
        "studies": studies,
        "differing": [(key, values) for key, values in rows if any(value != values[0] for value in values)],
        "params": list(params),
    }


def _document(study: Study) -> dict[str, Any]:
    """What a study's document says that is not a default."""
    return flattened(study.spec.model_dump(mode="json", exclude_defaults=True))


def flattened(document: Any, path: str = "") -> dict[str, Any]:
    """A nested document by dotted paths; a parameter's range and a list of plain values stay together."""
    if isinstance(document, dict) and document:
        parts = [flattened(value, f"{path}.{key}" if path else key) for key, value in document.items()]
    elif isinstance(document, list) and any(isinstance(item, dict | list) for item in document):
        parts = [flattened(value, f"{path}.{i}") for i, value in enumerate(document)]
    else:
        return {path: document}
    return {key: value for part in parts for key, value in part.items()}
