"""How steady multiple-choice answers are: flip rate, CircularEval, the spread of recalls (RStd) and calibration (ECE).

No scores to rank by: who always answers A flips never and is calibrated where it says so. Questions are counted in
cells (a gold letter and right or wrong, a class of confidence and right or wrong), so a run of any length takes the
same memory, in any order the same counts, and an interval takes draws of the cells instead of the questions.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Cells = Counter[tuple[int, bool]]  # (gold option or class of confidence, right) -> questions

MEASURES = ("flip_rate", "circular_accuracy", "rstd", "ece")
BINS = 10  # of confidence, equal in width, each open below and closed above
UNIT = 10_000  # confidences have 4 decimals: summed as integers they add up the same in any order
RESAMPLES = 1000
TAILS = (0.025, 0.975)  # of a 95% interval


def vote_counts(choices: Ints, options: int) -> Ints:
    """int [Q, options]: how many orders chose each option. choices: int [Q, orders], -1 for an order not asked."""
    return np.stack([(choices == option).sum(axis=1) for option in range(options)], axis=1)


def flip_rate(votes: Ints) -> Floats:
    """Share of the pairs of orders that choose different options, [...] of votes [..., options]; NaN below two orders.

    Of m orders of which v choose an option, v (v - 1) / 2 of all m (m - 1) / 2 pairs agree on it.
    """
    orders, same = votes.sum(axis=-1), (votes * (votes - 1)).sum(axis=-1)
    pairs = orders * (orders - 1)
    rates: Floats = np.where(pairs > 0, 1 - same / np.maximum(pairs, 1), np.nan)
    return rates


def circular(choices: Ints) -> Ints:
    """int [Q]: the option that all cyclic orders choose, -1 where they do not agree. choices: int [Q, cyclic orders].

    CircularEval (MMBench, Liu et al. 2023, arXiv:2307.06281) counts a question as right where that is the gold.
    """
    return np.where((choices == choices[:, :1]).all(axis=1), choices[:, 0], -1)


def rstd(cells: npt.ArrayLike) -> Floats:
    """Standard deviation of the recalls of the gold letters (PriDe, Zheng et al. 2024, arXiv:2309.03882), a fraction.

    cells: [..., letters, 2], questions with that gold that are answered wrong and right. The population's deviation,
    over the letters that occur; 0 where all are found equally often.
    """
    counts = np.asarray(cells, dtype=np.float64)
    asked = counts.sum(axis=-1)
    recalls = np.divide(counts[..., 1], asked, out=np.zeros_like(asked), where=asked > 0)
    letters = np.maximum((asked > 0).sum(axis=-1), 1)
    mean = recalls.sum(axis=-1) / letters
    squares = (recalls - mean[..., None]) ** 2 * (asked > 0)
    spread: Floats = np.sqrt(squares.sum(axis=-1) / letters)
    return spread


def ece(cells: npt.ArrayLike, confidence: npt.ArrayLike) -> Floats:
    """Expected calibration error, sum over bins of n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, eq. 5).

    cells: [..., bins, 2], answers of that confidence that are wrong and right. confidence: [bins, 2], each cell's mean.
    """
    counts = np.asarray(cells, dtype=np.float64)
    gaps = np.abs(counts[..., 1] - (counts * np.asarray(confidence)).sum(axis=-1))
    return np.asarray(gaps.sum(axis=-1) / counts.sum(axis=(-2, -1)))


class Consistency:
    """The cells of some questions: of a task's, or of one of its groups'."""

    def __init__(self) -> None:
        self.flips: Counter[float] = Counter()  # flip rate -> questions
        self.circles: Counter[bool] = Counter()  # whether all cyclic orders choose the gold
        self.recalls: Cells = Counter()
        self.answers: Cells = Counter()
        self.confidence: Cells = Counter()  # of the same cells, summed in UNITs

    def add(
        self,
        gold: int | None,
        prediction: int | None,
        confidence: float | None,
        flip_rate: float | None,
        circular: int | None,
    ) -> None:
        """Counts one question; None is not known. flip_rate and circular: as in `Decision`."""
        if flip_rate is not None:
            self.flips[flip_rate] += 1
        if gold is None:
            return
        if circular is not None:
            self.circles[circular == gold] += 1
        if prediction is None:
            return
        right = prediction == gold
        self.recalls[gold, right] += 1
        if confidence is not None:
            units = round(confidence * UNIT)
            cell = max(units - 1, 0) * BINS // UNIT, right
            self.answers[cell] += 1
            self.confidence[cell] += units

    def add_all(
        self,
        gold: Ints,
        predictions: Ints,
        confidence: Floats | None = None,
        flip_rates: Floats | None = None,
        circles: Ints | None = None,
    ) -> None:
        """Counts many questions, arrays [Q], as `add` does each: gold and predictions -1, flip rates NaN where unknown.

        circles: of `circular`, for questions that were all asked in their whole cycle.
        """
        if flip_rates is not None:
            rates, times = np.unique(flip_rates[~np.isnan(flip_rates)], return_counts=True)
            self.flips.update(dict(zip(rates.tolist(), times.tolist(), strict=True)))
        if circles is not None:
            self.circles.update((circles == gold)[gold >= 0].tolist())
        known = (gold >= 0) & (predictions >= 0)
        right = (predictions == gold)[known]
        self.recalls.update(_counted(gold[known], right))
        if confidence is not None:
            units = np.rint(confidence[known] * UNIT).astype(np.int64)
            bins = np.maximum(units - 1, 0) * BINS // UNIT
            self.answers.update(_counted(bins, right))
            self.confidence.update(_counted(bins, right, units))

    def update(self, other: "Consistency") -> None:
        """Adds the questions of the other."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.update(theirs)

    def summary(self, seed: int) -> dict[str, dict[str, float | int]]:
        """{measure: {"mean", "ci_low", "ci_high", "n"}} of what is known, rounded to 6 decimals.

        The bounds of `flip_rate` and `circular_accuracy` are those of a percentile bootstrap, of the others see
        `spread_interval`. RStd takes two gold letters.
        """
        found = {}
        for name, values in (("flip_rate", self.flips), ("circular_accuracy", self.circles)):
            if values:
                found[name] = _of_mean(values, seed)
        if len({letter for letter, _ in self.recalls}) > 1:
            table, resamples = _resampled(self.recalls, 1 + max(letter for letter, _ in self.recalls), seed)
            found["rstd"] = _summed(float(rstd(table)), rstd(resamples), table.sum())
        if self.answers:
            table, resamples = _resampled(self.answers, BINS, seed)
            mean = _table(self.confidence, BINS) / np.maximum(table, 1) / UNIT
            found["ece"] = _summed(float(ece(table, mean)), ece(resamples, mean), table.sum())
        return found


def spread_interval(estimate: float, resamples: Floats) -> tuple[float, float]:
    """95% bounds of a measure of spread, at least 0, out of its bootstrap resamples [n]. They hold the estimate.

    Noise spreads too, so such a measure lies above the truth, and its resamples lie above the measure by as much again:
    of an unbiased model plain percentiles never reach down to 0. In squares spread and noise add up, so the
    percentiles of the squares are moved down by twice the noise, their mean less the estimate's square. (Simulated
    for RStd and ECE, 100 to 10,000 questions: the bounds hold the truth in 92% to 100% of the cases; percentiles in 0%
    where the truth is 0.)
    """
    squares = resamples**2
    noise = squares.mean() - estimate**2
    low, high = np.sqrt(np.maximum(np.quantile(squares, TAILS) - 2 * noise, 0))
    return min(float(low), estimate), max(float(high), estimate)


def _counted(cells: Ints, right: npt.NDArray[np.bool_], weights: Ints | None = None) -> Mapping[tuple[int, bool], int]:
    totals = np.bincount(2 * cells + right, weights)
    return {(i // 2, bool(i % 2)): int(n) for i, n in enumerate(totals.tolist()) if n}


def _table(cells: Cells, rows: int) -> Ints:
    """int [letters or bins, 2]."""
    table = np.zeros((rows, 2), dtype=np.int64)
    for (cell, right), n in cells.items():
        table[cell, int(right)] = n
    return table


def _resampled(cells: Cells, rows: int, seed: int) -> tuple[Ints, Ints]:
    """The table of the cells, and RESAMPLES of as many questions drawn from it, int [RESAMPLES, ...]."""
    table = _table(cells, rows)
    drawn = _draw(table.ravel(), seed)
    return table, drawn.reshape(RESAMPLES, *table.shape)


def _draw(counts: Ints, seed: int) -> Ints:
    """Drawing questions with replacement draws cells in proportion to their size: a multinomial, [RESAMPLES, cells]."""
    n = counts.sum()
    return np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)


def _of_mean(counts: Mapping[Any, int], seed: int) -> dict[str, float | int]:
    values = np.array(sorted(counts), dtype=np.float64)
    times = np.array([counts[value] for value in sorted(counts)])
    n = int(times.sum())
    low, high = np.quantile(_draw(times, seed) @ values / n, TAILS)
    return _rounded(float(times @ values) / n, float(low), float(high), n)


def _summed(estimate: float, resamples: Floats, n: int) -> dict[str, float | int]:
    return _rounded(estimate, *spread_interval(estimate, resamples), int(n))


def _rounded(mean: float, low: float, high: float, n: int) -> dict[str, float | int]:
    return {"mean": round(mean, 6), "ci_low": round(low, 6), "ci_high": round(high, 6), "n": n}
