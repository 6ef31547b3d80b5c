"""How fast do our policies choose and learn, and how little do they lose while learning, beside their peers?

301 actions, one core. Vowpal Wabbit is used as its documentation says: `cb_explore_adf`, a text line for each allowed
action, predict, then learn with cost and probability. Regret is measured in `regret.py`; what is found is kept under
`var/`, so a run that was stopped goes on, and `--kept` reports what there is; `--parts speed` measures speed again and
leaves the rows of regret as they are. `results/regret.csv` has everyone in every world, with their seeds.
Seeds 6 to 10 alone, on which nothing of ours was chosen, are those of `--first 6 --name policies_seeds_6_to_10`.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one core, as a worker of the service has

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from vowpalwabbit import Workspace

from benchmarks import peers, regret
from benchmarks.regret import Cell, Lost
from benchmarks.results import FOLDER, Row, read, write
from benchmarks.worlds import BURDEN, SPACE, names
from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.events import draw, draws
from optimizer.floor import apply_floor
from optimizer.policy import Rounds
from optimizer.program import Exploration
from policies.factored import Statistics, summarise
from policies.greedy import Greedy
from policies.layout import layout
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from policies.vowpal import Vowpal, actions, features, shared

FLAGS = "--quiet --noconstant --cb_explore_adf -q xh -q xi -q xt -q xm -q it -q im -q tm"
PARTS = ("speed", "regret")
JUDGED = ("thompson", "squarecb")
MAIN = (("linear", "additive"), ("linear", "pairwise"))
"""Where a policy must win, not only keep up."""

NARROW = (*MAIN, *(("simulated", name) for name in ("calibrated", "null", "threeway")))
"""Worlds that are played on twice as many seeds, for chance is as large as the margin on five."""

UNFORGETTING = "thompson half-life inf"
"""The default without what it does about a change: all rounds count for good."""

ALSO = ("mabwiser LinTS, alpha 0.1",)
"""Settings of the grid that stand in the table beside the defaults."""

HOPELESS = 1.25
"""How much worse than the best of all a setting may begin in a simulated world, and be played on."""

TWIN = ("simulated", "shelf")
"""What comes and goes in this world comes after the eight days that 20,000 decisions take: here it is `demo`."""

BASE_RATE = 10.0 * BURDEN
"""Mean reward under hold in the linear world `null`, where a nudge costs a tenth of it."""


# Speed


def space_of(d: int) -> ActionSpace:
    """Return the 301 actions with d features: a constant, a stage of five, and numbers."""
    named = ("bias", *(f"stage={i}" for i in range(5)), *(f"number-{i}" for i in range(d - 6)))
    return ActionSpace(SPACE.incentives, SPACE.tones, SPACE.timings, features=named)


def asked(n: int, space: ActionSpace, *, seed: int) -> tuple[Floats, Bools]:
    """Return contexts and masks as guardrails make them: products of levels, a few of them blocked."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, space.d))
    x[:, :6] = 0.0
    x[:, 0] = 1.0
    x[np.arange(n), 1 + rng.integers(0, 5, n)] = 1.0
    free = [rng.random((n, size)) < 0.9 for size in space.shape]
    cells = free[0][:, :, None, None] & free[1][:, None, :, None] & free[2][:, None, None, :]
    return x, np.concatenate([np.ones((n, 1), dtype=np.bool_), cells.reshape(n, -1)], axis=1)


def logged(n: int, space: ActionSpace, *, seed: int) -> Rounds:
    """Return rounds of an even logger; a customer is there for four decisions in a row."""
    x, allowed = asked(n, space, seed=seed)
    rng = np.random.default_rng(seed + 1)
    p = allowed.astype(np.float32) / allowed.sum(axis=1, keepdims=True, dtype=np.float32)
    drawn = draws(p, rng.random(n))
    rewards = x[:, 6] + 0.2 * space.levels[drawn, 1] + 0.5 * rng.normal(size=n)
    at, nothing = 30.0 * np.arange(n, dtype=np.float64), np.zeros(n)
    codes = np.arange(n, dtype=np.intp) // 4
    return Rounds(x, allowed, p, drawn, rewards, codes, at, nothing, nothing, np.zeros(n, dtype=np.intp))


class Peer:
    """Vowpal Wabbit from Python, as its users run it: every allowed action is a line, in predict and in learn."""

    def __init__(self, arguments: str, space: ActionSpace) -> None:
        self.workspace = Workspace(f"{FLAGS} {arguments}")
        named = layout(space)
        self.columns, self.lines = features(named), actions(named)

    def asked(self, x: Floats, allowed: Bools) -> list[str]:
        """Return a decision as VW reads it."""
        return [shared(self.columns, x), *(self.lines[a] for a in np.flatnonzero(allowed))]

    def learn(self, rounds: Rounds) -> None:
        """Learn from every allowed action's line."""
        for row in range(len(rounds)):
            lines = self.asked(rounds.contexts[row], rounds.allowed[row])
            at = 1 + int(rounds.allowed[row, : rounds.actions[row]].sum())
            cost, share = -float(rounds.rewards[row]), float(rounds.propensities[row])
            lines[at] = f"0:{cost!r}:{share!r} {lines[at]}"
            self.workspace.learn(lines)


class Timed(NamedTuple):
    """What is called, and how often a turn."""

    call: Callable[[], object]
    times: int


def in_turn(timed: Sequence[Timed], *, turns: int = 9) -> list[float]:
    """Return the processor's seconds for one call of each, taken in turn: the best of the turns of each."""
    best = np.full(len(timed), np.inf)
    for turn in range(turns + 1):
        for i, (call, times) in enumerate(timed):
            start = time.process_time()
            for _ in range(times):
                call()
            if turn:  # the first warms caches
                best[i] = min(best[i], (time.process_time() - start) / times)
    return [float(seconds) for seconds in best]


class Learner(Protocol):
    """What chooses."""

    @property
    def name(self) -> str: ...

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats: ...

    def learn(self, rounds: Rounds) -> None: ...


def decide(learner: Learner, space: ActionSpace, x: Floats, *, allowed: Bools) -> object:
    """Make one decision, or a batch of them: probabilities over the mask, floor, float32, draw."""
    p = learner.probabilities(x, allowed, np.zeros(space.k))
    floored = apply_floor(p, space, allowed=allowed, exploration=Exploration()).astype(np.float32)
    return draw(floored[0], 0.5) if len(x) == 1 else draws(floored, np.full(len(x), 0.5))


def choosing(d: int) -> list[Row]:
    """One decision and a row of a batch of 1,000, beside VW's predict alone on the same context and mask."""
    space = space_of(d)
    rounds, peer = logged(2_000, space, seed=2), Peer("--squarecb", space)
    peer.learn(rounds.take(slice(0, 200)))
    x, allowed = rounds.contexts[:1_000], np.ones((1_000, space.k), dtype=np.bool_)
    lines = peer.asked(x[0], allowed[0])
    theirs = Timed(partial(peer.workspace.predict, lines), 20)
    rows: list[Row] = []
    kinds: list[tuple[Learner, int, int]] = [
        (SquareCB(space), 20, 100),
        (Greedy(space), 20, 100),
        (Thompson(space), 15, 30),
        (Vowpal(space), 50, 50),
    ]
    for learner, single, batch in kinds:
        learner.learn(rounds)
        once: Callable[[], object] = partial(decide, learner, space, x[:1], allowed=allowed[:1])
        if learner.name == "vowpal":  # compiled VW beside VW: the same work
            once = partial(learner.probabilities, x[:1], allowed[:1], np.zeros(space.k))
        all_ = partial(decide, learner, space, x, allowed=allowed)
        vw, one, many = in_turn([theirs, Timed(once, 50), Timed(all_, 1)])
        said = "predict, compiled" if learner.name == "vowpal" else "one decision"
        for what, ours, wanted in ((said, one, single), ("a decision of 1,000", many / 1_000, batch)):
            title = f"{learner.name}, {d} features: {what}"
            rows.append(_row(title, ours=1e6 * ours, peer=1e6 * vw, peer_name="VW predict", unit="µs", most=1 / wanted))
    return rows


def learning(rounds_asked: int) -> list[Row]:
    """Learning from a million rounds, shard by shard, beside VW's rate on the same rounds."""
    space, size = space_of(18), min(20_000, rounds_asked)
    shard, shards = logged(size, space, seed=3), rounds_asked // size
    start = time.process_time()
    summed = reduce(Statistics.__add__, (summarise(space, shard) for _ in range(shards)))
    Thompson(space).absorb(summed)
    ours = time.process_time() - start
    few, peer = shard.take(slice(0, 400)), Peer("--squarecb", space)
    (theirs,) = in_turn([Timed(partial(peer.learn, few), 1)], turns=2)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    name = f"learning {rounds_asked:,} rounds"
    whole = theirs / len(few) * rounds_asked
    return [
        _row(name, ours=ours, peer=whole, peer_name="VW learn", unit="s", most=1 / 20),
        _bound(f"{name}: time", ours=ours, unit="s", most=60.0),
        _bound(f"{name}: memory", ours=gib, unit="GiB", most=2.0),
    ]


# Regret


Played = Mapping[int, Lost]
"""What a learner lost, by seed."""


def losing(seeds: Sequence[int], *, decisions: int, kept: bool, families: Sequence[str]) -> list[Row]:
    """Mean regret a decision, ours untuned, beside each peer at its default and the best of all grids.

    Pairs share their seeds: a setting is compared with ours over exactly those that ours has played, and left out, by
    name, where it has not played them all. The best is the setting that loses least over them.
    """
    rows: list[Row] = []
    for family, name in _worlds(families):
        played = _seeds(family, name, seeds)
        find = partial(_lost, family, name, seeds=played, decisions=decisions, kept=kept)
        grid = _grid(family, name, seeds=played, decisions=decisions, kept=kept)
        wanted = (0.5, 0.75) if (family, name) in MAIN else (1.05, 1.05)
        for kind in JUDGED:
            ours = find(kind)
            if short := [label for label, lost in grid.items() if ours.keys() - lost.keys()]:
                print(f"  {family} {name}: not beside {kind}, with fewer seeds: {', '.join(short)}", flush=True)
            paired = {label: _on(lost, ours) for label, lost in grid.items() if ours and label not in short}
            for peer, said, most in _against(paired, *wanted):
                rows += _compared(f"{kind}: regret, {family} {name} world", ours, paired[peer], peer, said, most)
    return rows


def _grid(family: str, name: str, *, seeds: Sequence[int], decisions: int, kept: bool) -> dict[str, Played]:
    """Return what each setting of the peers lost: every setting where response is linear.

    Of simulated worlds there are many, so there a setting ends after the first seed where it loses more than `HOPELESS`
    times the least that any setting loses; a peer's default is held to the least that any default loses.
    """
    find = partial(_lost, family, name, decisions=decisions, kept=kept)
    first = seeds if family == "linear" else seeds[:1]
    grid = {label: find(label, seeds=first) for label in regret.settings()}
    if family == "linear":
        return grid
    begun = {label: _mean(lost, "regret") for label, lost in grid.items() if lost}

    def least(among: Iterable[str]) -> float:
        return min(begun[label] for label in among if label in begun)

    defaults = _defaults()
    played_on = [label for label in begun if begun[label] <= HOPELESS * least(defaults if label in defaults else begun)]
    return grid | {label: find(label, seeds=seeds) for label in played_on}


def _seeds(family: str, name: str, seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds of a world: twice as many in `NARROW`."""
    return range(seeds[0], seeds[0] + 2 * len(seeds)) if (family, name) in NARROW else seeds


def _worlds(families: Sequence[str]) -> list[tuple[str, str]]:
    return sorted(set(names(families)) - {TWIN}, key=lambda pair: (pair not in MAIN, names().index(pair)))


def _defaults() -> list[str]:
    return list({s.peer: label for label, s in reversed(regret.settings().items())}.values())


def _against(grid: Mapping[str, Played], default: float, tuned: float) -> list[tuple[str, str, float]]:
    """Return the best peer at its default, every other at its default, and the best of all, with what is wanted."""
    hardest = sorted(grid, key=lambda label: _mean(grid[label], "regret"))
    defaults = [label for label in hardest if label in _defaults()]
    said = [(label, "default" if at else "best default", default) for at, label in enumerate(defaults)]
    said += [(label, "stated setting", default) for label in ALSO if label in grid]
    return [*said, *((label, "best of grid", tuned) for label in hardest[:1])]


def _lost(family: str, name: str, label: str, *, seeds: Sequence[int], decisions: int, kept: bool) -> Played:
    """Return what a learner lost under each seed: none where it is absent, and of what is kept, what there is."""
    cells = {seed: Cell(family, name, label, seed, decisions) for seed in seeds}
    if kept:
        cells = {seed: cell for seed, cell in cells.items() if regret.kept(cell).exists()}
    if label in regret.settings() and regret.settings()[label].peer != peers.VW and peers.environment() is None:
        return {}
    found = {seed: regret.found(cell, make=_making(label)) for seed, cell in cells.items()}
    if found and not kept:
        print(f"  {family} {name}: {label}: {_mean(found, 'regret'):.4f} over {len(found)} seeds", flush=True)
    return found


def _making(label: str) -> Callable[[ActionSpace], Learner] | None:
    return partial(Thompson, half_life=np.inf) if label == UNFORGETTING else None


def _on(played: Played, other: Played) -> Played:
    """Return what was lost under the seeds of another."""
    return {seed: played[seed] for seed in other}


def _mean(found: Played, what: str) -> float:
    return float(np.mean([getattr(lost, what) for lost in found.values()]))


def _compared(name: str, ours: Played, theirs: Played, peer: str, said: str, most: float) -> list[Row]:  # noqa: PLR0917
    parts = [("with floor", "regret"), ("net of it", "net")][: 2 if said.startswith("best") else 1]
    return [
        _row(
            f"{name}, seeds {len(ours)}, {how}",
            ours=_mean(ours, part),
            peer=_mean(theirs, part),
            peer_name=f"{peer} ({said})",
            unit="reward",
            most=most,
        )
        for how, part in parts
    ]


def harmless(seeds: Sequence[int], *, decisions: int, kept: bool) -> list[Row]:
    """Keep still where a nudge costs a tenth of the base rate: value beside always holding, and how often it nudges."""
    rows = []
    for kind in JUDGED:
        lost = _lost("linear", "null", kind, seeds=seeds, decisions=decisions, kept=kept)
        if not lost:
            continue
        value = BASE_RATE - _mean(lost, "regret")
        rate = float(np.mean([np.mean(one.nudged) for one in lost.values()]))
        row = _row(
            f"{kind}: value, null world, seeds {len(lost)}",
            ours=value,
            peer=BASE_RATE,
            peer_name="always hold",
            unit="reward",
            most=np.inf,
        )
        rows += [Row(**{**row, "target": ">= 0.95", "met": value >= 0.95 * BASE_RATE})]
        rows.append(_bound(f"{kind}: nudge rate, null world, seeds {len(lost)}", ours=rate, unit="share", most=1.0))
    return rows


def recovering(seeds: Sequence[int], *, decisions: int, kept: bool) -> list[Row]:
    """Decisions until 90 % of the best is regained after tastes turned round, with what finds changes and without."""
    find = partial(_lost, "linear", "change", seeds=seeds, decisions=decisions, kept=kept)
    ours, without = find("thompson"), find(UNFORGETTING)
    both = ours.keys() & without.keys()
    if not both:
        return []
    taken = [float(np.mean([regained(played[seed]) for seed in both])) for played in (ours, without)]
    name = f"thompson: decisions to regain 90 % after the change, seeds {len(both)}"
    peer = f"{UNFORGETTING} (at most the run)"
    return [_row(name, ours=taken[0], peer=taken[1], peer_name=peer, unit="decisions", most=0.5)]


def regained(lost: Lost) -> float:
    """Return how many decisions after the half a policy, net of the floor, is back at 90 % of the best; all at most."""
    half = len(lost.alone) // 2
    best, alone = np.array(lost.best[half:]), np.array(lost.alone[half:])
    back = np.flatnonzero((best - alone) >= 0.9 * best)
    return 500.0 * (int(back[0]) if len(back) else len(best))


def everyone(seeds: Sequence[int], *, decisions: int, families: Sequence[str]) -> str:
    """Return what everyone lost in every world, as CSV, from what is kept: seeds are those that were played."""
    lines = ["family,world,learner,seeds,regret with floor,regret net of it"]
    for family, name in _worlds(families):
        for label in (*JUDGED, *([UNFORGETTING] if name == "change" else []), *regret.settings()):
            if lost := _lost(family, name, label, seeds=_seeds(family, name, seeds), decisions=decisions, kept=True):
                told = f"{_mean(lost, 'regret'):.5f},{_mean(lost, 'net'):.5f}"
                lines.append(f'{family},{name},"{label}",{" ".join(map(str, lost))},{told}')
    return "\n".join(lines) + "\n"


def chart(seeds: Sequence[int], *, decisions: int) -> None:
    """Draw regret as it adds up in the additive and the pairwise world, of all who have played every seed there."""
    mpl.use("agg")
    looks, played = _looks(), _seeds(*MAIN[0], seeds)
    find = partial(_lost, seeds=played, decisions=decisions, kept=True)
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), layout="constrained", sharey=True)
    for axis, (family, name) in zip(axes, MAIN, strict=True):
        for label, look in looks.items():
            lost = find(family, name, label)
            if len(lost) < len(played):
                continue
            mean = np.mean([one.floored for one in lost.values()], axis=0)
            axis.plot(500 * np.arange(1, len(mean) + 1), 500 * np.cumsum(mean), label=label, **look)
        axis.set(title=f"{name} world, mean of {len(played)} seeds", xlabel="decisions")
    axes[0].set_ylabel("cumulative regret, with floor")
    found = dict(zip(*reversed(axes[1].get_legend_handles_labels()), strict=True))
    found |= dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(FOLDER / "policies.png", dpi=110)
    plt.close(figure)


def _looks() -> dict[str, dict[str, Any]]:
    """Return how each line is drawn: ours thick; a peer has a colour, and each of its settings a pattern of dashes."""
    dashes = ["-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 4))]
    looks: dict[str, dict[str, Any]] = {
        "thompson": {"color": "black", "linewidth": 3.5, "zorder": 3},
        "squarecb": {"color": "tab:red", "linewidth": 2.0, "zorder": 4},
    }
    palette = dict(
        zip(
            dict.fromkeys(s.peer for s in peers.GRID),
            ("tab:orange", "tab:brown", "tab:purple", "tab:cyan"),
            strict=True,
        )
    )
    drawn = dict.fromkeys(palette, 0)
    for label, setting in regret.settings().items():
        looks[label] = {"color": palette[setting.peer], "linestyle": dashes[drawn[setting.peer]], "linewidth": 1.3}
        drawn[setting.peer] += 1
    return looks


def _row(name: str, *, ours: float, peer: float, peer_name: str, unit: str, most: float) -> Row:
    ratio = ours / peer if peer else 1.0
    said = f"<= 1/{1 / most:g}" if 0 < most <= 0.1 else f"<= {most:g}"
    return Row(
        name=name,
        ours=ours,
        peer=peer,
        peer_name=peer_name,
        unit=unit,
        ratio=ratio,
        target=said,
        met=bool(ratio <= most),
    )


def _bound(name: str, *, ours: float, unit: str, most: float) -> Row:
    return Row(
        name=name, ours=ours, peer=None, peer_name=None, unit=unit, ratio=None, target=f"<= {most:g}", met=ours <= most
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="in narrow worlds twice as many")
    parser.add_argument("--first", type=int, default=1, help="of the seeds")
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1_000_000, help="learned for the rate")
    parser.add_argument("--families", nargs="*", default=["linear", "simulated"], choices=["linear", "simulated"])
    parser.add_argument("--kept", action="store_true", help="play nothing: report what is kept")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="rows of the other stay as they are")
    parser.add_argument("--name", default="policies", help="of the results")
    told = parser.parse_args(arguments)
    seeds = range(told.first, told.first + told.seeds)
    if peers.environment() is None:
        print(f"absent: gittins, mabwiser, bayesianbandits: {peers.absence()}")
    play = {"decisions": told.decisions, "kept": told.kept}
    earlier = read()[told.name]["rows"] if told.name in read() else []
    speed = [row for row in earlier if not _is_of_regret(row)]
    lost = [row for row in earlier if _is_of_regret(row)]
    if "speed" in told.parts:
        speed = [*choosing(12), *choosing(30), *learning(told.rounds)]
    if "regret" in told.parts:
        lost = losing(seeds, **play, families=told.families)
        lost += [*harmless(seeds, **play), *recovering(seeds, **play)]
    write(told.name, [*speed, *lost])
    if told.name == "policies" and "regret" in told.parts:
        chart(seeds, decisions=told.decisions)
        losses = everyone(seeds, decisions=told.decisions, families=told.families)
        (FOLDER / "regret.csv").write_text(losses, encoding="utf-8")


def _is_of_regret(row: Row) -> bool:
    return any(word in row["name"] for word in ("regret", "null world", "regain"))


if __name__ == "__main__":
    main(sys.argv[1:])
