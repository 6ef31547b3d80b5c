"""What do the sums say, and how surely? The posterior of the factored model, its prior scales found from the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from optimizer.actions import Floats, Floats32, Ints
from policies.factored import FOLDS, Statistics
from policies.ladders import Ladders
from policies.layout import BIAS, GROUPS, PAIRS, Layout, Parameter
from policies.threads import one_thread

EXPECTED = np.array([0.2, 0.05, 0.2, 0.05, 0.2, 0.05, 0.2, 0.05, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
"""Expected size of an effect by group of parameters, in standard deviations of the reward, before any data."""

STRENGTH = 0.25
"""How many parameters' worth of evidence `EXPECTED` is."""

ALIKE = np.array([0, 1, 0, 1, 0, 1, 0, 1, 2, 2, 2, 3, 3, 3, 3])
"""Of which kind each group is: levels, slopes, pairs, slopes by segment. One tells how large others of its kind are."""

POOLED = 16.0
"""How many parameters' worth of evidence about a group its kind is: more than the few levels of a factor are."""

TAILS = np.where(ALIKE % 2, 4.0, np.inf)
"""Degrees of freedom of Student's t by group, infinite for a Gaussian: most slopes are small, and a few are not."""

DOUBT = 0.001
"""Odds, before any data, that the levels of reward mislead about one group of effects."""

_MOST_STEPS, _FEW_STEPS, _CLOSE = 50, 3, 1e-3
_LARGEST_LOG = 500.0
_NOT_POSITIVE = "the sums over rounds are not positive: were they changed after they were summed up?"


@dataclass(frozen=True)
class Prior:
    """How large effects are expected to be, by name.

    Args:
        layout: the names of the parameters.
        scales: (groups,), standard deviation of an effect, by group.
        column_scales: (d,), typical size of a column where it is not 0.
    """

    layout: Layout
    scales: Floats
    column_scales: Floats

    @property
    def units(self) -> Floats:
        """Shape (p,): by what a parameter is multiplied to be an effect on a typical context."""
        pairs = len(self.layout.parameters) - self.layout.mains
        return np.concatenate([np.tile(self.column_scales, len(self.layout.levels)), np.ones(pairs)])


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the effects of levels and pairs, `p` parameters.

    Args:
        prior: its names and the scales found for them.
        mean: (p,). covariance: (p, p).
        baseline: (d,), of `m(x)`.
        noise: standard deviation of the reward around the model.
        freedom: how many parameters the data have determined.
        n: the weight of the rounds behind it.
        fingerprint: of those rounds.
        trust: how far it was believed that differences between customers tell of effects, 0 to 1: what a round counts
            in the joint regression.
        rest: what a round counts in the centred one.
    """

    prior: Prior
    mean: Floats
    covariance: Floats
    baseline: Floats
    noise: float
    freedom: float
    n: float
    fingerprint: int
    trust: float
    rest: float


class Moments(NamedTuple):
    """The regression of what the baseline leaves, in units of effects: sums of z z', z e and e e."""

    zz: Floats
    ze: Floats
    ee: float
    n: float


def fit(statistics: Statistics) -> Posterior:
    """Return the posterior given the sums.

    Prior scales and noise are those of greatest marginal likelihood (MacKay 1992, eq. 4.10), under a weak prior that
    keeps a group from vanishing while the data say little about it. The regression on levels of reward counts by the
    weight `trust`, the centred one by the rest, less as its noise is larger: their sum is at most one round a round.
    """
    import scipy.linalg  # noqa: F401  (brings a BLAS of its own, which is limited only if it is there)

    with one_thread():
        return _fit(statistics)


def _fit(s: Statistics) -> Posterior:
    column_scales, spread = _column_scales(s), spread_of_reward(s)
    units = Prior(s.layout, np.empty(GROUPS), column_scales).units
    joint, centred = _levels(s, units=units), _left_by_baseline(s, units=units)
    groups = s.layout.groups
    start = _Scales((EXPECTED * spread) ** 2, spread**2, np.ones(len(groups)))
    found = _scales(joint, start, groups=groups, expected=start)
    met = s.uu / np.multiply.outer(units, units)
    alone = found._replace(noise=_noise_alone(centred, found, groups=groups))
    trust = _trust(joint, centred, found, alone=alone, groups=groups, met=met)
    rest = (1.0 - trust) * found.noise / alone.noise
    moments = mixed(joint, centred, trust=trust, rest=rest)
    found = _scales(moments, found, groups=groups, expected=start)
    mean, covariance = solve(moments, variances=found.each(groups), noise=found.noise)
    return Posterior(
        prior=Prior(s.layout, np.sqrt(found.variances), column_scales),
        mean=mean / units,
        covariance=covariance / np.multiply.outer(units, units),
        baseline=_baseline(s),
        noise=float(np.sqrt(found.noise)),
        freedom=float(_known(np.diag(covariance), groups, variances=found.each(groups)).sum()),
        n=moments.n,
        fingerprint=s.fingerprint,
        trust=trust,
        rest=rest,
    )


class _Scales(NamedTuple):
    """Variances (groups,) of effects, of the noise, and how many times its group's each parameter's is (p,)."""

    variances: Floats
    noise: float
    times: Floats

    def each(self, groups: Ints) -> Floats:
        """Shape (p,): the variance of each parameter."""
        variances: Floats = self.variances[groups] * self.times
        return variances


def _scales(moments: Moments, start: _Scales, *, groups: Ints, expected: _Scales) -> _Scales:
    """Return the scales of greatest marginal likelihood, from a start; those expected count as a little evidence.

    A slope's variance is its own as far as the data tell it: a Gaussian of unknown width is Student's t (West 1987).
    """
    scales, tails = start, TAILS[groups]
    for _ in range(_MOST_STEPS):
        mean, errors = marginals(moments, variances=scales.each(groups), noise=scales.noise)
        known = _known(errors, groups, variances=scales.each(groups))
        squares = np.bincount(groups, mean**2 / scales.times, GROUPS).astype(np.float64)
        variances = _variances(squares, known, expected=expected.variances)
        noise = _noise(moments, mean=mean, known=float(known.sum()), expected=expected.noise)
        wide = (mean**2 + errors) / variances[groups]
        found = _Scales(variances, noise, 1.0 + (wide - 1.0) / (tails + 1.0))
        moved = np.abs(np.log(np.append(variances, noise) / np.append(scales.variances, scales.noise))).max()
        scales = found
        if moved < _CLOSE:
            break
    return scales


def _variances(squares: Floats, known: Floats, *, expected: Floats) -> Floats:
    """Return the variance of each group from its squared effects: drawn to its kind's, and that to what is expected."""
    size, count = (np.bincount(ALIKE, sums)[ALIKE] for sums in (squares / expected, known))
    kind = expected * (STRENGTH + size) / (STRENGTH + count)
    variances: Floats = (POOLED * kind + squares) / (POOLED + known)
    return variances


def _noise_alone(centred: Moments, scales: _Scales, *, groups: Ints) -> float:
    """Return the variance of the reward around the centred regression: that of the joint one at least.

    More, while the policy changes: its baseline knows the customer, not that what is sent has become better.
    """
    noise, variances = scales.noise, scales.each(groups)
    for _ in range(_FEW_STEPS):
        mean, errors = marginals(centred, variances=variances, noise=noise)
        known = float(_known(errors, groups, variances=variances).sum())
        noise = max(_noise(centred, mean=mean, known=known, expected=scales.noise), scales.noise)
    return noise


def _trust(joint: Moments, centred: Moments, scales: _Scales, *, alone: _Scales, groups: Ints, met: Floats) -> float:
    """Return the probability that the levels of reward tell of effects what the centred regression tells.

    Both say what each feature of the nudges that were sent was worth to those who were sent it: `met` (p, p), the sums
    of u u'. Where the baseline is right, they differ by chance, by no more than the centred one errs (Hausman
    1978). Where it is wrong, some group of features differs by more: by how much more is what makes it likeliest.
    """
    variances = scales.each(groups)
    within, covariance = solve(centred, variances=variances, noise=alone.noise)
    gap = within - marginals(joint, variances=variances, noise=scales.noise)[0]
    odds = 0.0
    for group in np.unique(groups):
        at = np.flatnonzero((groups == group) & (np.diag(met) > 0))
        if not len(at):
            continue
        worth = met[at] / np.sqrt(met[at, at])[:, None]
        differs, errs = worth @ gap, worth @ covariance @ worth.T
        errs[np.diag_indices_from(errs)] += 1e-6 * errs.trace() / len(at)  # columns that add up to another
        distance = float(differs @ np.linalg.solve(errs, differs)) / len(at)
        if distance > 1.0:
            odds += np.exp(min(0.5 * len(at) * (distance - 1.0 - np.log(distance)), _LARGEST_LOG)) - 1.0
    return float(1.0 / (1.0 + DOUBT * odds))


def mixed(joint: Moments, centred: Moments, *, trust: float, rest: float) -> Moments:
    return Moments(
        trust * joint.zz + rest * centred.zz,
        trust * joint.ze + rest * centred.ze,
        trust * joint.ee + rest * centred.ee,
        joint.n,
    )


def solve(moments: Moments, *, variances: Floats, noise: float) -> tuple[Floats, Floats]:
    """Return mean (p,) and covariance (p, p): Bishop (2006), eq. 3.50 and 3.51."""
    from scipy.linalg import lapack  # only where something is learned

    inverse, failed = lapack.dpotri(_root(moments, variances=variances, noise=noise), lower=1, overwrite_c=1)
    if failed:
        raise ValueError(_NOT_POSITIVE)
    covariance = np.tril(inverse) + np.tril(inverse, -1).T
    return covariance @ moments.ze / noise, covariance


def marginals(moments: Moments, *, variances: Floats, noise: float) -> tuple[Floats, Floats]:
    """Return mean (p,) and variances (p,), as `solve` does, without what else is in the covariance: a third quicker."""
    from scipy.linalg import lapack  # only where something is learned

    lower = _root(moments, variances=variances, noise=noise)
    mean, _ = lapack.dpotrs(lower, moments.ze / noise, lower=1)
    inverse, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed:
        raise ValueError(_NOT_POSITIVE)
    return mean, np.einsum("ij,ij->j", inverse, inverse)


def _root(moments: Moments, *, variances: Floats, noise: float) -> Floats:
    """Return the Cholesky factor (p, p) of the precision, zero above its diagonal."""
    from scipy.linalg import lapack  # only where something is learned

    precision = moments.zz / noise
    precision[np.diag_indices_from(precision)] += 1.0 / variances
    lower, failed = lapack.dpotrf(precision, lower=1, overwrite_a=1)
    if failed:
        raise ValueError(_NOT_POSITIVE)
    found: Floats = lower
    return found


def _known(errors: Floats, groups: Ints, *, variances: Floats) -> Floats:
    """Shape (groups,): how many of each group's parameters (p,) the data determine; MacKay's gamma."""
    known: Floats = np.clip(np.bincount(groups, 1.0 - errors / variances, GROUPS), 0.0, None)
    return known


def _noise(moments: Moments, *, mean: Floats, known: float, expected: float) -> float:
    left = moments.ee - 2 * mean @ moments.ze + mean @ moments.zz @ mean
    return (expected + max(float(left), 0.0)) / (1.0 + max(moments.n - known, 0.0))


def spread_of_reward(s: Statistics) -> float:
    """Return the standard deviation of the reward; 1 where nothing is known of it."""
    n = s.n.sum()
    if not n:
        return 1.0
    mean = s.yr[:, s.layout.columns.index(BIAS)].sum() / n
    variance = s.rr.sum() / n - mean**2
    return float(np.sqrt(variance)) if variance > 1e-12 * max(mean**2, 1e-12) else 1.0


def _column_scales(s: Statistics) -> Floats:
    """Shape (d,): root mean square of each column where it is not 0; 1 where it never was."""
    return np.sqrt(_squares(s)[: len(s.seen)])


def _squares(s: Statistics) -> Floats:
    """Shape (b,): mean square of what the baseline is linear in, where it is not 0; 1 where it always was."""
    sums = np.einsum("fbb->b", s.yy)
    seen = np.concatenate([s.seen, s.seen[s.layout.numbers]])
    found: Floats = np.divide(sums, seen, out=np.ones_like(sums), where=(seen > 0) & (sums > 0))
    return found


def _baseline(s: Statistics, *, without: int | None = None) -> Floats:
    """Shape (b,): ridge regression of the reward on the context; the ridge weighs as much as one round."""
    return _ridge(s, s.yr, without=without)


def _ridge(s: Statistics, to: Floats, *, without: int | None = None, weight: float = 1.0) -> Floats:
    """Shape (b, ...): the regression on y of what has the sums `to` (folds, b, ...) with y, by fold."""
    folds = [f for f in range(FOLDS) if f != without]
    sizes = np.sqrt(_squares(s))
    scaled = s.yy[folds].sum(axis=0) / np.multiply.outer(sizes, sizes) + weight * np.eye(len(sizes))
    across = sizes.reshape(-1, *([1] * (to.ndim - 2)))
    found: Floats = np.linalg.solve(scaled, to[folds].sum(axis=0) / across) / across
    return found


def _levels(s: Statistics, *, units: Floats) -> Moments:
    """Return the moments of reward and features that are left by their regression on the context: joint regression."""
    return regressed(s, s.uu, s.uy, s.ur, units=units, ridge=1.0)


def regressed(s: Statistics, ff: Floats, fy: Floats, fr: Floats, *, units: Floats, ridge: float) -> Moments:
    """Return the moments of reward and features `f` that are left by their regression on y, given sums of products."""
    fy = fy.T / units
    both = np.zeros((FOLDS, len(fy), 1 + len(units)))
    both[:, :, 0], both[0, :, 1:] = s.yr, fy
    fitted = _ridge(s, both, weight=ridge)
    zz = ff / np.multiply.outer(units, units) - fy.T @ fitted[:, 1:]
    ze = fr / units - fy.T @ fitted[:, 0]
    ee = float(s.rr.sum() - s.yr.sum(axis=0) @ fitted[:, 0])
    return Moments((zz + zz.T) / 2.0, ze, ee, float(s.n.sum()))


def _left_by_baseline(s: Statistics, *, units: Floats) -> Moments:
    """Return the moments of `e = r - m(x)`, where no customer's own rewards are in their `m`."""
    ze, ee = np.zeros(len(units)), 0.0
    for fold in range(FOLDS):
        m = _baseline(s, without=fold)
        ze += s.zr[fold] - s.zy[fold] @ m
        ee += s.rr[fold] - 2 * m @ s.yr[fold] + m @ s.yy[fold] @ m
    return Moments(s.zz / np.multiply.outer(units, units), ze / units, float(ee), float(s.n.sum()))


# Draws from it, and what they make of a context


def committee(posterior: Posterior, *, members: int, boldness: float) -> Floats32:
    """Return draws from the posterior, shape (p, members): the same for the same rounds.

    The generator is counter-based (Philox) and keyed by the rounds' fingerprint. A draw strays from the mean by
    `boldness` times what the posterior says.
    """
    normals = _keyed(str(posterior.fingerprint)).standard_normal((len(posterior.mean), members))
    with one_thread():
        strayed = np.linalg.cholesky(posterior.covariance) @ normals
    return (posterior.mean[:, None] + boldness * strayed).astype(np.float32)


def mean_for(to: Layout, mean: Floats, *, of: Layout) -> Floats:
    """Return a mean (p,) by the names of another layout; what is new there has no effect."""
    at = to.positions(of)
    return np.where(at >= 0, mean[at], 0.0)


def committee_for(to: Layout, drawn: Floats32, *, prior: Prior) -> Floats32:
    """Return draws (p, members) by the names of another layout.

    A level that is new starts from draws of the prior, beside all that `nudge` and its other factors know. A column
    that is new has no weight.
    """
    at = to.positions(prior.layout)
    known = set(prior.layout.levels), set(prior.layout.columns)
    fresh = [i for i in np.flatnonzero(at < 0).tolist() if i >= to.mains or _is_fresh(to.parameters[i], *known)]
    out = np.where(at[:, None] >= 0, drawn[at], np.float32(0.0))
    out[fresh] = prior_draws(to, prior, rows=fresh, members=drawn.shape[1])
    return out


def _is_fresh(parameter: Parameter, levels: set[str], columns: set[str]) -> bool:
    return parameter[0] not in levels and parameter[1] in columns


def prior_draws(to: Layout, prior: Prior, *, rows: Sequence[int], members: int) -> Floats32:
    """Return draws (rows, members) of the prior for some parameters of a layout, each keyed by its name."""
    sizes = dict(zip(prior.layout.columns, prior.column_scales, strict=True))
    out = np.empty((len(rows), members), dtype=np.float32)
    for row, i in enumerate(rows):
        level, other = to.parameters[i]
        scale = prior.scales[to.groups[i]] / sizes.get(other, 1.0)
        out[row] = scale * _keyed(f"{level}|{other}").standard_normal(members)
    return out


def _keyed(text: str) -> np.random.Generator:
    key = int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


class Weights(NamedTuple):
    """Parameters as they are used: `nudge` added to each incentive, and the pairs of each action added up.

    Args:
        levels: (d, l - 1, ...), by column and by level of incentive, tone and timing.
        cells: (k - 1, ...), by nudge, less what it costs.
    """

    levels: Floats | Floats32
    cells: Floats | Floats32


def weights(to: Layout, parameters: Floats | Floats32, *, costs: Floats | None = None) -> Weights:
    """Return parameters (p, ...) as they are used, less what each action (k,) costs, in reward units, if told."""
    rest = parameters.shape[1:]
    levels = parameters[: to.mains].reshape(len(to.levels), len(to.columns), *rest)
    used = levels[1:].copy()
    used[: to.space.shape[0]] += levels[0]
    pairs = parameters[to.mains :]
    cells = np.zeros((to.space.k - 1, *rest), dtype=parameters.dtype)
    first = 0
    for a, b in PAIRS:
        width = to.space.shape[b]
        cells += pairs[first + to.space.levels[1:, a] * width + to.space.levels[1:, b]]
        first += to.space.shape[a] * width
    if costs is not None:
        cells -= costs[1:].astype(cells.dtype).reshape(-1, *(1 for _ in rest))
    return Weights(np.moveaxis(used, 1, 0).copy(), cells)


def effects(to: Layout, used: Weights, contexts: Floats, *, ladders: Ladders | None = None) -> Floats:
    """Return tau (n, k) for contexts (n, d): the factors are scored, not the actions; 0 for hold."""
    by_level = to.design(contexts) @ used.levels
    i, t, _ = to.space.shape
    grid = by_level[:, :i, None, None] + by_level[:, None, i : i + t, None] + by_level[:, None, None, i + t :]
    grid = grid + used.cells.reshape(to.space.shape)
    tau = np.zeros((len(contexts), to.space.k))
    tau[:, 1:] = (ladders.raised(grid) if ladders else grid).reshape(len(contexts), to.space.k - 1)
    return tau
