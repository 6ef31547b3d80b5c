"""The scorecard: each figure is what a hand count gives, what is open is left out, and what is missing is said."""

import re
from pathlib import Path

import numpy as np
import pytest

from optimizer.program import DAY, Program
from tests.browser import Browser
from tests.small_program import NOON
from tests.training.lived import SURVEYS, Life, lived, text
from tests.training.test_report import Outside
from training import record, scorecard_page
from training.scorecard import Asked, Scorecard, figures, scorecard, tables


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    lived(folder, customers=260, days=24, seed=11)
    return folder


@pytest.fixture(scope="module")
def program() -> Program:
    return Program.parse(text(), source="lived.toml")


@pytest.fixture(scope="module")
def card(archive: Path, program: Program) -> Scorecard:
    return scorecard(archive, program)


@pytest.fixture(scope="module")
def page(card: Scorecard) -> str:
    return scorecard_page.html(card, command="nudge report small --since 2026-01-01")


def test_headlines_are_what_a_count_by_hand_gives(archive: Path, program: Program, card: Scorecard) -> None:
    log = record.load(archive, program)
    served = {i for i, arm in enumerate(log.arms.tolist()) if arm != "holdout"}
    events = [e.name for e in program.events]
    did: dict[str, set[int]] = {}
    for who, event in zip(log.happened.customer.tolist(), log.happened.event.tolist(), strict=True):
        did.setdefault(events[event] if event >= 0 else "other", set()).add(who)
    n = len(served)
    assert card.customers == n
    assert card.held_out == len(log.customers) - n
    stepped = did["step"] | did["upgraded"] | did.get("spent", set())
    assert card.overview["participation"].value == pytest.approx(len(served & stepped) / n)
    assert card.overview["csat_response_rate"].value == pytest.approx(len(served & did["survey_csat"]) / n)
    assert card.churn["complained"].value == pytest.approx(len(served & did["complaint"]) / n)
    scores = [
        v
        for who, event, v in zip(
            log.happened.customer.tolist(), log.happened.event.tolist(), log.happened.value.tolist(), strict=True
        )
        if who in served and event == program.event_index["survey_nps"]
    ]
    promoters, detractors = sum(v >= 9 for v in scores), sum(v <= 6 for v in scores)
    assert card.overview["nps"].value == pytest.approx(100 * (promoters - detractors) / len(scores))
    assert card.overview["nps_responses"].value == len(scores)


def test_who_did_not_answer_is_unknown_not_zero(card: Scorecard) -> None:
    csat = card.overview["csat"]
    assert csat.low is not None
    assert 2.0 < csat.low < (csat.value or 0.0)  # answers are 1 to 5, by chance; silence as 0 would halve it
    assert csat.n == card.overview["csat_responses"].value


def test_every_figure_says_what_it_estimates_and_is_known_or_says_why_not(card: Scorecard) -> None:
    named = figures(card)
    assert len(named) > 50
    for name, figure in named.items():
        assert figure.of, name
        assert (figure.value is None) == bool(figure.missing), name
        if figure.low is not None and figure.high is not None:
            assert figure.low - 1e-9 <= (figure.value or 0.0) <= figure.high + 1e-9, name


def test_visits_that_began_late_are_left_out_and_said_to_be(archive: Path, program: Program) -> None:
    short = scorecard(archive, program, Asked(days=2.0))
    long = scorecard(archive, program, Asked(days=20.0))
    for one, other in zip(short.funnel, long.funnel, strict=True):
        assert one.visits == other.visits
        assert one.followed > other.followed
    assert "not enough evidence" in long.funnel[2].advanced.missing


def test_a_visit_ends_by_a_step_or_by_a_lapse_when_the_program_says_so(archive: Path, program: Program) -> None:
    stays = record.visits(record.load(archive, program))
    quiet, active = program.stage_index["quiet"], program.stage_index["active"]
    lapsed = stays.take(stays.lapsed)
    assert len(lapsed.customer) > 5
    assert (lapsed.stage == active).all()
    assert (lapsed.to == quiet).all()
    assert (lapsed.end - lapsed.start >= 7 * DAY - 1).all()  # a customer is quiet after seven days without a step
    moved = stays.take((stays.to >= 0) & ~stays.lapsed)
    assert (moved.to == active).all()
    for who in range(20):  # one visit follows the other without a gap
        mine = stays.take(stays.customer == who)
        assert mine.start[1:].tolist() == mine.end[:-1].tolist()


def test_a_period_counts_what_began_in_it(archive: Path, program: Program, card: Scorecard) -> None:
    middle = NOON + 12 * DAY
    first = scorecard(archive, program, Asked(until=middle, days=5.0))
    second = scorecard(archive, program, Asked(since=middle, days=5.0))
    assert first.decisions + second.decisions == card.decisions
    assert first.nudges + second.nudges == card.nudges
    assert first.matured_share == 1.0
    assert second.matured_share < 1.0


def test_an_arm_and_a_policy_can_be_asked_for(archive: Path, program: Program, card: Scorecard) -> None:
    held = scorecard(archive, program, Asked(arm="holdout"))
    assert (held.customers, held.nudges) == (card.held_out, 0)
    assert held.overview["redeemers"].value == 0.0
    assert scorecard(archive, program, Asked(policy="uniform")).decisions == card.decisions
    with pytest.raises(ValueError, match=r"no decision of policy 'thompson'.*uniform@1"):
        scorecard(archive, program, Asked(policy="thompson"))
    with pytest.raises(
        ValueError, match="no customer is in arm 'challenger': the log has champion, evaluation, holdout"
    ):
        scorecard(archive, program, Asked(arm="challenger"))


def test_redemption_counts_what_has_not_had_its_time_as_open(tmp_path: Path) -> None:
    """Four in ten redeem, after two days on average; seven days later that is 0.4 x (1 - e^-3.5)."""
    program = lived(tmp_path, customers=120, days=16, seed=2, life=Life(redeems=0.4, redeem_days=2.0))
    found = scorecard(tmp_path, program, Asked(days=7.0))
    badge = found.incentives[0]
    truth = 0.4 * (1 - np.exp(-3.5))
    assert badge.rate.low is not None
    assert badge.rate.high is not None
    assert badge.rate.low < truth < badge.rate.high
    assert badge.redeemed / badge.shown < truth
    assert found.linked_share == 1.0


def test_an_empty_archive_one_customer_and_a_wrong_period_say_what_to_do(tmp_path: Path, program: Program) -> None:
    with pytest.raises(ValueError, match="run nudge archive or nudge import"):
        scorecard(tmp_path, program)
    lived(tmp_path, customers=1, days=3)
    alone = scorecard(tmp_path, program)
    assert "it takes 20, so wait for about 19 more" in alone.overview["participation"].missing
    assert any("it takes 100" in note for note in alone.notes)
    assert alone.lift.missing
    page = scorecard_page.html(alone, command="nudge report small")
    assert "What the whole program brings is not known" in page
    with pytest.raises(ValueError, match=r"no decision from 2030-01-01 to 2031-01-01.*give another period"):
        scorecard(tmp_path, program, Asked(since=1_893_456_000.0, until=1_924_992_000.0))


def test_a_program_without_surveys_says_what_to_declare(tmp_path: Path) -> None:
    extra = SURVEYS[SURVEYS.index("[guardrails]") :]
    program = lived(tmp_path, toml=text(extra=extra), customers=40, days=6, life=Life(redeems=0.0))
    found = scorecard(tmp_path, program)
    assert "declares no signal such as survey_csat" in found.overview["csat"].missing
    assert "declares no signal such as redeemed" in found.incentives[0].rate.missing
    assert "declares no signal such as redeemed" in found.overview["redeemers"].missing
    assert "declares no signal such as survey_nps" in found.overview["nps_response_rate"].missing


def test_sizes_of_reward_are_compared_where_both_were_possible(card: Scorecard) -> None:
    assert [(t.ladder, t.tier, t.incentives) for t in card.tiers] == [
        ("reward", 1, ("coupon",)),
        ("reward", 2, ("gift",)),
    ]
    assert card.tiers[0].over_smaller.missing == "the smallest size"
    assert card.tiers[1].adds.value is not None


def test_tables_hold_every_figure(card: Scorecard) -> None:
    import msgspec

    rows = msgspec.json.decode(tables(card)["tables/figures.json"])["data"]
    assert {row[0] for row in rows} == set(figures(card))
    assert msgspec.json.decode(card.to_json(), type=Scorecard) == card


def test_the_page_stands_alone_and_has_every_part(page: str) -> None:
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert not re.search(r"https?:|url\(|@import", page)
    for heading in (
        "At a glance",
        "Signs of leaving",
        "The journey, stage by stage",
        "What the whole program brings",
        "Rewards",
        "Small now, or larger later?",
        "Does anything wear out?",
        "For whom?",
        "Is it fair to all?",
        "For the statistician",
        "nudge report small --since 2026-01-01",
    ):
        assert heading in page


def test_what_a_program_says_is_escaped(tmp_path: Path) -> None:
    toml = text(changes={'title = "Badge"': 'title = "A <b>Badge"'})
    program = lived(tmp_path, toml=toml, customers=60, days=8)
    page = scorecard_page.html(scorecard(tmp_path, program), command="nudge report small")
    assert "A <b>Badge" not in page
    assert "A &lt;b&gt;Badge" in page


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [390])
def test_nothing_runs_over_the_edge(page: str, browser: Browser, tmp_path: Path, width: int) -> None:
    file = tmp_path / "page.html"
    file.write_text(page)
    with browser.page(file, width=width, height=9_000) as shown:
        picture = shown.picture()
        assert shown.ask("document.documentElement.scrollWidth") == width
    assert (picture[:, -12:] == 1.0).all()
    assert (picture[:, :12] == 1.0).all()
    assert picture[:600].std() > 0.02
