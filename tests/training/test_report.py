"""The page: says the verdict in plain words, stands alone, and is legible where it is read."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tests.browser import Browser, Pixels
from tests.training.worlds import best_for, made_up
from training import report
from training.evaluate import evaluate
from training.evaluation import Evaluation
from training.promotion import Verdict, always_valid, judge
from training.targets import Target, baselines, deployed

WORLD = made_up(n=4_000, seed=51)
PROGRAM = WORLD.dataset.program
COMMAND = "nudge evaluate --program small --until 2026-01-15"


def found(*candidates: Target) -> Evaluation:
    """Return an evaluation of candidates beside the baselines."""
    return evaluate(WORLD.dataset, [*baselines(PROGRAM), *candidates])


@pytest.fixture(scope="module")
def good() -> Evaluation:
    return found(deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM, title="A <good> one"))


@pytest.fixture(scope="module")
def verdict(good: Evaluation) -> Verdict:
    return judge(good)


@pytest.fixture(scope="module")
def page(good: Evaluation, verdict: Verdict) -> str:
    return report.html(good, verdict, command=COMMAND)


class Outside(HTMLParser):
    """Collects whatever a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note tags and attributes that reach outside."""
        self.found += [tag] if tag in ("script", "link", "img", "iframe", "object", "form", "base") else []
        self.found += [f"{tag}.{k}" for k, _ in attrs if k in ("src", "href", "srcset", "action") or k.startswith("on")]


def test_the_page_stands_alone(page: str) -> None:
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert not re.search(r"https?:|url\(|@import", page)


def test_what_it_is_given_is_escaped(page: str) -> None:
    assert "A <good> one" not in page
    assert "A &lt;good&gt; one" in page


def test_a_promotion_says_what_to_do_and_by_how_much(good: Evaluation, verdict: Verdict) -> None:
    lift = good.score("good").lift
    said = report.sentence(good, verdict)
    assert said.startswith("Switch to A <good> one. Over 1,000 decisions it brings ")
    assert f"€{lift.value * 1_000:,.0f} more than today's policy" in said
    assert f"at least €{report.money(always_valid(lift, level=verdict.level).low * 1_000, 'EUR')[1:]} more" in said


def test_keeping_says_that_nothing_was_shown_to_be_better() -> None:
    evaluation = found(deployed("bad", best_for(PROGRAM, {"active": "coupon/warm/now"}), PROGRAM, title="Coupons"))
    verdict = judge(evaluation)
    assert verdict.choice == "keep"
    said = report.sentence(evaluation, verdict)
    assert said.startswith("Keep today's policy. No challenger was shown to be better: the best of them, Coupons,")


def test_too_little_evidence_says_what_would_mend_it() -> None:
    small = made_up(n=150, customers=60, seed=2).dataset
    target = deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM)
    evaluation = evaluate(small, [*baselines(PROGRAM), target])
    verdict = judge(evaluation)
    assert verdict.choice == "not enough evidence"
    said = report.sentence(evaluation, verdict)
    assert said.startswith("Not enough evidence to decide. Enough of the log resembles the target: 150 rounds")
    assert "more decisions" in said
    assert "Not enough evidence" in report.html(evaluation, verdict, command=COMMAND)


def test_without_candidates_there_is_still_a_page() -> None:
    evaluation = found()
    page = report.html(evaluation, judge(evaluation), command=COMMAND)
    assert "no candidate was evaluated" in page.lower()


def test_everything_that_was_promised_is_on_it(page: str, good: Evaluation) -> None:
    for heading in (
        "What each policy is worth",
        "Where on the journey",
        "What customers would see",
        "What each ingredient adds",
        "What each would gain",
        "For whom",
        "What each guardrail costs",
        "As the log grew",
        "Messages a customer",
        "Cost of one more",
        "Expected spend",
        "BCa bootstrap",
        "Poisson bootstrap",
        "empirical likelihood",
        "anytime-valid",
        "SLOPE picked",
        "customers share a budget".capitalize(),
        "Can we trust this?",
        "For the statistician",
    ):
        assert heading in page
    assert COMMAND in page
    for title in ("Today&#39;s policy", "No nudges at all", "The program&#39;s rules", "Nudges at random"):
        assert title in page
    for check in good.checks:
        if check.target in ("", "good"):
            assert check.title in page


def test_charts_place_values_in_proportion(good: Evaluation) -> None:
    chart = report._worth(good)
    values = [s.value.value for s in good.scores]
    places = [b.at for b in chart.bars]
    slope = (places[-1] - places[0]) / (values[-1] - values[0])
    for value, place in zip(values, places, strict=True):
        assert place == pytest.approx(places[0] + slope * (value - values[0]), abs=0.02)
    assert all(0 < b.low <= b.at <= b.high < 100 for b in chart.bars)


def test_the_chart_is_a_picture(good: Evaluation, verdict: Verdict, tmp_path: Path) -> None:
    file = tmp_path / "chart.png"
    file.write_bytes(report.png(good, verdict))
    picture = matplotlib.image.imread(file)
    assert picture.shape[1] == 960
    assert picture[..., :3].std() > 0.02


def test_estimated_probabilities_are_said_first_and_the_range_is_shown(good: Evaluation) -> None:
    guessed = replace(WORLD.dataset, estimated_propensities=True)
    target = deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM)
    evaluation = evaluate(guessed, [*baselines(PROGRAM), target])
    text = report.html(evaluation, judge(evaluation), command=COMMAND)
    assert text.index("Estimated probabilities") < text.index('class="verdict')
    assert "If the estimated probabilities are off" in text
    assert "odds off by up to 1.5" in text
    assert "Estimated probabilities" not in report.html(good, judge(good), command=COMMAND)


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [390, 560, 1280])
def test_nothing_runs_over_the_edge(page: str, browser: Browser, tmp_path: Path, width: int) -> None:
    """The margins at both sides stay paper-white from top to bottom, and the verdict's band is there."""
    file = tmp_path / "page.html"
    file.write_text(page)
    with browser.page(file, width=width, height=7_000) as shown:
        picture = shown.picture()
        assert shown.ask("document.documentElement.scrollWidth") == width
    assert picture.shape[1] == width
    assert (picture[:, -12:] == 1.0).all()
    assert (picture[:, :12] == 1.0).all()
    teal = np.abs(picture - np.array([15, 118, 110]) / 255).sum(axis=2) < 0.05
    assert teal[:400].any(axis=1).sum() > 80


def tiles(picture: Pixels, *, size: int = 10) -> Pixels:
    """Return the mean shade of each tile: what is written tells, not how its edges were smoothed."""
    high, wide = (x - x % size for x in picture.shape[:2])
    shades: Pixels = picture[:high, :wide].reshape(high // size, size, wide // size, size, 3).mean(axis=(1, 3))
    return shades


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_a_sandboxed_frame_shows_the_same(page: str, browser: Browser, tmp_path: Path) -> None:
    """A frame that keeps nothing and opens nothing, about 560 px wide: the page asks for neither."""
    (tmp_path / "page.html").write_text(page)
    pictures, heights = [], []
    for name, sandbox in (("free", ""), ("boxed", 'sandbox="allow-scripts"')):
        file = tmp_path / f"{name}.html"
        style = "border:0;width:560px;height:900px"
        file.write_text(f'<body style="margin:0"><iframe {sandbox} src="page.html" style="{style}"></iframe>')
        with browser.page(file, width=560) as shown:
            heights.append(shown.ask("document.documentElement.scrollHeight", frame=shown.frame()))
            pictures.append(tiles(shown.picture()))
    assert heights[0] == heights[1] > 3_000
    assert pictures[0].std() > 0.02
    assert np.abs(pictures[1] - pictures[0]).max() < 0.1
