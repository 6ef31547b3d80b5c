"""A line that is no TOML is named with its place, and hides nothing that comes after it."""

import pytest

from optimizer.audit import check
from optimizer.programs import read
from optimizer.syntax import parse

SMALL_WINS = read("small-wins")


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("a = warm\nb = 1", {"a": "warm", "b": 1}),
        ('a = "warm\nb = 1', {"a": "warm", "b": 1}),
        ("a = \u201cwarm\u201d", {"a": "warm"}),
        ("a = True\nb = 3d\nc = 18:30", {"a": True, "b": "3d", "c": "18:30"}),
        ("a: 3\nb == 4,", {"a": 3, "b": 4}),
        ('a = ["x" "y"]\nb = [x, y]', {"a": ["x", "y"], "b": ["x", "y"]}),
        ('a = ["x", "y"\nb = 1', {"a": ["x", "y"], "b": 1}),
        ('a = [\n"x",\n"y"\nb = 1', {"a": ["x", "y"], "b": 1}),
        ("[a\nb = 1\n[[c]\nd = 2", {"a": {"b": 1}, "c": [{"d": 2}]}),
        ("a = 1\na = 2\nb = 3", {"a": 1, "b": 3}),
        ("[a]\nx = 1\n[a]\ny = 2\n[b]\nz = 3", {"a": {"x": 1}, "b": {"z": 3}}),
        ('a = """x\nb = 2', {"a": "x", "b": 2}),
        ("just words\n= 4\nb = 1", {"b": 1}),
    ],
)
def test_the_rest_is_read_as_it_was_meant(text: str, tables: dict[str, object]) -> None:
    found = parse(text)
    assert found.tables == tables
    assert found.faults
    assert all("at" in problem and mend for problem, mend in found.faults)


def test_what_is_no_text_is_told_so() -> None:
    assert parse("a\0b") == (None, (("is no text", "save it as UTF-8"),))
    assert parse("\ufffd = 1").faults[0] == ("is not UTF-8 (at line 1)", "save it as UTF-8")


def test_a_slip_of_the_pen_hides_no_other_fault() -> None:
    text = SMALL_WINS.replace('currency = "EUR"', "currency = EUR").replace("[exploration]", "[exploration")
    text = text.replace('subject = "One page to go"', 'subject = "Hurry, one page to go').replace("floor = ", "flor = ")
    text = text.replace("cap_per_week = 3", 'cap_per_week = "three"')
    keys = [f.key for f in check(text, source="mine.toml").findings]
    slips = {"exploration.flor", "guardrails.cap_per_week", "messages.saved-basket.encouraging.subject"}
    assert keys.count("TOML") == 3
    assert set(keys) == {"TOML", *slips}
