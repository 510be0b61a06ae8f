"""What the OpenAPI document says of tokens, beside what the routes say of themselves."""

from __future__ import annotations

from typing import Any

from hpsearch_api.security.scopes import ROUTES, Scope

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of `hpsearch token create`. A server without tokens asks for none.",
}


def with_security(document: dict[str, Any]) -> dict[str, Any]:
    """Add to each operation its scope."""
    document.setdefault("components", {})["securitySchemes"] = {"token": _BEARER}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            scope = ROUTES.get(f"{method.upper()} {path}", Scope.ADMIN)
            if scope is Scope.OPEN:
                continue
            operation["security"] = [{"token": []}]
            operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
    return document
