"""Does the compiled Vowpal Wabbit give the probabilities that Vowpal Wabbit itself predicts?"""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import numpy as np
import pytest

from benchmarks import results, worlds
from optimizer.actions import ActionSpace, Floats
from policies.factored import summarise
from policies.layout import layout
from policies.vowpal import CB_TYPES, Vowpal, actions, features, shared
from tests.checks import SPACE, contexts, logged, masks

ODD = ActionSpace(
    ("50 % off", "a:b|c", "7", "plain"),
    ("über", "x y"),
    ("now", "8"),
    features=("stage=new one", "12", "momentum", "a|b:c"),
)
"""Names that VW's text format reserves, names that look like numbers, and no feature called bias."""

WIDE = worlds.SPACE
"""301 actions, 18 features."""


@pytest.mark.parametrize(
    "arguments",
    [
        "--squarecb --gamma_scale 100",
        "--squarecb --gamma_scale 3 --gamma_exponent 0.3 -b 12 -l 2",
        "--squarecb --gamma_exponent 0 --epsilon 0.3",
        "--squarecb --epsilon 0.9995",
        "--epsilon 0.1 --power_t 0.3",
        "--epsilon 0.9995",
        "--bag 2",
        "--bag 3 --epsilon 0.2",
        "--bag 3 --epsilon 0.9995",
        "--bag 5 --epsilon 0.1 --random_seed 7",
        "--epsilon 0.1 --cb_type ips",
        "--epsilon 0.1 --cb_type dr",
        "--bag 3 --epsilon 0.1 --cb_type ips",
        "--bag 3 --epsilon 0.1 --cb_type=dr",
    ],
)
@pytest.mark.parametrize("space", [SPACE, ODD], ids=["plain", "odd"])
def test_compiled_probabilities_are_those_of_vw(arguments: str, space: ActionSpace) -> None:
    """Over 200 random contexts and masks, to 1e-5; with 12 bits many of the features share a weight."""
    assert _apart(_taught(arguments, space), asked=200).max() < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [*(f"--squarecb --gamma_scale {scale}" for scale in (10, 100, 1_000, 100_000)), "--epsilon 0.1", "--bag 5"],
)
def test_compiled_probabilities_are_those_of_vw_ten_thousand_times(arguments: str) -> None:
    """To 1e-5, however much costs that nearly tie are told apart: the last bit of a cost counts at 100,000."""
    assert _apart(_taught(arguments, SPACE), asked=10_000).max() < 1e-5


def test_a_policy_that_was_saved_goes_on_as_vw_does(tmp_path: Path) -> None:
    """Loaded, taught more rounds, saved, loaded again: as VW would decide with the model in the folder."""
    policy = Vowpal(SPACE)
    for seed in (3, 5, 7):
        policy.learn(logged(200, seed=seed))
        policy.save(tmp_path)
        policy = Vowpal.load(tmp_path, SPACE)
        assert _apart(policy, asked=500).max() < 1e-5


def test_under_a_newer_program_it_decides_as_vw_does(tmp_path: Path) -> None:
    """Levels and features that came, went and changed places: VW is shown the lines of the newer program."""
    _taught("--squarecb --gamma_scale 1000", SPACE).save(tmp_path)
    newer = ActionSpace(
        ("raffle", "coupon", "badge"), ("warm", "dry"), ("evening", "now"), features=("hour", "age", "momentum", "bias")
    )
    assert _apart(Vowpal.load(tmp_path, newer), asked=500).max() < 1e-5


def test_before_it_has_learned_vw_and_it_choose_evenly() -> None:
    """The same vector, whatever is allowed."""
    for arguments in ("--squarecb", "--epsilon 0.1", "--bag 3"):
        allowed = masks(50, seed=2)
        p = Vowpal(SPACE, arguments=arguments).probabilities(contexts(50, seed=1), allowed, np.zeros(SPACE.k))
        assert np.abs(p - allowed / allowed.sum(axis=1, keepdims=True)).max() < 1e-12


KEPT_TO = (
    "--squarecb",
    "--squarecb --gamma_scale 100",
    "--squarecb --gamma_scale 1000 -l 0.1",
    "--squarecb --gamma_scale 100000",
    "--squarecb --gamma_scale 1000 --epsilon 0.1",
    *(f"{explore} --cb_type {kind}" for explore in ("--epsilon 0.1", "--bag 5 --epsilon 0.1") for kind in CB_TYPES),
)
"""What is compared with VW ten thousand times: each way to explore with each way to learn, and what is served."""


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_compiled_probabilities_are_those_of_vw_in_every_way() -> None:
    """To 1e-5 in 10,000 random contexts and masks of each kind; left in `benchmarks/results/vowpal.json`."""
    rows = []
    for space, arguments in product((SPACE, WIDE), KEPT_TO):
        off = _apart(_taught(arguments, space), asked=10_000)
        for said, ours, unit, met in (
            ("rows beyond 1e-5", int((off >= 1e-5).sum()), "rows", not (off >= 1e-5).any()),
            ("largest difference", float(off.max()), "probability", bool(off.max() < 1e-5)),
        ):
            name = f"compiled VW beside VW, {space.k} actions, {arguments}: {said} of {len(off):,}"
            target = "0" if unit == "rows" else "< 1e-5"
            rows.append(
                results.Row(
                    name=name, ours=ours, peer=None, peer_name=None, unit=unit, ratio=None, target=target, met=met
                )
            )
    results.write("vowpal", rows)
    assert all(row["met"] for row in rows)


def _taught(arguments: str, space: ActionSpace) -> Vowpal:
    policy = Vowpal(space, arguments=arguments)
    rounds = logged(300, seed=3, space=space)
    policy.learn(replace(rounds, contexts=_numbers(300, seed=6, space=space)))
    return policy


def _numbers(n: int, *, seed: int, space: ActionSpace) -> Floats:
    """Shape (n, d): numbers as they come: long, short, whole, 0 of either sign, and of any size that text can have."""
    rng = np.random.default_rng(seed)
    long = 2 * rng.normal(size=(n, space.d))
    sized = np.sign(long) * 10.0 ** rng.uniform(-12, 4, long.shape)
    tiny = np.sign(long) * 10.0 ** rng.uniform(-300, -20, long.shape)
    kinds = [long, long.round(2), long.round(), np.sign(long) * 0.0, long.astype(np.float32).astype(float), sized, tiny]
    at = rng.choice(len(kinds), size=long.shape, p=[0.4, 0.15, 0.15, 0.1, 0.1, 0.07, 0.03])
    return np.choose(at, kinds)


def _apart(policy: Vowpal, *, asked: int) -> Floats:
    """Return by row (n,) how far its probabilities are from what VW predicts with the same model."""
    from vowpalwabbit import Workspace

    space = policy.space
    x, allowed = _numbers(asked, seed=4, space=space), masks(asked, seed=4, k=space.k)
    named = layout(space)
    columns, lines = features(named), actions(named)
    compiled = policy.probabilities(x, allowed, np.zeros(space.k))
    off = np.empty(asked)
    with TemporaryDirectory() as folder:
        (Path(folder) / "model").write_bytes(policy.packed().arrays["model"].tobytes())
        workspace = Workspace(f"--quiet -t -i {Path(folder) / 'model'}")
    for row, p in zip(range(len(x)), compiled, strict=True):
        context = shared(columns, named.design(x[row : row + 1])[0])
        predicted = workspace.predict([context, *(lines[a] for a in np.flatnonzero(allowed[row]))])
        off[row] = np.abs(p[allowed[row]] - predicted).max()
    workspace.finish()
    return off


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
        ("--squarecb --l1 1e-6", "weights are cut by state"),
        ("--epsilon 0.1 --l2 0.01", "weights are shrunk by state"),
        ("--squarecb --gamma_exponent -0.5", "--gamma_exponent -0.5: expected 0 to 2"),
        ("--squarecb --gamma_scale inf", "--gamma_scale inf: expected 1e-09 to 1e[+]09"),
        ("--squarecb --interactions xx", "--interactions is not supported; use --squarecb"),
        ("--epsilon", "--epsilon needs a number"),
        ("--epsilon 2", "--epsilon 2: expected 0 to 1"),
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
