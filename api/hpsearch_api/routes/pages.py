"""The pages for people, rendered here; their scripts fetch the ``parts`` again when something has changed."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from hpsearch.errors import NotFound
from hpsearch.study import Study
from hpsearch.trial import TrialState
from hpsearch.verdicts import NAMES
from hpsearch_api.deps import TheCoordinator, TheMemory, TheStudy, check_text
from hpsearch_api.figures import KINDS, shown_kinds
from hpsearch_api.pages import board, overview, part, render, starting
from hpsearch_api.pages.crew import crew
from hpsearch_api.pages.files import static_file
from hpsearch_api.pages.neighbours import neighbours
from hpsearch_api.pages.table import PAGE_SIZES, read_table
from hpsearch_api.routes.figures import known_data
from hpsearch_api.views import study_view, trial_detail, trial_view

router = APIRouter(include_in_schema=False)

KEEP_FOR_GOOD = "public, max-age=31536000, immutable"
METHODS = ["GET", "HEAD"]


@router.get("/", response_class=HTMLResponse)
def studies_page(request: Request, coordinator: TheCoordinator, memory: TheMemory) -> HTMLResponse:
    """Every study, the newest first if the address does not say."""
    return render("studies.html", **overview.listing(coordinator, memory, _query(request)))


@router.get("/parts/studies", response_class=HTMLResponse)
def studies_part(request: Request, coordinator: TheCoordinator, memory: TheMemory) -> HTMLResponse:
    """The list of studies alone."""
    return part("studies.html", **overview.listing(coordinator, memory, _query(request)))


@router.get("/compare", response_class=HTMLResponse)
def compare_page(
    coordinator: TheCoordinator, memory: TheMemory, study: Annotated[list[str] | None, Query()] = None
) -> HTMLResponse:
    """Studies side by side."""
    names = [check_text(name, "query.study") for name in study or []]
    query = urlencode({"study": names}, doseq=True)
    return render("compare.html", figures=True, query=query, **overview.compared(coordinator, memory, names))


@router.get("/new", response_class=HTMLResponse)
def new_page(coordinator: TheCoordinator, source: Annotated[str | None, Query(alias="from")] = None) -> HTMLResponse:
    """An editor for a new study, empty, with an example, or with a copy of another study."""
    text = ""
    if source is not None:
        text = starting.clone(coordinator.store.study(check_text(source, "query.from")))
    return render("new.html", source=source, text=text, examples=starting.examples())


@router.get("/new/schema.json")
def schema() -> dict[str, Any]:
    """What the editor completes from."""
    return starting.schema()


@router.get("/studies/{name}", response_class=HTMLResponse)
def study_page(request: Request, coordinator: TheCoordinator, memory: TheMemory, study: TheStudy) -> HTMLResponse:
    """One study: what it found, how far it is, its figures, its trials."""
    shown = _board(coordinator, memory, study, wait=False)
    table = _trials(request, coordinator, study, shown["study"])
    kinds = [KINDS[kind] for kind in shown_kinds(study.spec)]
    groups = [(group, list(found)) for group, found in groupby(kinds, key=lambda kind: kind.group)]
    return render("study.html", figures=True, groups=groups, **(shown | table))


@router.get("/studies/{name}/figures/{kind}", response_class=HTMLResponse)
def figure_page(request: Request, coordinator: TheCoordinator, study: TheStudy, kind: str) -> HTMLResponse:
    """One figure alone, as its address says."""
    if kind not in KINDS:
        raise NotFound("figure", kind)
    view = study_view(coordinator, study, flags=False)
    return render("figure.html", figures=True, study=view, kind=KINDS[kind], chosen=dict(request.query_params))


@router.get("/studies/{name}/parts/summary", response_class=HTMLResponse)
def summary_part(coordinator: TheCoordinator, memory: TheMemory, study: TheStudy) -> HTMLResponse:
    """Headline, progress, flags, proposals, stages, analysis."""
    return part("summary.html", **_board(coordinator, memory, study, wait=True))


@router.get("/studies/{name}/parts/trials", response_class=HTMLResponse)
def trials_part(request: Request, coordinator: TheCoordinator, study: TheStudy) -> HTMLResponse:
    """One page of the table of trials."""
    return part("trials.html", **_trials(request, coordinator, study, study_view(coordinator, study, flags=False)))


@router.get("/studies/{name}/trials/{number}", response_class=HTMLResponse)
def trial_page(coordinator: TheCoordinator, memory: TheMemory, study: TheStudy, number: str) -> HTMLResponse:
    """One trial: its params and their place in the range, its curves, every try at it."""
    return render("trial.html", figures=True, **_trial(coordinator, memory, study, number))


@router.get("/studies/{name}/trials/{number}/parts/summary", response_class=HTMLResponse)
def trial_part(coordinator: TheCoordinator, memory: TheMemory, study: TheStudy, number: str) -> HTMLResponse:
    """One trial without its curves."""
    return part("trial.html", **_trial(coordinator, memory, study, number))


@router.get("/workers", response_class=HTMLResponse)
def workers_page(coordinator: TheCoordinator) -> HTMLResponse:
    """Who trains."""
    return render("workers.html", workers=crew(coordinator))


@router.get("/parts/workers", response_class=HTMLResponse)
def workers_part(coordinator: TheCoordinator) -> HTMLResponse:
    """The list of workers alone."""
    return part("workers.html", workers=crew(coordinator))


@router.api_route("/static/{path:path}", methods=METHODS)
def static(request: Request, path: str) -> Response:
    """Our own scripts, styles and icon, and plotly.js: 1.8 MB, a third of that where the browser takes gzip."""
    file = static_file(path)
    if file is None:
        raise NotFound("file", path)
    headers = _caching(request) | {"ETag": f'"{file.digest}"', "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    packed = "gzip" in request.headers.get("accept-encoding", "")
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packed else file.content, media_type=file.media_type, headers=headers)


def error_page(request: Request, status: int, title: str, detail: str) -> Response:  # noqa: ARG001 - a seam
    """A page that says what went wrong and leads back."""
    return render("error.html", status=status, code=status, title=title, detail=detail)


def _caching(request: Request) -> dict[str, str]:
    """Addresses with a version are kept for good; the others are asked for again, and mostly answered with 304."""
    return {"Cache-Control": KEEP_FOR_GOOD if "v" in request.query_params else "no-cache"}


def _board(coordinator: TheCoordinator, memory: TheMemory, study: Study, *, wait: bool) -> dict[str, Any]:
    return {**board.board(coordinator, memory, study, wait=wait), "kinds": shown_kinds(study.spec)}


def _query(request: Request) -> dict[str, str]:
    return {name: check_text(text, f"query.{name}") for name, text in request.query_params.items()}


def _trials(request: Request, coordinator: TheCoordinator, study: Study, view: dict[str, Any]) -> dict[str, Any]:
    query = _query(request)
    ranges = [check_text(text, "query.within") for text in request.query_params.getlist("within")]
    choices = [check_text(text, "query.among") for text in request.query_params.getlist("among")]
    table = read_table(study.spec, query, ranges, choices)
    page = coordinator.store.trials(study.id, table.query())
    return {
        "study": view,
        "table": table,
        "trials": [trial_view(trial) for trial in page.items],
        "next": page.next,
        "matching": table.matching(view["stages"]),
        "page_sizes": PAGE_SIZES,
        "states": [state.value for state in TrialState],
        "verdicts": NAMES,
    }


def _trial(coordinator: TheCoordinator, memory: TheMemory, study: Study, number: str) -> dict[str, Any]:
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise NotFound("trial", number)
    trial = coordinator.store.trial(study.id, int(number))
    view = trial_detail(trial, coordinator.store.attempts(study.id, trial.number))
    above = study_view(coordinator, study, flags=False)
    space = next((s["space"] for s in above["stages"] if s["name"] == trial.stage), above["spec"]["space"])
    data = known_data(coordinator, memory, study)
    of_layers = [KINDS[kind] for kind in shown_kinds(study.spec) if kind in ("layers", "activations")]
    near = neighbours(data.space, trial, data.trials)
    log = coordinator.store.logs.of_trial(study.id, trial.number)
    return {"study": above, "trial": view, "space": space, "near": near, "of_layers": of_layers, "log": log}
