"""A browser logs in with a token and gets a session, which a script cannot read and no other site can use."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from hpsearch.errors import InvalidInput, TooMuch
from hpsearch_api.pages import render
from hpsearch_api.security import Doorkeeper
from hpsearch_api.security.access import COOKIE, SESSION_TTL

router = APIRouter(include_in_schema=False)

MAX_FORM = 10_000


@router.get("/login", response_class=HTMLResponse)
async def login_page(request: Request, next: str = "/") -> HTMLResponse:  # noqa: A002 - the parameter's name in the URL
    """Asks for a token; or says who is logged in."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    return _page(is_open=await doorkeeper.is_open(), access=await doorkeeper.admit(request.headers), place=_own(next))


@router.post("/login", response_class=HTMLResponse)
async def log_in(request: Request) -> Response:
    """Take a token and open a session."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    form = await _form(request)
    place = _own(form.get("next", "/"))
    secret = await doorkeeper.log_in(form.get("token", "").strip())
    if secret is None:
        return _page(is_open=False, access=None, place=place, wrong=True)
    response = RedirectResponse(place, 303)
    response.set_cookie(
        COOKIE,
        secret,
        max_age=int(SESSION_TTL.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    await doorkeeper.log_out(request.headers)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


def _page(*, is_open: bool, access: object, place: str, wrong: bool = False) -> HTMLResponse:
    return render("login.html", status=401 if wrong else 200, is_open=is_open, access=access, place=place, wrong=wrong)


async def _form(request: Request) -> dict[str, str]:
    body = await request.body()
    if len(body) > MAX_FORM:
        raise TooMuch(f"the form has {len(body)} bytes", MAX_FORM, "form")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise InvalidInput("this is no form: send token and next as application/x-www-form-urlencoded") from None
    return {name: values[0] for name, values in fields.items()}


def _own(place: str) -> str:
    """A path of this server; another address, such as ``//elsewhere``, becomes ``/``."""
    is_path = place.startswith("/") and not place.startswith(("//", "/\\"))
    return place if is_path and place.isprintable() and len(place) <= 2000 else "/"
