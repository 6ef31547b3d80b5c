"""How is the service read about? The OpenAPI document, and a page of it that needs no script and no other server."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.examples import ANSWERS, NOT_READY, REQUESTS
from serving.problems import BASE, KINDS, MEDIA_TYPE, example

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
        _name_problems(document)
        for _, _, call in _calls(document):
            for status, response in call["responses"].items():
                _complete(status, response)
            for content in call.get("requestBody", {}).get("content", {}).values():
                _exemplify(content, REQUESTS)
        app.openapi_schema = document
    return app.openapi_schema


def _name_problems(document: Document) -> None:
    """Say in the problem's model which types there are."""
    kinds = document["components"]["schemas"]["ProblemDocument"]["properties"]["type"]
    kinds["enum"] = [f"{BASE}{kind}" for kind in KINDS]


def _complete(status: str, response: Document) -> None:
    """Give an answer its media type and its examples: of a problem, one for each type of that status."""
    if status.startswith(("4", "5")) and "ProblemDocument" in json.dumps(response):
        kinds = {k: {"summary": v.title, "value": example(k)} for k, v in KINDS.items() if v.status == int(status)}
        model = next(content for content in response["content"].values() if content)
        response["content"] = {MEDIA_TYPE: {**model, "examples": kinds}}
    elif "application/json" in response.get("content", {}):
        _exemplify(response["content"]["application/json"], ANSWERS)
        if status == "503":
            response["content"]["application/json"]["example"] = NOT_READY


def _exemplify(content: Document, examples: Mapping[str, Any]) -> None:
    """Put the example of its model beside a schema that refers to one."""
    schema = content.get("schema", {})
    reference = schema.get("$ref") or next((s["$ref"] for s in schema.get("anyOf", ()) if "$ref" in s), "")
    if (name := reference.rpartition("/")[2]) in examples:
        content["example"] = examples[name]


def page(document: Document) -> str:
    """Return the document as a page that people read."""
    calls = list(_calls(document))
    links = "".join(f'<a href="#{escape(call["operationId"])}">{escape(path)}</a> ' for path, _, call in calls)
    links += '<a href="#problems">problems</a>'
    sections = "".join(_section(document, path, method, call) for path, method, call in calls)
    title, about = escape(document["info"]["title"]), escape(document["info"]["description"])
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>"
        f'<body><h1>{title}</h1><p>{about} As data: <a href="/openapi.json">openapi.json</a>.</p><nav>{links}</nav>'
        f"{sections}{_problems()}</body></html>"
    )


def _problems() -> str:
    """Return the part of the page on what can go wrong."""
    rows = [
        f'<tr id="problem-{kind}"><td><code>{BASE}{kind}</code></td><td>{known.status}</td>'
        f"<td>{escape(known.title)}</td><td>{escape(known.mend)}</td></tr>"
        for kind, known in KINDS.items()
    ]
    shown = json.dumps(example("invalid-request"), indent=2)
    head = "".join(f"<th>{h}</th>" for h in ("type", "status", "what it is", "what to do"))
    return (
        "<h2 id='problems'>Problems</h2><p>Whatever is refused or fails is answered as a problem document (RFC 9457),"
        f" {MEDIA_TYPE}. Its type says which kind it is:</p><table><tr>{head}</tr>{''.join(rows)}</table>"
        f"<pre>{escape(shown)}</pre>"
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
        parts.append(f"<h3>Body</h3>{_fields(document, body)}")
    parts.append(_request(path, method, call))
    refused = []
    for status, response in call["responses"].items():
        content = response.get("content", {})
        if MEDIA_TYPE in content:
            refused.append(f"<li>{escape(status)}: {_named(content[MEDIA_TYPE].get('examples', {}))}</li>")
            continue
        schema = content.get("application/json", {}).get("schema")
        fields = _fields(document, schema) if schema else ""
        answer = content.get("application/json", {}).get("example")
        shown = f"<pre>{escape(json.dumps(answer, indent=2))}</pre>" if answer is not None else ""
        parts.append(f"<h3>{escape(status)}</h3><p>{escape(response.get('description', ''))}</p>{fields}{shown}")
    if refused:
        parts.append(f"<details><summary>When it is refused</summary><ul>{''.join(refused)}</ul></details>")
    return "".join(parts)


def _named(kinds: Mapping[str, Any]) -> str:
    return ", ".join(f'<a href="#problem-{k}">{escape(v["summary"].lower())}</a>' for k, v in kinds.items())


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


def _request(path: str, method: str, call: Document) -> str:
    """Return the call as it is typed."""
    sent = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    for name, value in _IN_PATHS.items():
        path = path.replace(f"{{{name}}}", value)
    asked = [p["name"] for p in call.get("parameters", ()) if p["in"] == "query" and p["required"]]
    query = "&".join(f"{name}={_IN_QUERIES.get(name, '...')}" for name in asked)
    url = f"http://127.0.0.1:8000{path}" + (f"?{query}" if query else "")
    words = ["curl"] + ([f"-X {method.upper()}"] if method != "get" else []) + [f"'{url}'"]
    if sent is not None:
        words.append(f"-H 'Content-Type: application/json' \\\n  -d '{json.dumps(sent)}'")
    return f"<pre>{escape(' '.join(words))}</pre>"


_IN_PATHS = {"customer_id": "c-42", "decision_id": "mail-2026-11-22-42", "name": "fitness-coaching"}
_IN_QUERIES = {"program": "fitness-coaching", "customer_id": "c-42"}
