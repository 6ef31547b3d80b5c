"""Does the compiled Vowpal Wabbit give the probabilities that Vowpal Wabbit itself predicts?"""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import results
from optimizer.actions import ActionSpace, Floats
from policies.factored import summarise
from policies.layout import layout
from policies.vowpal import CB_TYPES, Vowpal, actions, features, parse, shared
from tests.checks import SPACE, contexts, logged, masks

ODD = ActionSpace(
    ("50 % off", "a:b|c", "7", "plain"),
    ("über", "x y"),
    ("now", "8"),
    features=("stage=new one", "12", "momentum", "a|b:c"),
)
"""Names that VW's text format reserves, names that look like numbers, and no feature called bias."""


@pytest.mark.parametrize(
    "arguments",
    [
        "--squarecb --gamma_scale 100",
        "--squarecb --gamma_scale 3 --gamma_exponent 0.3 -b 12 -l 2",
        "--epsilon 0.1 --power_t 0.3",
        "--bag 2",
        "--bag 3 --epsilon 0.2",
        "--bag 5 --epsilon 0.1 --random_seed 7",
        "--epsilon 0.1 --cb_type ips",
        "--epsilon 0.1 --cb_type dr",
        "--bag 3 --epsilon 0.1 --cb_type ips",
        "--bag 3 --epsilon 0.1 --cb_type=dr",
    ],
)
@pytest.mark.parametrize("space", [SPACE, ODD], ids=["plain", "odd"])
def test_compiled_probabilities_are_those_of_vw(arguments: str, space: ActionSpace, tmp_path: Path) -> None:
    """Over 200 random contexts and masks, to 1e-5; with 12 bits many of the features share a weight."""
    _is_equal(arguments, space, tmp_path, asked=200)


KEPT_TO = (
    "--squarecb",
    "--squarecb --gamma_scale 100",
    "--squarecb --gamma_scale 1000 -l 0.1",
    *(f"{explore} --cb_type {kind}" for explore in ("--epsilon 0.1", "--bag 5 --epsilon 0.1") for kind in CB_TYPES),
)
"""What is compared with VW ten thousand times: each way to explore with each way to learn, and what is served."""


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_compiled_probabilities_are_those_of_vw_ten_thousand_times(tmp_path: Path) -> None:
    """To 1e-5 in 10,000 random contexts and masks of each kind, but where VW's own arithmetic in float32 is coarser.

    What was found is left in `benchmarks/results/vowpal.json`: how many rows are beyond 1e-5, and by how much.
    """
    rows = []
    for arguments in KEPT_TO:
        off, coarse = _apart(arguments, SPACE, tmp_path, asked=10_000)
        assert (off < 1e-5 + coarse).all()
        for said, ours, unit, met in (
            ("rows beyond 1e-5", int((off >= 1e-5).sum()), "rows", not (off >= 1e-5).any()),
            ("largest difference", float(off.max()), "probability", bool(off.max() < 1e-5)),
        ):
            name = f"compiled VW beside VW, {arguments}: {said} of {len(off):,}"
            target = "0" if unit == "rows" else "< 1e-5"
            rows.append(
                results.Row(
                    name=name, ours=ours, peer=None, peer_name=None, unit=unit, ratio=None, target=target, met=met
                )
            )
    results.write("vowpal", rows)


def _is_equal(arguments: str, space: ActionSpace, folder: Path, *, asked: int) -> None:
    off, _ = _apart(arguments, space, folder, asked=asked)
    assert off.max() < 1e-5


class Apart(NamedTuple):
    """By row (n,): how far probabilities are apart, and how far rounding costs to float32 as VW does may move them."""

    off: Floats
    coarse: Floats


def _apart(arguments: str, space: ActionSpace, folder: Path, *, asked: int) -> Apart:
    from vowpalwabbit import Workspace

    policy = Vowpal(space, arguments=arguments)
    policy.learn(logged(300, seed=3, space=space))
    (folder / "model").write_bytes(policy.packed().arrays["model"].tobytes())
    workspace = Workspace(f"--quiet -t -i {folder / 'model'}")
    x, allowed = 2 * contexts(asked, seed=4, space=space), masks(asked, seed=4, k=space.k)
    named = layout(space)
    columns, lines = features(named), actions(named)
    compiled = policy.probabilities(x, allowed, np.zeros(space.k))
    off = np.empty(asked)
    for row, p in zip(range(len(x)), compiled, strict=True):
        context = shared(columns, named.design(x[row : row + 1])[0])
        predicted = workspace.predict([context, *(lines[a] for a in np.flatnonzero(allowed[row]))])
        off[row] = np.abs(p[allowed[row]] - predicted).max()
    workspace.finish()
    told = parse(arguments)
    gamma = told.gamma_scale * 300**told.gamma_exponent if told.explore == "squarecb" else 0.0
    largest = float(np.abs(policy.packed().arrays["parameters"]).max())
    sizes = largest * (4 * np.abs(x).sum(axis=1) + 6)  # of a cost's terms: hold and three levels a column; six without
    terms = 4 * x.shape[1] + 6
    second = np.sort(compiled, axis=1)[:, -2]  # dp = gamma p^2 dcost, where a cost errs by terms x eps / 2 x sizes
    coarse: Floats = gamma * second**2 * terms * np.finfo(np.float32).eps / 2.0 * sizes  # Higham (2002), eq. 3.5
    return Apart(off, coarse)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--squarecb --elim", "negative probabilities"),
        ("--regcbopt", "not a distribution"),
        ("--regcb", r"costs in \[0, 1\]"),
        ("--squarecb --large_action_space", "probability 0"),
        ("--squarecb --cb_type=dr", "--cb_type dr: expected mtr with --squarecb"),
        ("--epsilon 0.1 --cb_type sm", "--cb_type sm: expected mtr or ips or dr with --epsilon"),
        ("--cover 3", "cannot be read out"),
        ("--squarecb --bag 3", "expected one of"),
        ("-l 2", "expected one of"),
        ("--squarecb --epsilon 0.1", "VW does not use it"),
        ("--squarecb --interactions xx", "--interactions is not supported; use --squarecb"),
        ("--epsilon", "--epsilon needs a number"),
        ("--epsilon 2", r"epsilon in 0\.\.1"),
    ],
)
def test_arguments_with_known_faults_are_refused_with_the_reason(arguments: str, reason: str) -> None:
    """And those that are unknown, contradictory or out of range, before VW is started."""
    with pytest.raises(ValueError, match=reason):
        Vowpal(SPACE, arguments=arguments)


def test_adding_shards_up_is_refused_with_the_reason() -> None:
    """Merging VW's models resets SquareCB's exploration."""
    with pytest.raises(ValueError, match="merging resets SquareCB's exploration"):
        Vowpal(SPACE).absorb(summarise(SPACE, logged(10, seed=1)))


def test_a_policy_that_was_loaded_decides_without_vw(tmp_path: Path) -> None:
    """In a process of its own, with vowpalwabbit out of reach."""
    policy = Vowpal(SPACE)
    policy.learn(logged(50, seed=3))
    policy.save(tmp_path)
    code = """
        import sys; sys.modules["vowpalwabbit"] = None
        from pathlib import Path; import numpy as np, policies
        from tests.checks import SPACE, contexts, masks
        p = policies.load(Path(sys.argv[1]), SPACE).probabilities(contexts(9, seed=5), masks(9, seed=5), np.zeros(13))
        print(repr(p.tolist()))
    """
    out = subprocess.run([sys.executable, "-c", dedent(code), tmp_path], capture_output=True, text=True, check=True)
    here = policy.probabilities(contexts(9, seed=5), masks(9, seed=5), np.zeros(SPACE.k))
    assert json.loads(out.stdout) == here.tolist()
