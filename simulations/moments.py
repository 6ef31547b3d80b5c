"""How far is a world from what was published? Each figure, what a replay of its trial finds, and how far off it may be.

Tolerances are stated beside the figures. They are wider than the chance of one replay (one seed draws the arms anew)
and narrower than what would make another story of it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from simulations import trials
from simulations.rollout import Progress
from simulations.worlds import World


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A published figure and the same figure in a world.

    `ours` may differ from `published` by `tolerance`, or, where `at_least` holds, be larger.
    """

    figure: str
    published: float
    ours: float
    tolerance: float
    source: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the world is near enough."""
        if self.at_least:
            return self.ours >= self.published - self.tolerance
        return abs(self.ours - self.published) <= self.tolerance


class _Figure(NamedTuple):
    figure: str
    published: float
    tolerance: float


_GYM = "54 arms, 61,293 gym members (Milkman et al., Nature 2021)"
_WALK = "micro-randomised trial of walking suggestions (Klasnja et al., Annals of Behavioral Medicine 2019)"
_COUPON = "coupons of an online retailer (Gopalakrishnan and Park, Marketing Science 2021)"
_DELAY = "delays of conversions (Chapelle, KDD 2014)"
_CARD = "car wash cards (Nunes and Drèze, Journal of Consumer Research 2006)"
_LEAVE = "messages of apps: about one in two thousand, more when tired (a convention, not a trial)"


REPLAYS = 3
"""How often the gym trial is run, with other arms: its arms share one control, whose luck in the weeks after makes all
of them seem to last, or none (3 % to 13 % over seeds)."""


def moments(
    world: World, *, seed: int = 1, members: int = trials.MEMBERS, progress: Progress | None = None
) -> list[Moment]:
    """Run the published trials in a world and return each figure beside its own.

    Args:
        world: any; `calibrated` is the one made to be near.
        seed: of everything.
        members: of the gym trial: fewer find fewer arms significant.
        progress: told after each trial.
    """
    found: list[Moment] = []
    replays: Sequence[Callable[[], list[Moment]]] = (
        lambda: _gym(world, seed=seed, members=members, replays=REPLAYS),
        lambda: _suggestions(world, seed=seed),
        lambda: _coupons(world, seed=seed),
        lambda: _leaving(world, seed=seed),
        lambda: _progress(world, seed=seed),
    )
    for done, replay in enumerate(replays):
        found += replay()
        if progress:
            progress(f"{world.name}: published trials", done + 1, len(replays))
    return found


def _beside(source: str, *pairs: tuple[_Figure, float]) -> list[Moment]:
    return [
        Moment(figure=f.figure, published=f.published, ours=ours, tolerance=f.tolerance, source=source)
        for f, ours in pairs
    ]


def _gym(world: World, *, seed: int, members: int, replays: int = 1) -> list[Moment]:
    every = [trials.gym(world, seed=seed + i, members=members) for i in range(replays)]
    lifts = [sorted(found.lift[found.z > trials.SIGNIFICANT].tolist()) or [0.0] for found in every]
    return _beside(
        _GYM,
        (_Figure("weekly visits of members without a programme", 1.5, 0.25), _mean([g.control for g in every])),
        (_Figure("share of the arms that help significantly", 0.45, 0.1), _mean([g.significant for g in every])),
        (_Figure("lift of the least of them", 0.09, 0.05), _mean([x[0] for x in lifts])),
        (_Figure("lift of the best of them", 0.27, 0.07), _mean([x[-1] for x in lifts])),
        (_Figure("share of the arms that still help afterwards", 0.08, 0.06), _mean([g.remaining for g in every])),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _suggestions(world: World, *, seed: int) -> list[Moment]:
    found = trials.suggestions(world, seed=seed)
    return _beside(
        _WALK,
        (_Figure("what a suggestion adds on day 0", 0.66, 0.12), found.first),
        (_Figure("what a suggestion adds over 42 days", 0.14, 0.05), found.average),
        (_Figure("what a suggestion adds in the last two weeks of them", 0.0, 0.08), found.last),
    )


def _coupons(world: World, *, seed: int) -> list[Moment]:
    found = trials.coupons(world, seed=seed)
    bought = _beside(
        _COUPON,
        (_Figure("low-value customers who buy without a coupon", 0.0100, 0.0015), found.low[0]),
        (_Figure("low-value customers who buy with one", 0.0257, 0.003), found.low[1]),
        (_Figure("high-value customers who buy without a coupon", 0.0424, 0.003), found.high[0]),
        (_Figure("high-value customers who buy with one", 0.0664, 0.005), found.high[1]),
        (_Figure("high-value customers who buy with a better one", 0.0934, 0.007), found.high[2]),
    )
    waits = _beside(
        _DELAY,
        (_Figure("share of what nudges bring that comes within an hour", 0.35, 0.04), found.within[0]),
        (_Figure("share of what nudges bring that comes within a day", 0.50, 0.04), found.within[1]),
        (_Figure("share of what nudges bring that comes within 30 days", 0.98, 0.02), found.within[2]),
    )
    return bought + waits


def _leaving(world: World, *, seed: int) -> list[Moment]:
    found = trials.leaving(world, seed=seed)
    return [
        *_beside(_LEAVE, (_Figure("chance that a first message makes somebody opt out", 0.0005, 0.0002), found.first)),
        Moment(
            figure="how much likelier the last of three weeks of daily messages does",
            published=2.0,
            ours=found.last / found.first if found.first else 0.0,
            tolerance=0.0,
            source=_LEAVE,
            at_least=True,
        ),
    ]


def _progress(world: World, *, seed: int) -> list[Moment]:
    found = trials.progress(world, seed=seed)
    return _beside(
        _CARD,
        (_Figure("cards of eight that are filled", 0.19, 0.04), found.plain),
        (_Figure("cards of ten with two stamps given that are filled", 0.34, 0.05), found.endowed),
    )
