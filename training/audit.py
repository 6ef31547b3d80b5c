"""Was the log written as it says? Joins, arms, and decisions made again: what only the raw events can show.

`training.diagnostics` asks whether a log can answer a question; this asks whether it is what it claims to be. A draw is
made again from the logged vector and the keyed number; a share of vectors is made again from the saved policy.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import chi2

from optimizer.engine import CHALLENGER, CHAMPION, EVALUATION, HOLDOUT
from optimizer.events import Salt, draws, uniform
from optimizer.floor import apply_floor
from optimizer.policy import Policy
from optimizer.program import Program
from training import events as log
from training.dataset import Dataset
from training.diagnostics import Check, Status

_BLOCK = 4_096

RESCORED = 512
"""How many rounds of each policy are scored again: enough to see any fault that one round in a hundred has."""

_FAIL, _WARN = 1e-4, 1e-2
"""False alarms: how often a sound log fails, and how often it warns."""


def joins(table: pa.Table) -> Check:
    """Check that outcomes find their decisions: those that name one, and the customers of the others.

    Args:
        table: a program's events, as `training.events.read` returns them.
    """
    decided = table.filter(pc.field("kind") == log.DECISION)
    happened = table.filter(pc.field("kind") == log.OUTCOME)
    named = happened.filter(pc.is_valid(happened["decision_id"]))
    found = _share(pc.is_in(named["decision_id"], decided["id"].combine_chunks()))
    known = _share(pc.is_in(happened["customer_id"], decided["customer_id"].combine_chunks()))
    status: Status = "fail" if found < 0.9 else "warn" if found < 0.99 or known < 0.5 else "pass"
    return Check(
        name="join rate",
        title="Outcomes find their decisions",
        status=status,
        value=found,
        finding=f"of {len(named):,} outcomes that name a decision {found:.1%} find it; of all {len(happened):,} "
        f"{known:.1%} are of customers who were decided for",
        mend=""
        if status == "pass"
        else "report outcomes with the customer_id and decision_id of the answer, and archive all of the log",
    )


def _share(found: pa.ChunkedArray) -> float:
    return float(pc.mean(found.cast(pa.float64())).as_py()) if len(found) else 1.0


def arms(table: pa.Table, program: Program) -> Check:
    """Check that customers fell to the arms in the shares that the program declares, and each stayed in its own.

    Pearson's chi-square on customers by the arm of their first decision under this version of the program.
    """
    rows = table.filter((pc.field("kind") == log.DECISION) & (pc.field("program_version") == program.version))
    rows = rows.sort_by("at")
    shares = program.experiment
    expected = {
        HOLDOUT: shares.holdout,
        CHALLENGER: shares.challenger,
        EVALUATION: shares.evaluation,
        CHAMPION: 1.0 - shares.holdout - shares.challenger - shares.evaluation,
    }
    customers, first, codes = np.unique(
        rows["customer_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_inverse=True
    )
    named = rows["arm"].to_numpy(zero_copy_only=False).astype(str)
    mine = named[first]
    moved = len(np.unique(codes[named != mine[codes]])) if len(rows) else 0
    counts = {arm: int((mine == arm).sum()) for arm in expected}
    chance = _chance(counts, expected, n=len(customers))
    status: Status = "fail" if chance < _FAIL or moved else "warn" if chance < _WARN else "pass"
    said = ", ".join(f"{arm} {counts[arm]:,} ({expected[arm]:.0%} declared)" for arm in expected if expected[arm] > 0)
    return Check(
        name="sample ratio",
        title="Arms have the customers they should",
        status=status,
        value=chance,
        finding=f"{len(customers):,} customers: {said or 'none'}; as far off by chance: {chance:.2g}"
        + (f"; {moved:,} customers changed arms" if moved else ""),
        mend="" if status == "pass" else "find what loses or moves customers: compare ids at the app, the log and here",
    )


def _chance(counts: Mapping[str, int], expected: Mapping[str, float], *, n: int) -> float:
    """Return the chance of counts this far from what was expected; 0 where an arm of share 0 has any."""
    used = [arm for arm, share in expected.items() if share > 0]
    if any(counts[arm] for arm in expected if arm not in used):
        return 0.0
    if n == 0 or len(used) < 2:
        return 1.0
    off = sum((counts[a] - n * expected[a]) ** 2 / (n * expected[a]) for a in used)
    return float(chi2.sf(off, len(used) - 1))


def replay(table: pa.Table, salt: Salt | None, *, program: str) -> Check:
    """Check that each logged vector and its keyed number give the logged action, bit for bit.

    Args:
        table: a program's events.
        salt: the secret that keyed the draws; None where it is not at hand.
        program: its name.
    """
    rows = table.filter(pc.field("kind") == log.DECISION)
    if salt is not None:
        rows = rows.filter(pc.field("salt_id") == salt.id)
    if salt is None or not len(rows):
        finding = "no draw can be made again: the salt that keyed them is not in this store"
        return Check(name="replay", title="Draws can be made again", status="pass", value=np.nan, finding=finding)
    wrong = [
        i for start in range(0, len(rows), _BLOCK) for i in _differ(rows.slice(start, _BLOCK), salt, program=program)
    ]
    first = f"; the first is decision {wrong[0]}" if wrong else ""
    return Check(
        name="replay",
        title="Draws can be made again",
        status="fail" if wrong else "pass",
        value=float(len(wrong)),
        finding=f"{len(rows) - len(wrong):,} of {len(rows):,} draws come out as logged{first}",
        mend="the vector or the action was changed after the draw: restore the archive from a backup" if wrong else "",
    )


def _differ(rows: pa.Table, salt: Salt, *, program: str) -> list[str]:
    """Return the ids of decisions whose draw gives another action."""
    wrong = []
    for fact in rows.select(["id", "customer_id", "action", "probabilities"]).to_pylist():
        vector = np.frombuffer(fact["probabilities"], dtype="<f4")[None, :]
        u = uniform(salt, "draw", program=program, customer_id=fact["customer_id"], decision_id=fact["id"])
        if int(draws(vector, np.array([u]))[0]) != fact["action"]:
            wrong.append(str(fact["id"]))
    return wrong


def rescoring(whole: Dataset, policies: Mapping[str, Policy]) -> Check:
    """Check that saved policies give the vectors that were logged: from the context, the mask and the prices.

    Args:
        whole: every decision of this version of the program, matured or not.
        policies: by logger, as `name@version`; what is not among them cannot be scored again.
    """
    program, rounds = whole.program, whole.rounds
    scored, off, far = 0, 0, 0.0
    for code, logger in enumerate(whole.loggers):
        rows = np.flatnonzero(rounds.loggers == code)
        if logger not in policies or not len(rows):
            continue
        part = rounds.take(rows[:: max(1, len(rows) // RESCORED)])
        said = policies[logger].probabilities(part.contexts, part.allowed, part.prices(program.space))
        again = apply_floor(said, program.space, allowed=part.allowed, exploration=program.exploration)
        gaps = np.abs(again.astype(np.float32) - part.probabilities).max(axis=1)
        scored, off, far = scored + len(part), off + int((gaps > 1e-6).sum()), max(far, float(gaps.max()))
    if not scored:
        finding = "no vector can be made again: none of the policies that chose is in the registry"
        return Check(
            name="rescoring", title="Saved policies agree with the log", status="pass", value=np.nan, finding=finding
        )
    return Check(
        name="rescoring",
        title="Saved policies agree with the log",
        status="fail" if off > 0.01 * scored else "warn" if off else "pass",
        value=far,
        finding=f"{scored - off:,} of {scored:,} vectors come out as logged; furthest off by {far:.2g}",
        mend="what served was not what was saved, or the context was not logged as seen" if off else "",
    )
