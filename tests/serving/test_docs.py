"""What the service says of itself: the OpenAPI document with its examples, the page, and the curl page, run."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving import docs, problems, schemas
from serving.app import create_app
from serving.examples import ANSWERS, REQUESTS
from serving.problems import BASE, KINDS, MEDIA_TYPE
from serving.settings import Settings
from tests.e2e.running import served

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return docs.openapi(create_app(Settings(home=tmp_path_factory.mktemp("home"), redis_url="unix:///nowhere")))


def calls(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            yield f"{method.upper()} {path}", call


@pytest.mark.parametrize("name", [*REQUESTS, *ANSWERS])
def test_an_example_is_what_its_model_takes(name: str) -> None:
    model, example = getattr(schemas, name), {**REQUESTS, **ANSWERS}[name]
    if hasattr(model, "read"):
        model.read(json.dumps(example).encode())
    else:
        assert set(model.model_validate(example).model_dump(exclude_unset=True)) == set(example)


def test_every_call_has_examples_of_what_is_sent_and_answered(document: dict[str, Any]) -> None:
    for name, call in calls(document):
        for content in call.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, name
        for status, response in call["responses"].items():
            if "application/json" in response.get("content", {}):
                assert "example" in response["content"]["application/json"], (name, status)


def test_every_problem_has_a_type_of_its_own_with_an_example(document: dict[str, Any]) -> None:
    kinds = document["components"]["schemas"]["ProblemDocument"]["properties"]["type"]["enum"]
    assert kinds == [f"{BASE}{kind}" for kind in KINDS]
    shown = set()
    for name, call in calls(document):
        for status, response in call["responses"].items():
            if not status.startswith(("4", "5")) or name == "GET /readyz":
                continue
            examples = response["content"][MEDIA_TYPE]["examples"]
            assert examples, (name, status)
            for kind, example in examples.items():
                schemas.ProblemDocument.model_validate(example["value"])
                assert (example["value"]["type"], example["value"]["status"]) == (f"{BASE}{kind}", int(status))
                shown.add(kind)
    assert set(KINDS) - shown == {"method-not-allowed", "request-refused"}  # of no call by itself


def test_every_problem_that_is_raised_is_of_a_known_type() -> None:
    """Read from the source: the second word of every `ProblemError(status, "kind", ...)`."""
    text = "".join(f.read_text() for f in sorted((ROOT / "serving").glob("*.py")) if f.name != "client.py")
    raised = set(re.findall(r'ProblemError\(\s*\d{3},\s*"([a-z-]+)"', text))
    assert len(raised) >= 10
    assert raised <= set(KINDS)
    with pytest.raises(KeyError):
        problems.ProblemError(400, "made-up", "").document()


def test_the_page_shows_calls_problems_and_no_script(document: dict[str, Any]) -> None:
    page = docs.page(document)
    for kind in KINDS:
        assert f"{BASE}{kind}" in page
    for name, _ in calls(document):
        method, _, path = name.partition(" ")
        assert f"{method}</span> <code>{path.replace('&', '&amp;')}</code>" in page
    assert "<script" not in page
    assert page.count("<table>") == page.count("</table>")


def test_the_curl_page_works_as_written(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "curl.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 12
    with served(tmp_path) as url:
        answers = [_run(block, url=url, home=tmp_path) for block in blocks]
    said = "\n".join(answers)
    for words in (
        '"decision_id":"mail-1"',
        '"accepted":2',
        '"deliver":',
        '"blocked":',
        '"ready":true',
        "nudge_decisions",
    ):
        assert words in said, words
    refused = msgspec.json.decode(next(a for a in answers if '"type"' in a))
    assert refused["type"] == f"{BASE}invalid-request"


def _run(block: str, *, url: str, home: Path) -> str:
    script = block.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(["bash", "-euc", script], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout
