"""Every error as ``application/problem+json`` (RFC 9457); one table says which of ours has which status."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hpsearch.errors import (
    Conflict,
    Fault,
    HpsearchError,
    InvalidInput,
    InvalidSpec,
    NotFound,
    StoreError,
    TooMany,
    TooMuch,
)

log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[HpsearchError], int], ...] = (
    (InvalidInput, 422),
    (NotFound, 404),
    (Conflict, 409),
    (TooMuch, 413),
    (TooMany, 429),
    (StoreError, 503),
)
"""Error → HTTP status; the first class that matches counts."""


def problem(
    status: int, detail: str, faults: list[Fault] | None = None, *, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A problem document. ``title`` is the status's own phrase."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if faults is not None:
        body["errors"] = [{"loc": fault.loc, "msg": fault.msg} for fault in faults]
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of ours, of FastAPI's validation and of HTTP with a problem (or a page, to a browser)."""
    app.add_exception_handler(HpsearchError, _other)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(Exception, _other)


def answer(request: Request, status: int, detail: str, faults: list[Fault] | None = None) -> Response:
    """A problem document, or to a browser that asks for a page, a page that says the same."""
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
    if wants_page:
        from hpsearch_api.routes.pages import error_page

        return error_page(request, status, HTTPStatus(status).phrase, detail)
    return problem(status, detail, faults)


def of(request: Request, error: Exception) -> Response:
    """The answer to an error of ours, of HTTP, or to one that nobody foresaw."""
    if isinstance(error, HpsearchError):
        return _of_ours(request, error)
    if isinstance(error, HTTPException):
        return _of_http(request, error)
    log.exception("%s %s", request.method, request.url.path, exc_info=error)
    return problem(500, "something went wrong in the server; its log says what")


async def _other(request: Request, error: Exception) -> Response:
    return of(request, error)


def _of_ours(request: Request, error: HpsearchError) -> Response:
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    response = answer(request, status, str(error), error.faults if isinstance(error, InvalidSpec) else None)
    if isinstance(error, TooMany):
        response.headers["Retry-After"] = str(error.retry_seconds)
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = []
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        place = loc[1:] if loc[:1] == ["body"] else loc
        if item["type"] == "unknown_key":
            place.append(item["ctx"]["key"])
        elif item["type"] == "json_invalid":
            place = []
        faults.append(Fault(".".join(place), _sentence(item)))
    return answer(request, 422, "; ".join(str(fault) for fault in faults), faults)


def _sentence(item: dict[str, Any]) -> str:
    if item["type"] == "json_invalid":
        return f"the body is not JSON: {item.get('ctx', {}).get('error', item['msg'])}"
    if isinstance(item.get("input"), bytes):
        return "the body is not JSON: send it as Content-Type: application/json"
    if item["type"] == "extra_forbidden":
        return "there is no such key here"
    value = repr(item.get("input"))
    short = value if len(value) <= 80 else value[:77] + "..."
    return str(item["msg"]) if item["type"] in ("missing", "unknown_key") else f"{item['msg']}, but is {short}"


async def _half_a_character(request: Request, error: Exception) -> Response:
    """A key with half of a surrogate pair, which JSON can say: pydantic cannot even name it in an error."""
    assert isinstance(error, UnicodeEncodeError)
    fault = Fault("", f"the text {error.object[:40]!a} holds half of a surrogate pair, which is no character")
    return answer(request, 422, str(fault), [fault])


def _of_http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 400 and error.__cause__ is not None:  # FastAPI's, for a body that cannot be read
        fault = Fault("", f"the body is not JSON: {_why_not_json(error.__cause__)}")
        return answer(request, 422, str(fault), [fault])
    response = answer(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _why_not_json(cause: BaseException) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deep" if isinstance(cause, RecursionError) else str(cause)
