"""What an editor is told of a program is what the program's reader does; and a new program is a good one."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.audit import check
from optimizer.program import Clock, Duration, Guardrails, Program, Span
from optimizer.programs import SHIPPED, read
from optimizer.schema import CLOCK, DURATION, KEYS, SPAN, new, reference, schema

GUIDE = Path(__file__).parents[2] / "docs" / "programs.md"
SCHEMA = jsonschema.Draft202012Validator(schema())


def errors(text: str) -> list[str]:
    return [e.json_path for e in SCHEMA.iter_errors(tomllib.loads(text))]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("text", [*map(read, SHIPPED), new("my-program")], ids=[*SHIPPED, "new"])
def test_a_shipped_program_and_a_new_one_fit_the_schema(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    ("there", "planted", "where"),
    [
        ("cap_per_day = 1", "cap_per_dy = 1", "$.guardrails"),
        ('goal = "premium_upgrade"', "", "$"),
        ("cost = 4.0", "cost = -4.0", "$.incentives[8].cost"),
        ('kind = "macro"', 'kind = "goal"', "$.events[9].kind"),
        ('window = "1d"', 'window = "one day"', "$.events[0].window"),
        ('clock = "08:30"', 'clock = "8:30"', "$.timings[2].clock"),
        ("floor = 0.05", "floor = 0", "$.exploration.floor"),
        ('name = "warm"', 'name = "Warm"', "$.tones[0].name"),
        ('currency = "EUR"', 'currency = "EUR"\nversion = "1"', "$"),
        ('action = "Show me how"', 'action = ""', "$.messages['coach-tip'].encouraging.call_to_action"),
    ],
)
def test_an_editor_underlines_what_the_reader_refuses(there: str, planted: str, where: str) -> None:
    text = read("fitness-coaching")
    assert there in text
    changed = text.replace(there, planted, 1)
    assert errors(changed) == [where]
    assert not check(changed, source="mine.toml").fit


def structs(definitions: dict[str, Any]) -> dict[str, type[msgspec.Struct]]:
    return {kind.__name__: kind for kind in KEYS if kind.__name__ in definitions}


def test_every_key_is_explained_and_nothing_else_is() -> None:
    definitions = schema()["$defs"]
    assert set(structs(definitions)) == set(definitions)
    for name, kind in structs(definitions).items():
        declared = {f.name for f in msgspec.structs.fields(kind)} - ({"version"} if kind is Program else set())
        assert set(KEYS[kind]) == declared, name
        assert {k: v["description"] for k, v in definitions[name]["properties"].items()} == KEYS[kind]
        assert set(definitions[name].get("required", [])) == {
            f.name for f in msgspec.structs.fields(kind) if f.required
        }


def test_the_defaults_that_an_editor_shows_are_those_in_force() -> None:
    shown = schema()["$defs"]["Guardrails"]["properties"]
    defaults = Guardrails()
    for name, key in shown.items():
        if "default" in key:
            value: Any = getattr(defaults, name)
            kinds: dict[type, Any] = {kind: kind.parse for kind in (Duration, Span, Clock)}
            assert kinds.get(type(value), lambda x: x)(key["default"]) == value, name
    assert shown["cooldown"]["default"] == "12h"
    assert shown["quiet_from"]["default"] == "21:00"


@given(
    st.text("0123456789.:mhdw", max_size=6)
    | st.from_regex(DURATION, fullmatch=True)
    | st.from_regex(CLOCK, fullmatch=True)
)
def test_durations_and_times_of_day_are_what_the_reader_takes_for_them(text: str) -> None:
    for pattern, kind in ((DURATION, Duration), (SPAN, Span), (CLOCK, Clock)):
        try:
            kind.parse(text)
        except ValueError:
            assert not re.fullmatch(pattern, text)
        else:
            assert re.fullmatch(pattern, text)


def test_a_new_program_has_its_name_and_nothing_to_be_said() -> None:
    found = check(new("my-shop"), source="my-shop.toml")
    assert found.findings == ()
    program = Program.parse(new("my-shop"), source="my-shop.toml")
    assert (program.name, program.title) == ("my-shop", "My shop")
    assert program.rungs_below.any()
    assert (program.comebacks > 0).any()
    assert all(stage.expects for stage in program.stages)


@pytest.mark.parametrize("name", ["", "My shop", "café", "-x", "x" * 65, 'a"b'])
def test_a_new_program_needs_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name: use small letters"):
        new(name)


def test_the_guide_lists_every_key_as_it_is() -> None:
    assert GUIDE.read_text(encoding="utf-8").partition("<!-- reference -->\n\n")[2] == reference()


def test_the_guide_names_every_program_that_ships() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert [name for name in SHIPPED if f"| `{name}` |" not in text] == []
