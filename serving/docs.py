"""How is the service read about? The OpenAPI document, and a page of it that needs no script and no other server."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.problems import MEDIA_TYPE

Document = dict[str, Any]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f23 }
h2 { margin-top: 2.5rem; border-top: 1px solid #d0d7de; padding-top: 1rem }
code, pre { font-family: ui-monospace, monospace }
pre { background: #f6f8fa; padding: .75rem; overflow-x: auto } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #eaeef2 }
.method { color: #0550ae } nav a { margin-right: 1rem }
"""


def openapi(app: FastAPI) -> Document:
    """Return the OpenAPI document of an app; problems have their own media type."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        for _, _, call in _calls(document):
            for status, response in call["responses"].items():
                if status.startswith(("4", "5")) and "ProblemDocument" in json.dumps(response):
                    response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
        app.openapi_schema = document
    return app.openapi_schema


def page(document: Document) -> str:
    """Return the document as a page that people read."""
    calls = list(_calls(document))
    links = "".join(f'<a href="#{escape(call["operationId"])}">{escape(path)}</a> ' for path, _, call in calls)
    sections = "".join(_section(document, path, method, call) for path, method, call in calls)
    title, about = escape(document["info"]["title"]), escape(document["info"]["description"])
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>"
        f'<body><h1>{title}</h1><p>{about} As data: <a href="/openapi.json">openapi.json</a>.</p><nav>{links}</nav>'
        f"{sections}</body></html>"
    )


def _calls(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            yield path, method, call


def _section(document: Document, path: str, method: str, call: Document) -> str:
    body = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    name = escape(call["operationId"])
    parts = [
        f'<h2 id="{name}"><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        f"<p>{escape(call.get('description', ''))}</p>",
    ]
    if rows := [
        _row(p["name"], p["schema"], p.get("description", ""), p["required"]) for p in call.get("parameters", ())
    ]:
        parts.append(f"<h3>Parameters</h3>{_table(rows)}")
    if body is not None:
        parts.append(f"<h3>Body</h3>{_fields(document, body)}{_example(document, path, method, body)}")
    for status, response in call["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        fields = _fields(document, schema) if schema else ""
        parts.append(f"<h3>{escape(status)}</h3><p>{escape(response.get('description', ''))}</p>{fields}")
    return "".join(parts)


def _fields(document: Document, schema: Mapping[str, Any]) -> str:
    model = _model(document, schema)
    required = model.get("required", ())
    return _table([_row(n, s, s.get("description", ""), n in required) for n, s in model.get("properties", {}).items()])


def _model(document: Document, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references to the first model."""
    if "$ref" in schema:
        return _model(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    return _model(document, schema["anyOf"][0]) if "anyOf" in schema else schema


def _row(name: str, schema: Mapping[str, Any], said: str, required: bool) -> tuple[str, str, str, str]:  # noqa: FBT001
    return name, _kind(schema), "yes" if required else "", said


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(s) for s in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or "anything")


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("name", "kind", "required", ""))
    lines = "".join(
        f"<tr><td><code>{escape(n)}</code></td>{''.join(f'<td>{escape(c)}</td>' for c in r)}</tr>" for n, *r in rows
    )
    return f"<table><tr>{head}</tr>{lines}</table>" if rows else ""


def _example(document: Document, path: str, method: str, schema: Mapping[str, Any]) -> str:
    for example in _model(document, schema).get("examples", ()):
        sent = json.dumps(example)
        text = f"curl -X {method.upper()} http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d '{sent}'"
        return f"<pre>{escape(text)}</pre>"
    return ""
