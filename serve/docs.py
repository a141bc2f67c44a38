"""``/docs``: the OpenAPI document as one plain page. No script and nothing from elsewhere, so it works offline."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, Response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI
    from starlette.requests import Request

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "h2{border-top:1px solid #ddd;padding-top:1rem}code,pre{font:13px/1.5 ui-monospace,monospace;background:#f4f4f2}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}"
    "b.method{display:inline-block;min-width:3.5rem}pre{padding:.8rem;overflow:auto}"
)


def install(app: FastAPI) -> None:
    """Add the page to ``app``; it is rendered on first use and kept."""
    page: list[str] = []

    async def docs(request: Request) -> Response:  # noqa: ARG001 - every handler takes the request
        if not page:
            page.append(render(app.openapi()))
        return HTMLResponse(page[0], headers={"Content-Security-Policy": POLICY})

    app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)


def render(schema: dict[str, Any]) -> str:
    """Return the HTML page for an OpenAPI 3.1 document."""
    info = schema["info"]
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>",
            '<p>The same for programs: <a href="openapi.json">openapi.json</a></p>',
            *_operations(schema),
            "<h2>Schemas</h2>",
            *_schemas(schema),
        )
    )


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f'<h2><b class="method">{escape(method.upper())}</b> <code>{escape(path)}</code></h2>'
            summary, description = escape(operation.get("summary", "")), escape(operation.get("description", ""))
            yield f"<p><strong>{summary}.</strong> {description}</p>"
            rows = [
                (f"{p['name']} ({p['in']})", _kind(p["schema"]), p.get("description", ""))
                for p in operation.get("parameters", ())
            ]
            yield _table("Parameters", rows)
            body = operation.get("requestBody", {})
            yield _table("Body", [(kind, _kind(c["schema"]), "") for kind, c in body.get("content", {}).items()])
            yield _table(
                "Answers",
                [
                    (status, ", ".join(response.get("content", {})), response.get("description", ""))
                    for status, response in operation["responses"].items()
                ],
            )


def _schemas(schema: dict[str, Any]) -> Iterator[str]:
    for name, model in schema.get("components", {}).get("schemas", {}).items():
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(model.get("description", ""))}</p>'
        rows = [(key, _kind(value), value.get("description", "")) for key, value in model.get("properties", {}).items()]
        yield _table("", rows)


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(f"<tr><td><code>{escape(a)}</code><td>{escape(b)}<td>{escape(c)}" for a, b, c in rows)
    return f"<table><tr><th colspan=3>{escape(title)}{lines}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_kind(choice) for choice in schema[key])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    words = [str(schema.get("type", "any")), *(str(schema[key]) for key in ("format",) if key in schema)]
    if "minimum" in schema and "maximum" in schema:
        words.append(f"{schema['minimum']} to {schema['maximum']}")
    if "default" in schema:
        words.append(f"default {str(schema['default']).lower()}")
    return ", ".join(words)
