"""Do the compiled trees predict what scikit-learn predicts, and find what no line follows?"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import policies
from optimizer.actions import ActionSpace, Floats
from policies import saved
from policies.boosted import Boosted, cells, compiled, walk
from policies.layout import layout
from policies.saved import Saved
from tests.checks import SPACE, contexts, logged, truth


def test_compiled_trees_predict_what_sklearn_predicts() -> None:
    """Every action of 30 contexts, to 1e-9, by machine code and by plain Python."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    rounds, named = logged(2_000, seed=1), layout(SPACE)
    rewards = rounds.rewards + 2 * (rounds.contexts[:, 4] > 0) * (rounds.actions % 3)
    features = np.concatenate([rounds.contexts, named.level_features[rounds.actions]], axis=1)
    model = HistGradientBoostingRegressor(max_iter=40, max_leaf_nodes=9, early_stopping=False, random_state=0).fit(
        features, rewards
    )
    forest = compiled(model, named)
    x = contexts(30, seed=2)
    every = np.concatenate([np.repeat(x, SPACE.k, axis=0), np.tile(named.level_features, (30, 1))], axis=1)
    expected = model.predict(every).reshape(30, SPACE.k) - model._baseline_prediction.item()
    scored = np.zeros((30, SPACE.k))
    walk(*forest[1:6], cells(forest, named), x, scored)
    assert scored == pytest.approx(expected, abs=1e-9)
    policy = Boosted(SPACE)
    policy._become(forest, gamma=1.0)
    assert policy.rewards(x) == pytest.approx(expected, abs=1e-9)


def test_effects_that_no_line_follows_are_found() -> None:
    """A nudge helps where exactly one of two signs is positive: no linear effect, and the trees choose well."""
    rounds = logged(6_000, seed=3)

    def gain(x: Floats) -> Floats:
        return np.where((x[:, 3] > 0) != (x[:, 4] > 0), 1.0, -1.0)

    rewards = rounds.rewards + np.where(rounds.actions > 0, gain(rounds.contexts), 0.0)
    policy = Boosted(SPACE)
    policy.learn(replace(rounds, rewards=rewards))
    x = contexts(300, seed=4)
    p = policy.probabilities(x, np.ones((300, SPACE.k), dtype=np.bool_), np.zeros(SPACE.k))
    worth = truth(x) + gain(x)[:, None] * (np.arange(SPACE.k) > 0)
    reached = (p * worth).sum(axis=1).mean() - worth[:, 0].mean()
    assert reached > 0.7 * (worth.max(axis=1).mean() - worth[:, 0].mean())


def test_a_policy_that_was_loaded_decides_without_sklearn(tmp_path: Path) -> None:
    """In a process of its own, with sklearn out of reach."""
    policy = Boosted(SPACE, trees=5)
    policy.learn(logged(300, seed=5))
    policy.save(tmp_path)
    code = """
        import sys; sys.modules["sklearn"] = None
        from pathlib import Path; import numpy as np, policies
        from tests.checks import SPACE, contexts, masks
        p = policies.load(Path(sys.argv[1]), SPACE).probabilities(contexts(9, seed=5), masks(9, seed=5), np.zeros(13))
        print(repr(p.tolist()))
    """
    out = subprocess.run([sys.executable, "-c", dedent(code), tmp_path], capture_output=True, text=True, check=True)
    allowed = np.ones((9, SPACE.k), dtype=np.bool_)
    assert np.shape(json.loads(out.stdout)) == allowed.shape


def test_a_level_that_is_new_is_none_that_the_trees_know(tmp_path: Path) -> None:
    """It gets what an action without any known incentive gets, and its tone and timing count."""
    policy = Boosted(SPACE, trees=20)
    policy.learn(logged(1_000, seed=6))
    policy.save(tmp_path)
    wider = ActionSpace((*SPACE.incentives, "raffle"), SPACE.tones, SPACE.timings, features=SPACE.features)
    loaded = Boosted.load(tmp_path, wider)
    x = contexts(20, seed=7)
    old = np.array([wider.index(SPACE.nudge(a)) for a in range(SPACE.k)])
    assert np.array_equal(loaded.rewards(x)[:, old], policy.rewards(x))
    new = np.setdiff1d(np.arange(wider.k), old)
    assert loaded.rewards(x)[:, new].std(axis=1).min() > 0


def test_trees_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    """A folder whose digests are right and whose trees would send the walk astray."""
    policy = Boosted(SPACE, trees=3)
    policy.learn(logged(300, seed=8))
    packed = policy.packed()
    for name, value in (("lefts", 10**6), ("rights", 0), ("columns", 99), ("roots", -1)):
        arrays = dict(packed.arrays)
        arrays[name] = arrays[name].copy()
        arrays[name][0] = value
        saved.write(tmp_path, Saved(packed.kind, packed.space, packed.settings, arrays))
        with pytest.raises(ValueError, match="lead nowhere"):
            policies.load(tmp_path, SPACE)


def test_settings_out_of_range_are_refused() -> None:
    """With the range."""
    with pytest.raises(ValueError, match="trees = 0, leaves = 15"):
        Boosted(SPACE, trees=0)


def test_few_rounds_and_one_customer_are_enough_to_fit() -> None:
    """No fold is left without a baseline, and no split is asked of three rounds."""
    rounds = replace(logged(3, seed=9), customers=np.zeros(3, dtype=np.intp))
    policy = Boosted(SPACE)
    policy.learn(rounds)
    p = policy.probabilities(contexts(2, seed=1), np.ones((2, SPACE.k), dtype=np.bool_), np.zeros(SPACE.k))
    assert p == pytest.approx(1 / SPACE.k)
