import numpy as np
import pytest

from optimizer.actions import HOLD
from optimizer.customer import Customer, Decayed
from optimizer.engine import HOLDOUT, Ask
from optimizer.events import draw, uniform
from optimizer.guardrails import Shared
from tests.small_program import NOON, SALT, customer, optimizer, small

PROGRAM = small()


def people(n: int) -> list[Customer]:
    return [customer(PROGRAM, f"c{i}", stage="active", steps=Decayed(3.0, NOON)) for i in range(n)]


def asks(n: int) -> list[Ask]:
    return [Ask(c, f"d{i}", NOON) for i, c in enumerate(people(n))]


def test_what_is_logged_is_what_was_drawn_from() -> None:
    for decision in optimizer(PROGRAM).decide(asks(50), Shared.unlimited(PROGRAM)):
        u = uniform(SALT, "draw", program="small", customer_id=decision.customer_id, decision_id=decision.decision_id)
        assert draw(decision.vector, u) == decision.action
        assert decision.action_name == PROGRAM.space.names[decision.action]
        assert decision.vector.dtype == np.float32
        assert decision.vector.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)


def test_every_allowed_action_is_positive_and_every_blocked_one_zero() -> None:
    blocked = customer(PROGRAM, "b", stage="quiet")  # no playful tone, and no momentum for the gift
    (decision,) = optimizer(PROGRAM).decide([Ask(blocked, "d", NOON)], Shared.unlimited(PROGRAM))
    named = dict(zip(PROGRAM.space.names, decision.vector.tolist(), strict=True))
    assert {name for name, p in named.items() if p > 0} == {
        "hold", "badge/warm/now", "badge/warm/evening", "coupon/warm/now", "coupon/warm/evening",
    }  # fmt: skip
    assert decision.blocked == {"tone=playful": "stage", "incentive=gift": "momentum"}


def test_a_batch_decides_as_its_rows_would_alone() -> None:
    shared, chooser = Shared.unlimited(PROGRAM), optimizer(PROGRAM)
    alone = [chooser.decide([ask], shared)[0] for ask in asks(20)]
    stocked = Shared(budget=np.inf, stock=np.full(3, np.inf))
    assert chooser.decide(asks(20), stocked) == [chooser.decide([ask], stocked)[0] for ask in asks(20)]
    assert [d.customer_id for d in alone] == [f"c{i}" for i in range(20)]


def test_rows_take_turns_at_what_is_scarce() -> None:
    # Two gifts and eleven euros: each row must be drawn under the mask that earlier rows leave.
    shared = Shared(budget=1100.0, stock=np.array([np.inf, np.inf, 2.0]))
    decisions = optimizer(PROGRAM).decide(asks(60), shared)
    left, gifts = 1100, 2
    for decision in decisions:
        affordable = {"badge": True, "coupon": left >= 300, "gift": left >= 500 and gifts > 0}
        for action, p in enumerate(decision.vector.tolist()):
            nudge = PROGRAM.space.nudge(action)
            assert (p > 0) == (nudge is None or affordable[nudge.incentive])
        left -= decision.cost
        gifts -= decision.action_name.startswith("gift")
    assert left >= 0
    assert gifts >= 0
    assert any(d.blocked.get("incentive=coupon") == "budget" for d in decisions)


def test_a_holdout_customer_is_always_held_and_says_so() -> None:
    program = small(GUARD + "\n[experiment]\nholdout = 0.3\n")
    chooser = optimizer(program)
    decisions = chooser.decide(asks(400), Shared(np.inf, np.full(3, np.inf)))
    held = [d for d in decisions if d.arm == HOLDOUT]
    assert 80 < len(held) < 160  # 120 expected, sd 9.2
    assert {(d.action, d.policy, float(d.vector[HOLD])) for d in held} == {(HOLD, "hold", 1.0)}
    assert {d.arm for d in chooser.decide(asks(400), Shared(np.inf, np.full(3, np.inf)))} == {HOLDOUT, "champion"}
    assert [chooser.arm(f"c{i}") for i in range(400)] == [d.arm for d in decisions]


def test_the_context_is_logged_as_seen_and_the_moment_adds_to_it() -> None:
    ask = Ask(people(1)[0], "d", NOON, context={"tenure": 4.0})
    (decision,) = optimizer(PROGRAM).decide([ask], Shared.unlimited(PROGRAM))
    assert decision.context["tenure"] == 4.0
    assert decision.context["stage"] == "active"
    assert decision.context["hour"] == 12.0
    assert decision.context["plan"] is None


def test_prices_reach_the_policy_before_the_draw() -> None:
    from optimizer.actions import ActionSpace, Bools, Floats
    from tests.small_program import Even

    seen = []

    class Watching(Even):
        def __init__(self, space: ActionSpace) -> None:
            super().__init__(space)

        def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
            seen.append(prices)
            return super().probabilities(contexts, allowed, prices)

    program = small(GUARD + "burden_price = 0.5\n")
    tired = customer(program, stage="active", nudges=Decayed(1.0, NOON))
    shared = Shared(np.inf, np.full(3, np.inf), cost_price=2.0)
    optimizer(program, Watching(program.space)).decide([Ask(tired, "d", NOON)], shared)
    coupon = program.space.names.index("coupon/warm/now")
    assert seen[0][0, [HOLD, 1, coupon]].tolist() == [0.0, 0.25, 6.25]  # dosage 0.5


GUARD = '\n[guardrails]\nconsent = "opt-out"\ncap_per_day = 1\ncap_per_week = 3\ncooldown = "12h"\n'
