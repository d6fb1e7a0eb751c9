"""Flip rate, CircularEval, RStd and ECE: cases worked by hand, intervals that hold the truth, one pass or arrays."""

import math
import pickle
import random
from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ensemble.consistency import Consistency, circular, ece, flip_rate, rstd, spread_interval, vote_counts

Row = tuple[int | None, int | None, float | None, float | None, int | None]


def collected(rows: Iterable[Row]) -> Consistency:
    found = Consistency()
    for row in rows:
        found.add(*row)
    return found


def means(consistency: Consistency) -> dict[str, tuple[float, int]]:
    return {name: (m["mean"], int(m["n"])) for name, m in consistency.summary(seed=0).items()}


@pytest.mark.parametrize(
    ("votes", "rate"),
    [
        ([4, 0, 0], 0),
        ([3, 1], 3 / 6),  # the one disagrees with each of the three
        ([2, 2], 4 / 6),
        ([1, 1, 1, 1], 1),
        ([20, 4, 0, 0], 80 / 276),  # 20 x 4 of 24 x 23 / 2
        ([0, 2], 0),
        ([1, 0], math.nan),
        ([0, 0], math.nan),
    ],
)
def test_flip_rate(votes: list[int], rate: float):
    assert flip_rate(np.array(votes)) == pytest.approx(rate, nan_ok=True)
    assert flip_rate(np.array([votes, votes])) == pytest.approx([rate, rate], nan_ok=True)


def test_flip_rate_is_the_share_of_pairs_that_differ():
    choices = np.random.default_rng(0).integers(-1, 4, (50, 7))  # -1: not asked
    for row, votes in zip(choices.tolist(), vote_counts(choices, 4), strict=True):
        pairs = list(combinations([c for c in row if c >= 0], 2))
        assert flip_rate(votes) == pytest.approx(sum(a != b for a, b in pairs) / len(pairs))


def test_circular_takes_all_orders():
    assert circular(np.array([[2, 2, 2], [2, 2, 1], [0, 0, 0]])).tolist() == [2, -1, 0]


@pytest.mark.parametrize(
    ("cells", "spread"),
    [
        ([[1, 3], [3, 1]], 0.25),  # recalls 3/4 and 1/4
        ([[0, 5], [2, 2], [1, 0]], math.sqrt(1 / 6)),  # 1, 1/2, 0: the mean square of 1/2, 0, 1/2
        ([[1, 3], [0, 0], [3, 1]], 0.25),  # a letter that is never gold does not count
        ([[2, 2], [5, 5]], 0),
    ],
)
def test_rstd(cells: list[list[int]], spread: float):
    assert rstd(cells) == pytest.approx(spread)


def test_ece_and_its_bins():
    # (0.6, 0.7] has 0.62 and 0.66, one right: |1 - 1.28|. 0.85 is wrong: 0.85. 0.9001 and 1 are right: 0.0999.
    rows = [(0, 0, 0.62), (0, 1, 0.66), (1, 0, 0.85), (1, 1, 0.9001), (2, 2, 1.0)]
    assert means(collected((*row, None, None) for row in rows))["ece"] == (round((0.28 + 0.85 + 0.0999) / 5, 6), 5)
    # 0.7 closes its bin and 0.7001 opens the next: apart they miss by 0.3 and 0.7001, together by 0.2001 of 1
    assert means(collected([(0, 0, 0.7, None, None), (0, 1, 0.7001, None, None)]))["ece"] == (0.50005, 2)
    assert means(collected([(0, 1, 0.0, None, None)]))["ece"] == (0, 1)
    assert ece([[[1, 1]], [[2, 0]]], [[0.66, 0.62]]).tolist() == pytest.approx([0.14, 0.66])


def test_all_four_by_hand():
    # gold, prediction, confidence, flip rate, what all cyclic orders choose
    rows: list[Row] = [
        (0, 0, 0.95, 0.0, 0),
        (0, 0, 0.95, 0.5, -1),
        (0, 1, 0.95, 0.5, -1),
        (1, 1, 0.55, 0.0, 1),
        (1, 0, 0.55, 0.0, 0),  # steady, and wrong
        (None, 3, 0.35, 1.0, -1),  # no gold: only how often it flips
        (1, None, None, None, None),  # nothing was read
    ]
    assert means(collected(rows)) == {
        "flip_rate": (round(2 / 6, 6), 6),
        "circular_accuracy": (0.4, 5),
        "rstd": (round((2 / 3 - 1 / 2) / 2, 6), 5),
        "ece": (round((abs(2 - 2.85) + abs(1 - 1.1)) / 5, 6), 5),
    }


@pytest.mark.parametrize(
    ("rows", "known"),
    [
        ([], set()),
        ([(None, 1, 0.5, None, None)], set()),
        ([(None, 1, 0.5, 0.5, 1)], {"flip_rate"}),
        ([(0, 1, 0.5, None, None)], {"ece"}),  # the recall of one letter has no spread
        ([(0, 1, None, None, 2), (1, 1, None, None, 1)], {"rstd", "circular_accuracy"}),
    ],
)
def test_what_is_not_known_is_left_out(rows: list[Row], known: set[str]):
    assert set(collected(rows).summary(0)) == known


def many(n: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(n):
        gold, prediction = rng.choice([None, 0, 1, 2, 3]), rng.choice([None, 0, 0, 1, 2, 3])
        confidence = None if prediction is None else round(rng.random(), 4)
        rows.append((gold, prediction, confidence, rng.choice([None, 0.0, 0.5, 0.6667]), rng.randrange(-1, 4)))
    return rows


def test_neither_order_nor_groups_nor_arrays_change_a_number():
    rows = many(999)
    expected = collected(rows).summary(3)
    assert all(m["ci_low"] <= m["mean"] <= m["ci_high"] for m in expected.values())
    shuffled = random.Random(1).sample(rows, len(rows))
    assert collected(shuffled).summary(3) == expected != collected(rows).summary(4)
    parts = collected(rows[:400])
    parts.update(collected(rows[400:]))
    assert parts.summary(3) == expected
    gold, predictions = (np.array([-1 if row[i] is None else row[i] for row in rows]) for i in (0, 1))
    confidence, rates = (np.array([math.nan if row[i] is None else row[i] for row in rows]) for i in (2, 3))
    arrays = Consistency()
    for half in (slice(0, 500), slice(500, None)):
        circles = np.array([row[4] for row in rows])[half]
        arrays.add_all(gold[half], predictions[half], confidence[half], rates[half], circles)
    assert arrays.summary(3) == expected


def test_memory_does_not_grow_with_the_questions():
    assert len(pickle.dumps(collected(many(20_000)))) < 1.1 * len(pickle.dumps(collected(many(2000))))


def test_the_interval_of_flips_is_that_of_a_bootstrap_of_questions():
    rates = [0.0] * 150 + [0.5] * 70 + [0.6667] * 80
    found = collected((None, None, None, rate, None) for rate in rates).summary(0)["flip_rate"]
    peer = stats.bootstrap((rates,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    error = np.std(rates) / math.sqrt(300)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(tuple(peer), abs=0.3 * error)


def test_the_spread_of_an_unbiased_model_may_be_zero_and_that_of_a_biased_one_is_held():
    rng = np.random.default_rng(0)
    held = {0.0: 0, 0.1: 0}
    for spread in held:
        recalls = 0.6 + spread * np.array([1, 1, -1, -1])  # their population's deviation is `spread`
        for seed in range(100):
            gold = rng.integers(0, 4, 500)
            right = rng.random(500) < recalls[gold]
            found = Consistency()
            found.add_all(gold, np.where(right, gold, (gold + 1) % 4))
            m = found.summary(seed)["rstd"]
            held[spread] += m["ci_low"] <= spread <= m["ci_high"]
    assert min(held.values()) >= 90


def test_a_spread_interval_by_hand():
    # Of (0, 0.2 .. 0.2): mean square 0.04 where the estimate's is 0.01, so the noise is 0.03 and 0.04 - 0.06 < 0.
    assert spread_interval(0.1, np.full(1000, 0.2)) == (0, 0.1)
    assert spread_interval(0.1, np.full(1000, 0.1)) == pytest.approx((0.1, 0.1))
    # Squares 0.09 and 0.25, their mean 0.17, the noise 0.01: the bounds are the roots of 0.07 and 0.23.
    assert spread_interval(0.4, np.array([0.3, 0.5] * 500)) == pytest.approx((math.sqrt(0.07), math.sqrt(0.23)))
