"""The journey as a page: whole, without outside help, honest about what it rests on, and nothing on top of another."""

import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from optimizer.events import Outcome
from optimizer.program import DAY, Program
from optimizer.programs import SHIPPED, read
from optimizer.values import Happened, collect
from serving.curves import CARD, TALL, curves, layout, lines
from serving.journey_map import journey_map, lived
from tests.small_program import NOON, TOML, small
from training import events

PROGRAM = small()
PROGRAMS = {name: Program.parse(read(name), source=f"{name}.toml") for name in SHIPPED}


class Read(HTMLParser):
    """Text of a page, its tags, and that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(w for w in self.words if w)


def log_of(days: int = 20) -> list[Happened]:
    people = [f"c{i}" for i in range(40)]
    did = [Happened(who, NOON + DAY * (i % 7), "step") for i, who in enumerate(people)]
    return did + [Happened(who, NOON + DAY * 9, "upgraded") for who in people[:15]] + [Happened("z", NOON)]


@pytest.mark.parametrize("program", [*PROGRAMS.values(), PROGRAM], ids=[*PROGRAMS, "small"])
def test_a_map_is_a_whole_page_that_needs_nothing_from_outside(program: Program) -> None:
    page = journey_map(program)
    text = Read(page).text
    assert all(stage.title in text for stage in program.stages)
    assert "nan" not in re.findall(r"\w+", page.lower())
    assert not re.search(r"(https?:)?//|<script|@import|url\((?!#)", page)
    assert len(page) < 200_000


def test_a_map_says_what_it_rests_on() -> None:
    assert "Nothing is known yet" in Read(journey_map(PROGRAM)).text
    assert "a guess, without ranges" in Read(journey_map(PROGRAMS["small-wins"])).text
    measured = Read(journey_map(PROGRAM, collect(PROGRAM, log_of(), until=NOON + 20 * DAY))).text
    assert "days of 41 customers" in measured
    assert "not what a nudge for it would bring" in measured
    assert re.search(r"€[\d.]+ [\d.]+ to [\d.]+", measured)


def test_a_stage_that_nobody_was_seen_in_has_no_number() -> None:
    short = [Happened(f"c{i}", NOON + DAY, "step") for i in range(9)]
    text = Read(journey_map(PROGRAM, collect(PROGRAM, short, until=NOON + 4 * DAY))).text
    assert text.count("nobody seen here") == 2  # `quiet`, on the map and in the table
    assert "Active" in text


def test_what_is_written_in_a_program_stays_text() -> None:
    text = TOML.replace('title = "New"', "title = '<script>alert(1)</script>'")
    page = journey_map(Program.parse(text, source="small.toml"))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("program", [*PROGRAMS.values(), PROGRAM], ids=[*PROGRAMS, "small"])
def test_no_card_lies_on_another_or_leaves_the_map(program: Program) -> None:
    for seed in range(5):
        values = np.random.Generator(np.random.Philox(key=seed)).normal(size=len(program.stages))
        spots, width, height = layout(program, values)
        for spot in spots:
            assert 0 <= spot.x <= width - CARD
            assert 0 <= spot.y <= height - TALL
        for one, other in combinations(spots, 2):
            assert abs(one.x - other.x) >= CARD or abs(one.y - other.y) >= TALL


def test_a_stage_that_is_worth_more_stands_higher_and_who_lapses_falls() -> None:
    program = PROGRAMS["fitness-coaching"]
    spots = layout(program, np.arange(6.0)).spots
    ahead = dict(zip(program.stage_index, spots, strict=True))
    assert ahead["advocate"].y < ahead["experience"].y < ahead["aware"].y < ahead["at-risk"].y
    assert ahead["aware"].x < ahead["consider"].x < ahead["advocate"].x
    assert ahead["at-risk"].lower
    assert ahead["at-risk"].column == ahead["experience"].column


def test_every_way_is_drawn_once_and_every_label_is_on_the_map() -> None:
    for program in PROGRAMS.values():
        spots, width, height = layout(program, np.full(len(program.stages), np.nan))
        drawn = list(curves(lines(program), spots))
        assert sorted(c.line for c in drawn) == sorted(lines(program))
        assert all(0 < c.x < width and 0 < c.y < height for c in drawn)
        assert len({(round(c.x), round(c.y)) for c in drawn}) == len(drawn)


def test_an_archive_is_read_as_it_was_lived(tmp_path: Path) -> None:
    happened = [Happened("ada", NOON, "step"), Happened("ada", NOON + DAY, "upgraded"), Happened("bob", NOON, "step")]
    outcomes = [
        Outcome(outcome_id=str(i), customer_id=h.customer_id, program="small", event=h.event or "", at=h.at,
                received_at=NOON + 5 * DAY, revoked=h.customer_id == "bob", revision=int(h.customer_id == "bob"))
        for i, h in enumerate(happened)
    ]  # fmt: skip
    events.write_file(events.file_of(tmp_path, "small", at=NOON, name="one"), events.table([], outcomes))
    found = lived(tmp_path, PROGRAM)
    expected = collect(PROGRAM, happened[:2], until=NOON + 5 * DAY)
    assert found.customers.sum() == 1  # what bob did was taken back
    assert np.array_equal(found.days.sum(axis=0), expected.days.sum(axis=0))
    assert found.goals.sum() == 1


def test_an_archive_without_the_program_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no events of program 'small' .*: run nudge archive"):
        lived(tmp_path, PROGRAM)


def test_of_many_customers_a_share_is_read_by_whole_customers(tmp_path: Path) -> None:
    outcomes = [
        Outcome(outcome_id=f"{i}-{d}", customer_id=f"c{i}", program="small", event="step", at=NOON + d * DAY,
                received_at=NOON + 3 * DAY)
        for i in range(400) for d in range(3)
    ]  # fmt: skip
    events.write_file(events.file_of(tmp_path, "small", at=NOON, name="one"), events.table([], outcomes))
    found = lived(tmp_path, PROGRAM, most=100)
    assert 60 < found.customers.sum() < 140
    assert found.days.sum() == 3 * found.customers.sum()
