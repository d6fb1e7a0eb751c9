"""Comparisons of variants: hand-worked cases, scipy as a peer, and what choosing among pure noise must not promise."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from ensemble.compare import Floats, Ints, against, clustered_resamples, cross_fitted, holm, intervals, pareto
from ensemble.errors import InputError


def noise(questions: int, variants: int, seed: int = 0, p: float = 0.5) -> Floats:
    return (np.random.default_rng(seed).random((questions, variants)) < p).astype(np.float64)


def apart(questions: int) -> Ints:
    return np.arange(questions)


def test_a_resample_draws_whole_clusters_with_replacement():
    clusters = np.array([7, 3, 7, 9, 3, 7])
    chunks = list(clustered_resamples(clusters, seed=1, n=3000))
    weights = np.concatenate(chunks)
    assert (weights.shape, weights.dtype) == ((3000, 6), np.float32)
    assert (weights[:, [0, 1, 0]] == weights[:, [2, 4, 5]]).all()
    drawn = weights[:, [0, 1, 3]]  # once per cluster
    assert (drawn.sum(axis=1) == 3).all()
    # Binomial(3, 1/3) each: mean 1, variance 2/3; the standard error of the mean of 3000 is 0.015.
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.06)
    assert drawn.var(axis=0) == pytest.approx([2 / 3] * 3, abs=0.08)


def test_intervals_of_rights_and_wrongs_are_binomial():
    grades = np.repeat([[1.0, 0.0]], 400, axis=0)
    grades[:120, 0] = 0  # 280 of 400 right, none right
    found = intervals(grades, apart(400), seed=0)
    low, high = stats.binom.ppf([0.025, 0.975], 400, 0.7) / 400
    assert found.mean.tolist() == [0.7, 0]
    # The tolerance is explained in test_grading.
    tolerance = 0.3 * np.sqrt(0.7 * 0.3 / 400) + 1 / 400
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=tolerance)
    assert (found.low[1], found.high[1]) == (0, 0)


def test_a_question_that_occurs_twice_says_nothing_new():
    once = noise(300, 3)
    twice = np.concatenate([once, once])
    expected, found = (intervals(once, apart(300), 5), intervals(twice, np.tile(apart(300), 2), 5))
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-7)
    naive = intervals(twice, apart(600), 5)
    assert (naive.high - naive.low < 0.85 * (found.high - found.low)).all()  # too narrow, by about sqrt(1/2)


def test_the_same_seed_gives_the_same_numbers():
    grades, clusters = noise(200, 4), np.arange(200) // 2
    for measure in (intervals, cross_fitted, lambda *a: against(a[0], 1, *a[1:])):
        first, again, other = (measure(grades, clusters, seed) for seed in (0, 0, 1))
        assert str(first) == str(again) != str(other)


def test_differences_are_paired():
    # Both grade questions alike but for 5 of 1000: the difference is known far better than either mean.
    grades = np.repeat(noise(1000, 1), 3, axis=1)
    grades[:5, 0], grades[:5, 1] = 1, 0
    grades[:, 2] = grades[:, 0]
    found = against(grades, 1, apart(1000), seed=0)
    assert found.difference == pytest.approx([0.005, 0, 0.005], abs=1e-9)
    assert 0 < found.low[0] < found.high[0] < 0.011
    assert (found.low[0], found.high[0]) == (found.low[2], found.high[2])  # the same resamples for all
    assert found.wins.tolist() == [5, 0, 5]
    assert found.losses.tolist() == [0, 0, 0]
    single = intervals(grades, apart(1000), seed=0)
    assert single.high[0] - single.low[0] > 0.05


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (9, 1, 22 / 1024),  # twice the (1 + 10) / 2**10 of at most one head
        (1, 9, 22 / 1024),
        (5, 0, 2 / 32),
        (4, 4, 1),
        (0, 0, 1),
        (60, 30, stats.binomtest(30, 90).pvalue),
    ],
)
def test_mcnemar_is_exact(wins: int, losses: int, p: float):
    grades = np.zeros((200, 2))
    grades[:wins, 1] = grades[wins : wins + losses, 0] = 1
    found = against(grades, 0, apart(200), seed=0)
    assert (found.wins[1], found.losses[1]) == (wins, losses)
    assert found.p[1] == pytest.approx(p)
    assert np.isnan(found.p[0])


def test_fractions_are_permuted_as_scipy_does():
    rng = np.random.default_rng(3)
    grades = rng.random((12, 4)).round(1)
    grades[:, 2] += 0.3
    grades[:, 3] = grades[:, 0]
    found = against(grades, 0, apart(12), seed=0).p
    for variant in (1, 2):
        peer = stats.permutation_test(
            (grades[:, variant], grades[:, 0]), lambda a, b, axis: (a - b).mean(axis=axis),
            permutation_type="samples", vectorized=True, n_resamples=np.inf,
        ).pvalue  # all 2**12 signs  # fmt: skip
        # Four standard errors of a share of 10,000.
        assert found[variant] == pytest.approx(peer, abs=4 * np.sqrt(peer * (1 - peer) / 10_000) + 1e-4)
    assert found[3] == 1


def test_a_sampled_p_is_never_zero():
    grades = np.zeros((200, 2))
    grades[:, 1] = 0.5
    assert against(grades, 0, apart(200), seed=0).p[1] == 1 / 10_001


def test_signs_flip_by_cluster():
    # Of three contents, each asked ten times, the variant wins nine: 2 of the 8 signs are as far out, not 2 of 2**27.
    grades = np.zeros((30, 2))
    grades[:, 1] = np.arange(30) % 10 > 0
    found = against(grades, 0, np.arange(30) // 10, seed=0)
    assert found.p[1] == pytest.approx(0.25, abs=0.02)
    assert against(grades, 0, apart(30), seed=0).p[1] == pytest.approx(2 / 2**27)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 not under it
        ([0.5, 0.6], [1, 1]),
        ([0.04, np.nan, 0.01], [0.04, np.nan, 0.02]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm(p: list[float], expected: list[float]):
    assert holm(np.array(p)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_best_of_pure_noise_is_flattered_and_cross_fitting_is_not(repeats: int):
    # 200 coins on 400 questions: the best one seems better than 1/2 by about 2.75 standard errors of 0.025. Repeated
    # questions must stay on one side, else they tell the choice how it will be scored.
    fitted, best = [], []
    for seed in range(20):
        grades = np.tile(noise(400, 200, seed), (repeats, 1))
        clusters = np.tile(apart(400), repeats)
        winner = grades.mean(axis=0).argmax()
        best.append(intervals(grades[:, [winner]], clusters, seed))
        fitted.append(cross_fitted(grades, clusters, seed))
    assert np.mean([b.mean[0] for b in best]) > 0.55
    assert np.mean([b.low[0] > 0.5 for b in best]) > 0.8  # most would be taken for real
    assert np.mean([f.mean for f in fitted]) == pytest.approx(0.5, abs=4 * 0.025 / np.sqrt(20))
    assert np.mean([f.low <= 0.5 <= f.high for f in fitted]) >= 0.8
    assert {f.n for f in fitted} == {400 * repeats}


def test_a_variant_that_is_better_wins_both_halves_and_keeps_its_score():
    grades = noise(600, 50)
    grades[:, 17] = noise(600, 1, seed=9, p=0.8)[:, 0]
    found = cross_fitted(grades, apart(600), seed=2)
    assert found.chosen == (17, 17)
    assert found.mean == pytest.approx(grades[:, 17].mean())
    assert found.low < found.mean < found.high


def test_each_half_is_scored_by_the_choice_of_the_other():
    # Variant 0 is right on one of two contents, variant 1 on the other: whichever wins a half is wrong on the other.
    found = cross_fitted(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([4, 8, 8]), seed=0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert sorted(found.chosen) == [0, 1]


def test_one_question_cannot_be_halved():
    with pytest.raises(InputError, match="takes two questions at least; give more"):
        cross_fitted(np.ones((3, 2)), np.zeros(3, dtype=int), seed=0)


@pytest.mark.parametrize("measure", [intervals, cross_fitted, lambda g, c, s: against(g, 0, c, s)])
def test_what_has_no_gold_is_not_compared(measure):
    with pytest.raises(AssertionError):
        measure(np.array([[1.0, np.nan], [0.0, 1.0]]), apart(2), 0)


@pytest.mark.parametrize(
    ("score", "cost", "expected"),
    [
        ([0.5, 0.6, 0.7], [1, 2, 3], [True, True, True]),
        ([0.5, 0.6, 0.6], [1, 2, 3], [True, True, False]),  # as good, but dearer
        ([0.5, 0.6, 0.4], [1, 1, 0.5], [False, True, True]),  # as cheap, but worse
        ([0.5, 0.5], [1, 1], [True, True]),  # equals do not beat each other
        ([0.9, 0.1], [1, 9], [True, False]),
        ([0.3], [4], [True]),
    ],
)
def test_pareto(score: list[float], cost: list[float], expected: list[bool]):
    assert pareto(np.array(score), np.array(cost)).tolist() == expected


def test_a_hundred_thousand_questions_need_little_memory():
    grades = noise(100_000, 3)  # all resamples at once would be 400 MB of weights
    tracemalloc.start()
    found = intervals(grades, apart(100_000), seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert found.high - found.low == pytest.approx([2 * 1.96 * 0.5 / np.sqrt(100_000)] * 3, rel=0.15)
