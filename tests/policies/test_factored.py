"""Is the factored model's arithmetic right, and does it find the effects that are there, and no others?"""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Floats, Nudge
from optimizer.policy import Rounds
from policies.factored import Statistics, summarise
from policies.greedy import Greedy
from policies.layout import layout
from policies.posterior import Moments, committee, fit, marginals, solve
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from tests.checks import BEST, SPACE, contexts, logged, truth

ONE = ActionSpace(("badge",), ("warm",), ("now",), features=("bias",))
"""Hold and one nudge, whose effect is the sum of seven parameters: nudge, three levels, three pairs."""


def rounds_of(space: ActionSpace, x: Floats, p: Floats, actions: list[int], rewards: list[float]) -> Rounds:
    """Return rounds of as many customers, an hour apart."""
    n = len(actions)
    return Rounds(
        contexts=x,
        allowed=np.ones((n, space.k), dtype=np.bool_),
        probabilities=p.astype(np.float32),
        actions=np.array(actions, dtype=np.intp),
        rewards=np.array(rewards, dtype=float),
        customers=np.arange(n),
        at=3600.0 * np.arange(n, dtype=np.float64),
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.zeros(n, dtype=np.intp),
    )


def three_rounds() -> Rounds:
    """Nudge, hold, nudge at even odds; rewards 1, 0, 2; three customers in three folds."""
    return rounds_of(ONE, np.ones((3, 1)), np.full((3, 2), 0.5), [1, 0, 1], [1.0, 0.0, 2.0])


def test_posterior_after_three_rounds_is_the_one_worked_out_by_hand() -> None:
    """Baseline, centring and posterior, by arithmetic.

    The baseline of each customer is a ridge of weight 1 over the other two: (0+2)/3, (1+2)/3 and (1+0)/3, which leaves
    1/3, -1 and 5/3. Centred features are 1-0.5, 0-0.5 and 1-0.5, so sum g e = 1/6 + 1/2 + 5/6 = 3/2 and sum g g = 3/4.
    Jointly with a baseline of the same ridge over all: sum g g = 2 - 2x2/(3+1) = 1 and sum g r = 3 - 2x3/(3+1) = 3/2.
    A round counts t in the one and u in the other, so these add up to R = 3 (t + u) / 2 and W = t + 3 u / 4. The effect
    is a sum of seven parameters with prior variances adding up to V, so its posterior is Gaussian with mean
    V R / (s + V W) and variance V s / (s + V W), where s is the noise variance.
    """
    posterior = fit(summarise(ONE, three_rounds()))
    v = (posterior.prior.scales**2)[layout(ONE).groups].sum()
    s = posterior.noise**2
    t, u = posterior.trust, posterior.rest
    r, w = 1.5 * (t + u), t + 0.75 * u
    assert 0.9 < t <= t + u <= 1.0
    assert posterior.mean.sum() == pytest.approx(v * r / (s + v * w), rel=1e-9)
    assert posterior.covariance.sum() == pytest.approx(v * s / (s + v * w), rel=1e-9)
    assert posterior.baseline == pytest.approx([(1 + 0 + 2) / (3 + 1)])


def test_sums_of_three_rounds_are_those_of_the_definition() -> None:
    """Over a larger space, against plain products of the features, centred and not, the context and its squares."""
    rounds = logged(37, seed=5)
    named, s = layout(SPACE), summarise(SPACE, rounds)
    p = rounds.probabilities / rounds.probabilities.sum(axis=1, keepdims=True)
    features = np.concatenate([named.level_features, named.pair_features], axis=1)
    centred = features[rounds.actions] - p @ features
    g, h = centred[:, : len(named.levels)], centred[:, len(named.levels) :]
    x = rounds.contexts
    z = np.concatenate([(g[:, :, None] * x[:, None, :]).reshape(len(x), -1), h], axis=1)
    assert s.zz == pytest.approx(z.T @ z, abs=1e-5)
    y = np.concatenate([x, x[:, named.numbers] ** 2], axis=1)
    assert len(named.baseline) == y.shape[1] > x.shape[1]
    assert s.zy.sum(axis=0) == pytest.approx(z.T @ y, abs=1e-5)
    drawn = features[rounds.actions]
    mains = drawn[:, : len(named.levels), None] * x[:, None, :]
    u = np.concatenate([mains.reshape(len(x), -1), drawn[:, len(named.levels) :]], axis=1)
    assert s.uu == pytest.approx(u.T @ u)
    assert s.uy == pytest.approx(u.T @ y)
    assert s.ur == pytest.approx(u.T @ rounds.rewards)
    assert s.zr.sum(axis=0) == pytest.approx(z.T @ rounds.rewards, abs=1e-5)
    assert s.yy.sum(axis=0) == pytest.approx(y.T @ y)
    assert s.yr.sum(axis=0) == pytest.approx(y.T @ rounds.rewards)
    assert s.rr.sum() == pytest.approx(rounds.rewards @ rounds.rewards)
    mine = rounds.customers % 5 == 2
    assert s.n[2] == mine.sum()
    assert s.zr[2] == pytest.approx(z[mine].T @ rounds.rewards[mine], abs=1e-5)


def test_a_bias_is_added_where_the_space_has_none() -> None:
    """And the same effects are found as with a feature called bias."""
    rounds = logged(300, seed=6)
    without = replace(SPACE, features=SPACE.features[1:])
    assert layout(without).columns == ("bias", *without.features)
    given, added = Greedy(SPACE), Greedy(without)
    given.learn(rounds)
    added.learn(replace(rounds, contexts=rounds.contexts[:, 1:]))
    x = contexts(20, seed=7)
    assert added.effects(x[:, 1:]) == pytest.approx(given.effects(x), abs=1e-9)


def test_shards_of_two_program_versions_add_up_by_name() -> None:
    """Sums over rounds before and after a level was added are those over all rounds in the space that has it."""
    before, after = logged(200, seed=8), logged(150, seed=9)
    older = ActionSpace(SPACE.incentives[:2], SPACE.tones, SPACE.timings, features=SPACE.features[::-1])
    kept = np.array([SPACE.index(older.nudge(a)) for a in range(older.k)])
    known = before.take(np.isin(before.actions, kept))
    p = known.probabilities[:, kept] / known.probabilities[:, kept].sum(axis=1, keepdims=True)
    actions = np.searchsorted(kept, known.actions)
    assert (kept == np.sort(kept)).all()
    narrow = replace(
        known, contexts=known.contexts[:, ::-1], allowed=known.allowed[:, kept], probabilities=p, actions=actions
    )
    wide_p = np.zeros_like(known.probabilities)
    wide_p[:, kept] = p
    wide = replace(known, probabilities=wide_p)
    joined = summarise(SPACE, after) + summarise(older, narrow)
    assert joined.layout == layout(SPACE)
    expected = summarise(SPACE, after) + summarise(SPACE, wide)
    for name, array in joined.sums.items():
        assert array == pytest.approx(expected.sums[name], abs=1e-4), name


def test_a_round_counts_half_after_a_half_life() -> None:
    """Sums at the time of the latest round; adding shards up in either order forgets alike."""
    rounds = three_rounds()  # at 0 h, 1 h and 2 h
    s = summarise(ONE, rounds, half_life=3600.0)
    assert s.n.sum() == pytest.approx(0.25 + 0.5 + 1.0)
    assert s.rr.sum() == pytest.approx(0.25 * 1 + 0.5 * 0 + 1.0 * 4)
    first, last = (summarise(ONE, rounds.take(slice(a, b)), half_life=3600.0) for a, b in ((0, 1), (1, 3)))
    for joined in (first + last, last + first):
        for name, array in joined.sums.items():
            assert array == pytest.approx(s.sums[name])
        assert joined.fingerprint == s.fingerprint
    with pytest.raises(ValueError, match=r"half-lives differ: 3600\.0 and None"):
        first + summarise(ONE, rounds)


def test_a_fingerprint_is_that_of_the_rounds_in_any_order() -> None:
    """And another set of rounds has another."""
    rounds = logged(50, seed=10)
    shuffled = rounds.take(np.random.default_rng(1).permutation(50))
    assert summarise(SPACE, rounds).fingerprint == summarise(SPACE, shuffled).fingerprint
    other = replace(rounds, rewards=rounds.rewards + (np.arange(50) == 3) * 1e-9)
    assert summarise(SPACE, rounds).fingerprint != summarise(SPACE, other).fingerprint


def engaged_customers_convert(n: int, *, seed: int) -> Rounds:
    """Engagement decides the reward, in a step that no line follows, and who is nudged. Nudges do nothing."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=n)])
    p = np.where(x[:, 1:] > 1, [0.1, 0.9], [0.7, 0.3])
    actions = (rng.random(n) < p[:, 1]).astype(int).tolist()
    rewards = (2.0 * (x[:, 1] > 1) + 0.1 * rng.normal(size=n)).tolist()
    return rounds_of(replace(ONE, features=("bias", "engaged")), x, p, actions, rewards)


def test_that_engaged_customers_convert_is_not_taken_for_an_effect() -> None:
    """Regressing the reward on context and nudge finds an effect of about 0.4; centred, about 0."""
    space = replace(ONE, features=("bias", "engaged"))
    rounds = engaged_customers_convert(20_000, seed=11)
    x, nudged = rounds.contexts, (rounds.actions > 0).astype(float)
    uncentred = np.linalg.lstsq(np.column_stack([x, nudged]), rounds.rewards, rcond=None)[0][-1]
    policy = Greedy(space)
    policy.learn(rounds)
    effect = policy.effects(np.array([[1.0, 0.0]]))[0, 1]
    assert uncentred > 0.3
    assert abs(effect) < 0.03  # three standard errors: 2 sd of the reward over sqrt(20,000 x 0.2)


def test_levels_of_reward_are_trusted_only_where_they_agree_with_what_is_centred() -> None:
    """Not where engagement decides both in a step; nearly wholly where the baseline is a line or a parabola."""
    space = replace(ONE, features=("bias", "engaged"))
    stepped = engaged_customers_convert(20_000, seed=11)
    assert fit(summarise(space, stepped)).trust < 1e-6
    x = stepped.contexts[:, 1]
    chance = np.random.default_rng(12).normal(size=len(x))
    for baseline in (2.0 * x, x**2 - x):
        posterior = fit(summarise(space, replace(stepped, rewards=baseline + 0.1 * chance)))
        assert posterior.trust > 0.9
        assert abs(posterior.mean[: len(layout(space).levels) * 2 : 2].sum()) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_baseline_is_found_out_where_only_one_level_follows_it(seed: int) -> None:
    """Customers who convert anyway are sent one incentive more often, and nothing has an effect: none is found."""
    rounds = logged(12_000, seed=seed)
    x, level = rounds.contexts[:, 3], SPACE.levels[:, 0] == 1
    odds = np.where(level & (np.abs(x - 0.4) < 0.3)[:, None], 8.0, 1.0) * rounds.allowed
    p = odds / odds.sum(axis=1, keepdims=True)
    rng = np.random.default_rng([seed, 1])
    actions = (np.cumsum(p, axis=1) < rng.random((len(p), 1))).sum(axis=1)
    rewards = 2.0 * (np.abs(x - 0.4) < 0.3) + 0.1 * rng.normal(size=len(p))
    biased = replace(rounds, probabilities=p.astype(np.float32), actions=actions, rewards=rewards)
    policy = Greedy(SPACE)
    policy.learn(biased)
    posterior = fit(policy.model.statistics)
    assert posterior.trust < 1e-3
    assert 0.5 < posterior.trust + posterior.rest < 1.0  # the centred one counts instead, less as its noise is larger
    assert np.abs(policy.effects(contexts(200, seed=1)).mean(axis=0)).max() < 0.15


@pytest.mark.parametrize("seed", range(4))
def test_that_a_policy_has_become_better_is_no_reason_to_distrust_levels(seed: int) -> None:
    """At first all nudges, then mostly the best: what the centred regression leaves to chance is the change itself."""
    early, late = logged(300, seed=seed), logged(3_000, seed=seed + 50)
    best = SPACE.index(BEST)
    late = late.take(np.flatnonzero(late.allowed[:, best]))
    p = np.where(np.arange(SPACE.k) == best, 0.9, 0.0) + 0.1 * late.probabilities
    rng = np.random.default_rng([seed, 2])
    actions = (np.cumsum(p, axis=1) < rng.random((len(p), 1))).sum(axis=1)
    late = replace(late, probabilities=p.astype(np.float32), actions=actions)
    both = summarise(SPACE, _rewarded(early, rng)) + summarise(SPACE, _rewarded(late, rng))
    assert fit(both).trust > 0.9


def _rewarded(rounds: Rounds, rng: np.random.Generator) -> Rounds:
    """Return rounds whose nudges are worth five times what they are in the made-up world."""
    x, a = rounds.contexts, np.arange(len(rounds))
    gains = 5.0 * (truth(x) - 1.0 - x[:, 3:4])[a, rounds.actions]
    return replace(rounds, rewards=x[:, 3] + gains + 0.3 * rng.normal(size=len(a)))


def test_prior_scales_are_found_from_the_rounds() -> None:
    """Effects that are there get room, effects that are not are shrunk to little; the noise is that of the world."""
    posterior = fit(summarise(SPACE, logged(6_000, seed=12)))
    levels, slopes = posterior.prior.scales[[2, 4, 6]], posterior.prior.scales[[3, 5, 7]]
    assert (levels > 2 * slopes).all()
    assert posterior.noise == pytest.approx(0.5, rel=0.05)
    assert 5 < posterior.freedom < 40


def test_one_unit_of_money_is_as_good_as_another() -> None:
    """Rewards and prices in cents: the same probabilities as in euros."""
    rounds, x = logged(500, seed=13), contexts(30, seed=14)
    allowed, prices = np.ones((30, SPACE.k), dtype=np.bool_), np.linspace(0, 0.3, SPACE.k)
    for kind in (Thompson, SquareCB, Greedy):
        euros, cents = kind(SPACE), kind(SPACE)
        euros.learn(rounds)
        cents.learn(replace(rounds, rewards=rounds.rewards * 100))
        if kind is not Thompson:  # its draws are keyed by the rewards
            assert cents.probabilities(x, allowed, prices * 100) == pytest.approx(
                euros.probabilities(x, allowed, prices), abs=1e-6
            )
        assert cents.effects(x) == pytest.approx(100 * euros.effects(x), rel=1e-6)


def test_rewards_that_are_all_the_same_teach_nothing_and_break_nothing() -> None:
    """No variance, no scale: hold and nudges stay possible."""
    rounds = replace(logged(200, seed=15), rewards=np.zeros(200))
    policy = Thompson(SPACE)
    policy.learn(rounds)
    p = policy.probabilities(contexts(5, seed=1), np.ones((5, SPACE.k), dtype=np.bool_), np.zeros(SPACE.k))
    assert np.isfinite(p).all()
    assert (p > 0).sum(axis=1).min() > 3
    assert np.abs(policy.effects(contexts(5, seed=1))).max() < 1e-9


def flipped(rounds: Rounds, *, at: float) -> Rounds:
    """What was best becomes worst from a time on."""
    nudged = rounds.actions > 0
    away = rounds.rewards - 2 * np.where(nudged, rounds.rewards - 1 - rounds.contexts[:, 3], 0.0)
    return replace(rounds, rewards=np.where((rounds.at > at) & nudged, away, rounds.rewards))


def test_forgetting_follows_a_change_of_taste() -> None:
    """After taste has flipped for a fifth of the time, what forgets or finds the change knows; the rest averages."""
    rounds = flipped(logged(3_000, seed=16), at=0.8e6)
    best = SPACE.index(Nudge("coupon", "warm", "evening"))
    steady, forgetting, finding = (Greedy(SPACE, half_life=h) for h in (np.inf, 0.04e6, None))
    for policy in (steady, forgetting, finding):
        policy.learn(rounds)
    x = contexts(50, seed=17)
    assert steady.effects(x)[:, best].mean() > 0.1
    assert forgetting.effects(x)[:, best].mean() < -0.1
    assert finding.effects(x)[:, best].mean() < -0.3
    with pytest.raises(ValueError, match="half_life must be positive"):
        Greedy(SPACE, half_life=0.0)


def test_draws_are_repeated_by_the_rounds_alone() -> None:
    """The same rounds give the same committee; its mean and spread are those of the posterior."""
    posterior = fit(summarise(SPACE, logged(400, seed=18)))
    drawn = committee(posterior, members=4_000, boldness=1.0).astype(float)
    assert np.array_equal(drawn, committee(posterior, members=4_000, boldness=1.0))
    deviations = np.sqrt(np.diag(posterior.covariance))
    assert np.abs((drawn.mean(axis=1) - posterior.mean) / deviations).max() < 5 / np.sqrt(4_000)
    assert drawn.std(axis=1) == pytest.approx(deviations, rel=0.1)
    bolder = committee(posterior, members=4_000, boldness=2.0).astype(float)
    assert np.allclose(bolder - posterior.mean[:, None], 2 * (drawn - posterior.mean[:, None]), atol=1e-4)
    another = fit(summarise(SPACE, logged(400, seed=19)))
    assert not np.allclose(committee(another, members=64, boldness=1.0)[:, 0], drawn[:, 0])


@pytest.mark.parametrize("seed", range(12))
def test_no_scale_of_features_or_rewards_breaks_the_arithmetic(seed: int) -> None:
    """Columns from 1e-6 to 1e7, twice the same or always 0; rewards from 1e-6 to 1e6; down to one round."""
    rng = np.random.default_rng(seed)
    rounds = logged(int(rng.choice([1, 3, 40, 400])), seed=seed)
    x = rounds.contexts * 10.0 ** rng.integers(-6, 8, size=SPACE.d)
    x[:, 2], x[:, 4] = x[:, 1], 0.0
    policy = Thompson(SPACE)
    policy.learn(replace(rounds, contexts=x, rewards=rounds.rewards * 10.0 ** rng.integers(-6, 7)))
    p = policy.probabilities(x, rounds.allowed, np.zeros(SPACE.k))
    assert np.isfinite(p).all()
    assert p.sum(axis=1) == pytest.approx(1)
    assert (p[~rounds.allowed] == 0).all()


def test_an_empty_summary_adds_nothing() -> None:
    """Whatever the half-life."""
    s = summarise(SPACE, logged(30, seed=20), half_life=100.0)
    joined = Statistics.empty(layout(SPACE), half_life=100.0) + s
    assert joined.as_of == s.as_of
    assert all(np.array_equal(array, s.sums[name]) for name, array in joined.sums.items())


def regret(policy: Thompson | SquareCB | Greedy, gains: Floats, *, space: ActionSpace, seed: int) -> float:
    """Return the mean regret of 2,000 decisions in batches of 200, relative to choosing evenly among all actions."""
    rng = np.random.default_rng(seed)
    lost = evenly = 0.0
    for _ in range(10):
        x = np.column_stack([np.ones(200), rng.normal(size=200)])
        allowed = rng.random((200, space.k)) < 0.8
        allowed[:, 0] = True
        worth = np.where(allowed, gains, -np.inf)
        p = policy.probabilities(x, allowed, np.zeros(space.k))
        p = 0.9 * p + 0.1 * allowed / allowed.sum(axis=1, keepdims=True)
        actions = (np.cumsum(p, axis=1) < rng.random((200, 1))).sum(axis=1)
        best = worth.max(axis=1)
        lost += float((best - (p * np.where(allowed, gains, 0)).sum(axis=1)).sum())
        evenly += float((best - np.where(allowed, gains, 0).sum(axis=1) / allowed.sum(axis=1)).sum())
        rewards = x[:, 1] + gains[actions] + 0.5 * rng.normal(size=200)
        policy.learn(rounds_of(space, x, p, actions.tolist(), rewards.tolist()))
    return lost / evenly


@pytest.mark.parametrize("kind", [Thompson, SquareCB, Greedy])
def test_regret_in_a_pairwise_world_is_far_below_choosing_evenly(kind: type[Thompson | SquareCB | Greedy]) -> None:
    """Gains come from pairs of levels, not from levels alone."""
    space = ActionSpace(tuple("abcd"), tuple("uvw"), tuple("xyz"), features=("bias", "age"))
    gains = np.zeros(space.k)
    for action in range(1, space.k):
        i, t, m = space.levels[action]
        gains[action] = 0.5 * ((i + t) % 3 == 0) + 0.5 * ((t + m) % 3 == 1) - 0.4
    assert regret(kind(space), gains, space=space, seed=21) < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_marginals_are_those_of_the_whole_posterior(seed: int) -> None:
    """Mean and variances, with as few rounds as parameters and with many."""
    rng = np.random.default_rng(seed)
    p = 60
    z = rng.normal(size=(p if seed % 2 else 900, p)) * 10.0 ** rng.uniform(-3, 3, p)
    moments = Moments(z.T @ z, z.T @ rng.normal(size=len(z)), 1.0, float(len(z)))
    variances, noise = 10.0 ** rng.uniform(-6, 2, p), 10.0 ** rng.uniform(-4, 2)
    mean, covariance = solve(moments, variances=variances, noise=noise)
    found, errors = marginals(moments, variances=variances, noise=noise)
    size = np.sqrt(np.diag(covariance))
    assert found / size == pytest.approx(mean / size, abs=1e-6)
    assert errors == pytest.approx(np.diag(covariance), rel=1e-9)
