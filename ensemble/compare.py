"""Honest comparison of variants on the same questions: paired intervals, tests, and what choosing the best costs.

Everything takes grades [Q, V], a row per question and a column per variant, none of them NaN (without gold there is
nothing to compare), and clusters int [Q]: questions of the same content share a number, and are drawn together. All
variants are compared on the same resamples. The same seed gives the same numbers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Weights = npt.NDArray[np.float32]

RESAMPLES = 1000
FLIPS = 10_000
TAILS = (0.025, 0.975)  # of a 95% interval
CHUNK_VALUES = 2_000_000  # drawn at a time; at 8 bytes 16 MB
ROUNDING = 1e-6  # of the sum of absolute differences: sums that differ by less are equal in float32


class Intervals(NamedTuple):
    """Per variant the mean grade with its 95% bounds, each float64 [V]."""

    mean: Floats
    low: Floats
    high: Floats


class Against(NamedTuple):
    """Per variant, each [V]: mean difference to the reference with its 95% bounds, and how often it is ahead.

    wins, losses: questions that it grades higher, lower than the reference. p: two-sided, of no difference; NaN for
    the reference itself, which is no comparison.
    """

    difference: Floats
    low: Floats
    high: Floats
    wins: Ints
    losses: Ints
    p: Floats


class CrossFitted(NamedTuple):
    """Mean grade with its 95% bounds over n questions, each graded by the variant chosen on the other half.

    chosen: the variant that won the first half and is scored on the second, and the other way round.
    """

    mean: float
    low: float
    high: float
    n: int
    chosen: tuple[int, int]


def clustered_resamples(clusters: Ints, seed: int, n: int = RESAMPLES) -> Iterator[Weights]:
    """The cluster bootstrap (Davison & Hinkley 1997, section 3.8): yields float32 [chunk, Q], n rows in all.

    A row says how often each question is in that resample: as often as its cluster was drawn, with replacement.
    """
    members, count = _numbered(clusters)
    rng = np.random.default_rng(seed)
    for rows in _chunks(n, count):
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times.astype(np.float32)[:, members]


def intervals(grades: Floats, clusters: Ints, seed: int) -> Intervals:
    """Percentile bootstrap intervals of the mean grades."""
    assert not np.isnan(grades).any()
    low, high = _bounds(grades, clusters, seed)
    return Intervals(grades.mean(axis=0, dtype=np.float64), low, high)


def against(grades: Floats, reference: int, clusters: Ints, seed: int) -> Against:
    """Every variant against the variant number `reference`, question by question.

    p: the exact test of McNemar (1947) for grades of 0 and 1 where no cluster has two questions, else a permutation
    test: under no difference each cluster's summed difference may as well have the other sign. Correct p for the number
    of comparisons by `holm`.
    """
    assert not np.isnan(grades).any()
    narrow = grades.astype(np.float32)  # a hundred thousand questions of 500 variants are 200 MB of it
    difference = narrow - narrow[:, [reference]]
    low, high = _bounds(difference, clusters, seed)
    wins, losses = (difference > 0).sum(axis=0), (difference < 0).sum(axis=0)
    _, count = _numbered(clusters)
    if count == len(grades) and bool(((narrow == 0) | (narrow == 1)).all()):
        p = _mcnemar(wins, losses)
    else:
        p = _sign_flips(difference, clusters, seed)
    p[reference] = np.nan
    return Against(difference.mean(axis=0, dtype=np.float64), low, high, wins, losses, p)


def holm(p: Floats) -> Floats:
    """p adjusted for all comparisons together (Holm 1979): at or under alpha, an error anywhere is as improbable.

    NaN, of what is no comparison, stays NaN and does not count.
    """
    from statsmodels.stats.multitest import multipletests

    adjusted = np.full(len(p), np.nan)
    compared = ~np.isnan(p)
    if compared.any():
        adjusted[compared] = multipletests(p[compared], method="holm")[1]
    return adjusted


def cross_fitted(grades: Floats, clusters: Ints, seed: int) -> CrossFitted:
    """What choosing the best variant gives on questions that had no say in the choice.

    The best of many looks better than it is on the questions it was chosen by. So the clusters are split in random
    halves, and each half is graded by the variant that is best on the other one, of equals the first. The interval is
    that of the two choices as made. Raises InputError below two clusters.
    """
    assert not np.isnan(grades).any()
    members, count = _numbered(clusters)
    if count < 2:
        raise InputError("choosing on one half and scoring on the other takes two questions at least; give more")
    first = (np.random.default_rng(seed).permutation(count) < count // 2)[members]
    chosen = int(grades[first].mean(axis=0).argmax()), int(grades[~first].mean(axis=0).argmax())
    fitted = np.where(first, grades[:, chosen[1]], grades[:, chosen[0]])[:, None]
    mean, low, high = (float(x[0]) for x in intervals(fitted, clusters, seed))
    return CrossFitted(mean, low, high, len(grades), chosen)


def pareto(score: Floats, cost: Floats) -> npt.NDArray[np.bool_]:
    """[V] whether no other variant scores at least as high at no higher cost and is better in one of the two."""
    as_good = (score[:, None] >= score) & (cost[:, None] <= cost)
    better = (score[:, None] > score) | (cost[:, None] < cost)
    dominated: npt.NDArray[np.bool_] = (as_good & better).max(axis=0)
    return ~dominated


def _numbered(clusters: Ints) -> tuple[Ints, int]:
    """Clusters numbered from 0 on, in the order of their names, and how many there are."""
    names, members = np.unique(clusters, return_inverse=True)
    return members, len(names)


def _chunks(rows: int, width: int) -> Iterator[int]:
    """Numbers of rows that add up to `rows`, each of them CHUNK_VALUES values or one row."""
    most = max(1, CHUNK_VALUES // width)
    for start in range(0, rows, most):
        yield min(most, rows - start)


def _bounds(values: Floats, clusters: Ints, seed: int) -> tuple[Floats, Floats]:
    """Percentile bootstrap bounds of the columns' means, float64 [V] each.

    Sums of whole grades are exact in float32 (up to 2**24 questions), so they do not depend on the machine.
    """
    narrow = values.astype(np.float32, copy=False)
    means = [(w @ narrow) / w.sum(axis=1, keepdims=True) for w in clustered_resamples(clusters, seed)]
    low, high = np.quantile(np.concatenate(means).astype(np.float64), TAILS, axis=0)
    return low, high


def _mcnemar(wins: Ints, losses: Ints) -> Floats:
    from statsmodels.stats.contingency_tables import mcnemar

    pairs = zip(wins.tolist(), losses.tolist(), strict=True)
    return np.array([mcnemar([[0, won], [lost, 0]], exact=True).pvalue for won, lost in pairs])


def _sign_flips(difference: Floats, clusters: Ints, seed: int) -> Floats:
    """The share of random signs under which the sum is at least as far from 0, the observed signs counted in.

    (b + 1) / (m + 1) of Phipson & Smyth (2010): a sampled p is never 0, and the test never too bold.
    """
    members, count = _numbered(clusters)
    sums = np.zeros((count, difference.shape[1]), dtype=np.float32)
    np.add.at(sums, members, difference)
    total = sums.sum(axis=0, dtype=np.float64)
    reached = np.abs(total) - ROUNDING * np.abs(sums).sum(axis=0, dtype=np.float64)
    rng = np.random.default_rng(seed)
    beyond = np.zeros(len(total), dtype=np.int64)
    for rows in _chunks(FLIPS, count):
        bits = np.unpackbits(np.frombuffer(rng.bytes(rows * -(-count // 8)), np.uint8).reshape(rows, -1), axis=1)
        kept = bits[:, :count].astype(np.float32) @ sums  # what keeps its sign; the rest, total - kept, changes it
        beyond += (np.abs(2 * kept - total) >= reached).sum(axis=0)
    return (beyond + 1) / (FLIPS + 1)
