"""No history and no interleaving breaks a guardrail, on a real store.

The judge knows what was reported and what was delivered, and the rules as a person would put them; it shares no code
with what enforces them.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.customer import new_customer
from optimizer.engine import Ask
from optimizer.events import Outcome
from optimizer.guardrails import Request, Shared
from optimizer.journey import follow
from optimizer.program import Program
from serving.embedded import Server
from serving.reservations import reserve
from serving.store import Commitment, Store
from tests.contracts.steps import outcome, propose
from tests.small_program import NOON, TOML, optimizer

HOUR, DAY = 3_600.0, 86_400.0
PEOPLE = {"ada": ("Europe/Paris", "free"), "bob": ("America/New_York", "gold"), "cy": ("Asia/Kolkata", "free")}

RULES = {
    "counts": 'cap_per_day = 2\ncap_per_week = 5\ncap_per_week_by_kind = { monetary = 2 }\ncooldown = "5h"',
    "money": 'cap_per_day = 9\ncap_per_week = 32\ncooldown = "0m"\nscarce_per_week = 9\n'
    'budget = { amount = 14, period = "3d" }',
    "shown": 'cap_per_day = 2\ncap_per_week = 6\ncooldown = "3h"\nreports_shown = true\nexpires_after = "6h"\n'
    'budget = { amount = 20, period = "7d" }',
    "rhythm": 'cap_per_day = 3\ncap_per_week = 32\ncooldown = "1h"\ncadence = { every = "1d", within = "2h" }',
    "hours": 'cap_per_day = 3\ncap_per_week = 32\ncooldown = "1h"\n'
    'cadence = { every = "12h", within = "5h", hour_within = "3h" }',
    "ladder": 'cap_per_day = 9\ncap_per_week = 32\ncooldown = "0m"\nscarce_per_week = 9\n'
    'ladder = { waits = "12h", memory = "10d" }',
}
LADDERED = ("ladder",)


def program_of(rules: str) -> Program:
    text = TOML.replace('name = "step"\nkind = "micro"', 'name = "step"\nkind = "micro"\nrequests_decision = true')
    text = text.replace('kind = "recognition"', 'kind = "recognition"\noff_beat = true')
    if rules in LADDERED:
        text = text.replace("off_beat = true", 'off_beat = true\nladder = "r"').replace(
            "cost = 3.0", 'cost = 3.0\nladder = "r"\ntier = 1'
        )
        text = text.replace("cost = 5.0", 'cost = 5.0\nladder = "r"\ntier = 2')
    return Program.parse(f'{text}\n[guardrails]\nconsent = "opt-out"\n{RULES[rules]}\n', source=f"{rules}.toml")


PROGRAMS = {rules: program_of(rules) for rules in RULES}


@dataclass
class Delivered:
    """A nudge: when it was decided and comes, and when it was taken back."""

    asked: float
    at: float
    incentive: str
    tone: str
    id: str
    gone: float = math.inf


@dataclass
class Person:
    """What the judge knows of a customer."""

    zone: ZoneInfo
    plan: str
    events: list[tuple[float, str, float]] = field(default_factory=list)
    nudges: list[Delivered] = field(default_factory=list)

    def local(self, at: float) -> datetime:
        return datetime.fromtimestamp(at, UTC).astimezone(self.zone)

    def before(self, at: float, *names: str) -> list[float]:
        return [when for when, name, _ in self.events if when <= at and name in names]

    def there(self, at: float, *, but: Delivered) -> list[Delivered]:
        """Nudges decided before one that had not been taken back by then."""
        return [n for n in self.nudges if n is not but and n.asked <= at and n.gone > at and n.at < but.at]


# What a person would say of the rules.


def judge(program: Program, people: dict[str, Person]) -> None:
    costs = {"badge": 0.0, "coupon": 3.0, "gift": 5.0}
    rules = program.guardrails
    kept = [n for p in people.values() for n in p.nudges if n.gone == math.inf]
    if rules.budget is not None:
        periods = {int(n.asked // rules.budget.period) for n in kept}
        for period in periods:
            spent = sum(costs[n.incentive] for n in kept if int(n.asked // rules.budget.period) == period)
            assert spent <= rules.budget.amount, "the budget was overspent"
    assert sum(n.incentive == "gift" for n in kept) <= 2, "there were two gifts"
    for person in people.values():
        for nudge in person.nudges:
            judge_nudge(program, person, nudge, people=people)
        judge_counts(program, person)


def judge_counts(program: Program, person: Person) -> None:
    rules, days = program.guardrails, dict[date, list[str]]()
    for n in person.nudges:
        if n.gone == math.inf:
            days.setdefault(person.local(n.at).date(), []).append(n.incentive)
    for day, today in days.items():
        week = [i for other, some in days.items() if timedelta(0) <= other - day < timedelta(7) for i in some]
        assert len(today) <= rules.cap_per_day
        assert len(week) <= rules.cap_per_week
        assert week.count("coupon") <= rules.scarce_per_week
        monetary = rules.cap_per_week_by_kind.get("monetary", 99)
        assert week.count("coupon") + week.count("gift") <= monetary


def judge_nudge(program: Program, person: Person, n: Delivered, *, people: dict[str, Person]) -> None:
    local, rules = person.local(n.at), program.guardrails
    assert 8 <= local.hour + local.minute / 60 < 21, f"at night: {local}"
    said = [name for when, name, _ in person.events if when <= n.asked and name in ("opt_in", "opt_out")]
    assert said[-1:] != ["opt_out"], "after an opt-out"
    others = person.there(n.asked, but=n)
    assert all(o.at <= n.asked for o in others), "while another one was on its way"
    assert all(n.at - o.at >= rules.cooldown for o in others), "too soon"
    stage = stage_at(person, n.asked)
    assert n.tone != "playful" or stage in ("new", "active"), f"a joke in {stage}"
    if n.incentive == "coupon":
        assert stage in ("active", "quiet")
        assert all(n.asked - at >= 14 * DAY for at in person.before(n.asked, "complaint")), "after a complaint"
        unhappy = [at for at, name, score in person.events if name == "survey" and score < 3 and at <= n.asked]
        assert all(n.asked - at >= 7 * DAY for at in unhappy), "after a low score"
    if n.incentive == "gift":
        assert person.plan != "gold"
        steps = sum(0.5 ** ((n.asked - at) / (3 * DAY)) for at in person.before(n.asked, "step", "upgraded"))
        assert steps >= 1 - 1e-9, "without momentum"
    if rules.cadence is not None:
        judge_rhythm(program, person, n, others=others)
    if program.upper_rungs.size:
        judge_rung(program, person, n, others=others)


def judge_rung(program: Program, person: Person, n: Delivered, *, others: Sequence[Delivered]) -> None:
    rungs = ("badge", "coupon", "gift")
    tier, ladder = rungs.index(n.incentive), program.guardrails.ladder
    if tier:
        below = [o for o in others if o.incentive == rungs[tier - 1]]
        goals = person.before(n.asked, "upgraded")
        assert any(
            ladder.waits <= n.asked - o.at <= ladder.memory and not any(g >= o.at for g in goals) for o in below
        ), "a rung was left out"


def judge_rhythm(program: Program, person: Person, n: Delivered, *, others: Sequence[Delivered]) -> None:
    cadence = program.guardrails.cadence
    assert cadence is not None
    wins = [at for at in person.before(n.asked, "step") if n.asked - at <= HOUR]
    answered = any(o.asked >= max(wins) for o in others) if wins else True
    quick_win = n.incentive == "badge" and bool(wins) and not answered and n.at - n.asked <= HOUR
    beats = [o.at for o in others if o.id not in OFF_BEAT]
    last = max(beats, default=-math.inf)
    if n.asked - last <= max(8 * DAY, cadence.every + cadence.within):
        gap = n.at - last
        beat = max(round(gap / cadence.every), 1) * cadence.every
        if abs(gap - beat) > cadence.within + 0.01:
            OFF_BEAT.add(n.id)
            assert quick_win, "off the beat"
    hour = usual_hour(person, n.asked)
    if cadence.hour_within is not None and hour is not None and not quick_win:
        local = person.local(n.at)
        apart = abs((local.hour + local.minute / 60 + local.second / 3600 - hour + 12) % 24 - 12)
        assert apart * HOUR <= cadence.hour_within + 1, f"{apart:.2f} hours from the usual one"


OFF_BEAT: set[str] = set()
"""Nudges that the judge found to be off the beat: the rhythm goes on without them."""


def usual_hour(person: Person, at: float) -> float | None:
    """The hour at which steps are taken, a step of four weeks ago counting half; moved out of the night."""
    points = [(0.5 ** ((at - t) / (28 * DAY)), person.local(t)) for t in person.before(at, "step", "upgraded")]
    total = sum(w for w, _ in points)
    angles = [(w, (c.hour + c.minute / 60 + c.second / 3600) / 24 * math.tau) for w, c in points]
    x, y = sum(w * math.cos(a) for w, a in angles), sum(w * math.sin(a) for w, a in angles)
    if total < 2.5 - 1e-9 or math.hypot(x, y) < 0.5 * total:
        return None
    hour = math.atan2(y, x) / math.tau * 24 % 24
    if 8 <= hour < 21:
        return hour
    return 8.0 if (hour - 21) % 24 >= 5.5 else 20 + 59 / 60


def stage_at(person: Person, at: float) -> str:
    stage, idle = "new", NOON
    for when, name, _ in [*person.events, (at, "", 0.0)]:
        if when > at:
            continue
        if stage == "active" and when - idle > 7 * DAY:
            stage = "quiet"
        if name == "step":
            stage = "active"
        if name in ("step", "upgraded"):
            idle = when
    return stage


# The histories.


GAPS = st.sampled_from(
    [0.0, 0.02, 0.4, 1.0, 3.0, 6.0, 11.0, 12.0, 13.0, 23.0, 24.0, 25.0, 30.0, 49.0, 100.0, 200.0, 900.0]
)
WHAT = st.sampled_from(
    ["ask"] * 7 + ["step"] * 4 + ["race"] * 2 + ["upgraded", "complaint", "unhappy", "happy", "opt_out", "opt_in"]
    + ["not_shown", "shown", "sweep"]
)  # fmt: skip
HISTORIES = st.lists(st.tuples(GAPS, st.sampled_from([*PEOPLE, "all"]), WHAT), min_size=15, max_size=45)


class World:
    """People, a store, and a clock that only goes forward."""

    def __init__(self, store: Store, program: Program) -> None:
        self.store, self.program, self.at, self.number = store, program, NOON, 0
        self.people = {name: Person(ZoneInfo(zone), plan) for name, (zone, plan) in PEOPLE.items()}

    async def begin(self) -> None:
        for name, (zone, plan) in PEOPLE.items():
            await self.store.put(name, time_zone=zone, attributes={"plan": plan})

    async def ask(self, names: Sequence[str]) -> None:
        await self.commit(await self.proposed(names))

    async def proposed(self, names: Sequence[str]) -> list[Commitment]:
        self.number += 1
        rows: list[Commitment] = []
        for name in names:  # each with what is shared as it was: the commit has to see that it is not any more
            rows += await propose(self.store, name, program=self.program, at=self.at, decision_id=f"d{self.number}")
        return rows

    async def commit(self, rows: Sequence[Commitment]) -> None:
        for row, became in zip(rows, await self.store.commit(self.program, rows), strict=True):
            made = row.decision
            if became.status == "committed" and made.deliver_at is not None:
                incentive, tone, _ = made.action_name.split("/")
                nudge = Delivered(made.at, made.deliver_at, incentive, tone, made.customer_id + made.decision_id)
                self.people[made.customer_id].nudges.append(nudge)

    async def report(self, name: str, event: str, *, value: float | None = None) -> None:
        self.number += 1
        made: Outcome = outcome(
            name, f"o{self.number}", event, program=self.program, at=self.at, value=value, received_at=self.at
        )
        assert await self.store.report(self.program, [made]) == ["accepted"]
        self.people[name].events.append((self.at, event, math.nan if value is None else value))

    async def happen(self, name: str, what: str) -> None:
        if what in ("shown", "not_shown"):
            await self.settle(name, what)
        elif what == "race":
            rows = await self.proposed([name])
            await self.report(name, "step")
            await self.commit(rows)  # refused: what they were drawn under is not so any more
            assert all(n.asked < self.at or n.id[len(name) :] != rows[0].decision.decision_id
                       for n in self.people[name].nudges)  # fmt: skip
        elif what in ("unhappy", "happy"):
            await self.report(name, "survey", value=1.0 if what == "unhappy" else 5.0)
        else:
            await self.report(name, what)

    async def settle(self, name: str, what: str) -> None:
        """Report what became of the last nudge, once it has come; a nudge is shown in time or not at all."""
        open_ = [n for n in self.people[name].nudges if n.gone == math.inf and n.at <= self.at]
        if not open_:
            return
        nudge, self.number = open_[-1], self.number + 1
        late = self.program.guardrails.reports_shown and self.at > nudge.at + self.program.guardrails.expires_after
        if what == "shown" and late:
            return
        report = outcome(name, f"o{self.number}", what, program=self.program, at=self.at,
                         decision_id=nudge.id[len(name) :])  # fmt: skip
        await self.store.report(self.program, [report])
        if what == "not_shown" and (name, nudge.id) not in self.shown:
            nudge.gone = self.at
        self.shown.add((name, nudge.id))

    shown: set[tuple[str, str]] = set()  # noqa: RUF012  (replaced for each world)

    async def sweep(self) -> None:
        await self.store.sweep(self.program, now=self.at)
        if self.program.guardrails.reports_shown:
            for name, person in self.people.items():
                for n in person.nudges:
                    expired = n.at + self.program.guardrails.expires_after <= self.at
                    if expired and n.gone == math.inf and (name, n.id) not in self.shown:
                        n.gone = self.at


async def live(url: str, program: Program, history: Sequence[tuple[float, str, str]]) -> dict[str, Person]:
    async with await Store.open(url) as old:
        await old.command("FLUSHALL")
    async with await Store.open(url) as store:
        world = World(store, program)
        world.shown = set()
        await world.begin()
        for hours, who, what in history:
            world.at += hours * HOUR + 1.0  # no two things at one moment: the judge could not tell which was first
            names = list(PEOPLE) if who == "all" else [who]
            if what == "ask":
                await world.ask(names)
            elif what == "sweep":
                await world.sweep()
            else:
                for name in names:
                    await world.happen(name, what)
        return world.people


def never_broken(url: str, rules: str, *, examples: int) -> None:
    nudged = 0

    @given(history=HISTORIES)
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    def example(history: list[tuple[float, str, str]]) -> None:
        nonlocal nudged
        OFF_BEAT.clear()
        people = asyncio.run(live(url, PROGRAMS[rules], history))
        judge(PROGRAMS[rules], people)
        nudged += sum(len(p.nudges) for p in people.values())

    example()
    assert nudged >= examples, "there was hardly anything to judge"


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES)
def test_no_history_breaks_a_guardrail(server: Server, rules: str) -> None:
    never_broken(server.url, rules, examples=6)


@pytest.mark.soak
@pytest.mark.parametrize("rules", RULES)
def test_no_history_of_many_breaks_a_guardrail(server: Server, rules: str) -> None:
    never_broken(server.url, rules, examples=150)


def test_the_judge_sees_what_is_broken() -> None:
    nine = NOON - 3 * HOUR
    person = Person(ZoneInfo("UTC"), "free")
    person.nudges = [Delivered(nine + i * HOUR, nine + i * HOUR, "badge", "warm", f"{i}") for i in range(3)]
    with pytest.raises(AssertionError, match="too soon"):
        judge(PROGRAMS["counts"], {"ada": person})
    night = Person(
        ZoneInfo("Asia/Kolkata"), "free", nudges=[Delivered(NOON + 5 * HOUR, NOON + 5 * HOUR, "badge", "warm", "1")]
    )
    with pytest.raises(AssertionError, match="at night"):
        judge(PROGRAMS["counts"], {"ada": night})
    gifts = Person(ZoneInfo("UTC"), "free", events=[(nine, "step", 0.0)] * 9)
    gifts.nudges = [Delivered(NOON, NOON, "gift", "warm", "1")]
    with pytest.raises(AssertionError, match="a rung was left out"):
        judge(PROGRAMS["ladder"], {"ada": gifts})
    gifts.events = []
    with pytest.raises(AssertionError, match="without momentum"):
        judge(PROGRAMS["money"], {"ada": gifts})


def test_a_quick_win_is_kept_as_off_the_beat() -> None:
    program = PROGRAMS["rhythm"]
    ada = new_customer(program, "ada", at=NOON)
    flags = []
    for hours in (0.0, 7.0, 24.0):
        at = NOON + hours * HOUR
        ada = follow(program, ada, "step", at=at)
        asks = [Ask(ada, f"{hours}-{i}", at, {}, Request({"timing": ["now"]})) for i in range(60)]
        made = next(d for a in asks if (d := optimizer(program).decide([a], Shared.unlimited(program))[0]).action)
        ada = reserve(program, ada, made)
        flags.append((made.action_name.partition("/")[0], ada.sent[-1].off_beat))
    assert flags[1] == ("badge", True)
    assert (flags[0][1], flags[2][1]) == (False, False)
