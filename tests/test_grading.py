"""Which metrics fit which task, grades of single answers, and the book that sums them up."""

import itertools
import math
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import ConfigError
from ensemble.grading import DEFAULT_METRICS, METRICS, GradeBook, check_metrics, grade
from ensemble.records import TASKS, Gold, Task

TEXT_METRICS = [name for name in METRICS if name != "accuracy"]
TEXTS = st.text() | st.lists(st.sampled_from(["the", "cat", "sat", "18", "1/2", "!", "猫が座る", " "])).map(" ".join)


def book(values: list[float], metric: str = "f1") -> GradeBook:
    result = GradeBook()
    for value in values:
        result.add("generation", None, {metric: value})
    return result


def cell(values: list[float], seed: int = 0) -> dict[str, float | int]:
    return book(values).summary(seed)["generation"]["f1"]


@pytest.mark.parametrize("task", TASKS)
def test_default_metrics_fit_their_task(task: Task) -> None:
    assert DEFAULT_METRICS[task]
    check_metrics(task, DEFAULT_METRICS[task])


@pytest.mark.parametrize("task", [task for task in TASKS if task != "multiple_choice"])
def test_every_text_metric_fits_every_text_task(task: Task) -> None:
    check_metrics(task, TEXT_METRICS)


@pytest.mark.parametrize(
    ("task", "names", "message"),
    [
        ("multiple_choice", ["acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'? available: accuracy"),
        ("generation", ["f1", "rougel"], "unknown metric 'rougel'; did you mean 'rougeL'?"),
        ("multiple_choice", ["accuracy", "f1"], "metric 'f1' does not fit task multiple_choice; available: accuracy"),
        ("math", ["accuracy"], "metric 'accuracy' does not fit task math; available: exact_match, f1, numeric_match,"),
    ],
)
def test_metrics_that_do_not_fit(task: Task, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_metrics(task, names)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError):
        grade(task, None, None, names)


@pytest.mark.parametrize(
    ("task", "prediction", "gold", "metrics", "expected"),
    [
        ("multiple_choice", 2, 2, ["accuracy"], {"accuracy": 1.0}),
        ("multiple_choice", 0, 0, ["accuracy"], {"accuracy": 1.0}),  # index 0 is a gold, not "none"
        ("multiple_choice", 0, 1, ["accuracy"], {"accuracy": 0.0}),
        ("multiple_choice", None, 0, ["accuracy"], {"accuracy": 0.0}),
        ("multiple_choice", 1, None, ["accuracy"], None),
        ("math", "18", ("#### 18.0",), ["numeric_match"], {"numeric_match": 1.0}),
        ("math", None, ("none",), ["numeric_match", "exact_match"], {"numeric_match": 0.0, "exact_match": 0.0}),
        ("generation", "x", None, ["f1"], None),
        ("generation", None, None, ["f1"], None),
        # against "black dog" 1 of 2 tokens each, 1/2; against "black cat sat" 2 of 2 and 3, 4/5: the best counts
        ("generation", "black cat", ("black dog", "black cat sat", "x"), ["f1"], {"f1": pytest.approx(4 / 5)}),
        # pairs {ab, bc} | {bc, cd}: 1 of 2 each, 1/2; | {ab}: 2 * 1 / (2 + 1); the order of references is none
        ("summarization", "abc", ("bcd", "ab"), ["rouge2_char"], {"rouge2_char": pytest.approx(2 / 3)}),
        ("generation", "Paris", ("Paris",), [], {}),
    ],
)
def test_grade(
    task: Task, prediction: int | str | None, gold: Gold | None, metrics: list[str], expected: dict[str, float] | None
) -> None:
    assert grade(task, prediction, gold, metrics) == expected


def test_words_are_for_rouge_alone() -> None:
    metrics = ["rouge1", "rouge2", "rougeL", "rouge2_char", "f1"]
    # characters: 東 京 都 | 京 都; rouge2_char: {東京, 京都} | {京都}; f1: two words that differ
    assert grade("summarization", "東京都", ("京都", "猫"), metrics, "characters") == pytest.approx(
        {"rouge1": 4 / 5, "rouge2": 2 / 3, "rougeL": 4 / 5, "rouge2_char": 2 / 3, "f1": 0}
    )
    assert grade("summarization", "東京都", ("京都",), ["rouge1", "rouge2_char"]) == pytest.approx(
        {"rouge1": 0, "rouge2_char": 2 / 3}
    )


@given(TEXTS, st.lists(TEXTS.filter(bool), min_size=1, max_size=3))
def test_no_answer_beats_the_reference_itself(prediction: str, references: list[str]) -> None:
    for reference in references:
        ours = grade("generation", prediction, (reference,), TEXT_METRICS)
        best = grade("generation", reference, (reference,), TEXT_METRICS)
        assert ours is not None
        assert best is not None
        assert all(0 <= ours[name] <= best[name] for name in TEXT_METRICS)
        assert best["exact_match"] == best["quasi_exact_match"] == best["rouge2_char"] == 1


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_more_references_never_lower_a_grade(prediction: str, references: list[str]) -> None:
    single = [grade("generation", prediction, (reference,), TEXT_METRICS) or {} for reference in references]
    together = grade("generation", prediction, tuple(references), TEXT_METRICS)
    assert together == {name: max(grades[name] for grades in single) for name in TEXT_METRICS}


def test_summary_has_tasks_and_groups() -> None:
    grades = GradeBook()
    grades.add("multiple_choice", "law", {"accuracy": 1.0})
    grades.add("multiple_choice", "law", {"accuracy": 1.0})
    grades.add("multiple_choice", "art", {"accuracy": 0.0})
    grades.add("multiple_choice", None, {"accuracy": 0.0})
    grades.add("multiple_choice", "art", None)  # no gold
    grades.add("summarization", "law", None)
    grades.add("generation", None, {"f1": 0.25, "exact_match": 0.0})
    summary = grades.summary(seed=0)
    assert list(summary) == ["generation", "multiple_choice", "multiple_choice/art", "multiple_choice/law"]
    means = {(key, name): (c["mean"], c["n"]) for key, cells in summary.items() for name, c in cells.items()}
    assert means == {
        ("generation", "exact_match"): (0, 1),
        ("generation", "f1"): (0.25, 1),
        ("multiple_choice", "accuracy"): (0.5, 4),  # with and without group
        ("multiple_choice/art", "accuracy"): (0, 1),
        ("multiple_choice/law", "accuracy"): (1, 2),
    }


def test_letter_mass_is_summed_up_with_and_without_gold() -> None:
    grades = GradeBook()
    grades.add("multiple_choice", "law", {"accuracy": 1.0}, 0.5)
    grades.add("multiple_choice", None, None, letter_mass=1.0)
    grades.add("multiple_choice", None, {"accuracy": 0.0}, None)
    summary = grades.summary(seed=0)
    assert summary["multiple_choice"]["letter_mass"] == {"mean": 0.75, "ci_low": 0.5, "ci_high": 1.0, "n": 2}
    assert summary["multiple_choice"]["accuracy"]["n"] == 2
    assert summary["multiple_choice/law"]["letter_mass"]["mean"] == 0.5


def test_consistency_is_summed_up_with_and_without_gold() -> None:
    grades = GradeBook()
    grades.consistency("multiple_choice", None).add(None, 1, 0.5, 0.5, 1)
    assert list(grades.summary(seed=0)["multiple_choice"]) == ["flip_rate"]
    for group, gold in (("law", 0), ("law", 1), ("art", 1)):
        grades.add("multiple_choice", group, {"accuracy": float(gold == 1)})
        grades.consistency("multiple_choice", group).add(gold, 1, 0.75, 0.0, 1)
    grades.add("generation", None, {"f1": 1.0})
    summary = grades.summary(seed=0)
    assert list(summary) == ["generation", "multiple_choice", "multiple_choice/art", "multiple_choice/law"]
    means = {name: (m["mean"], m["n"]) for name, m in summary["multiple_choice"].items()}
    assert means == {
        "accuracy": (0.666667, 3),
        "circular_accuracy": (0.666667, 3),
        "ece": (0.083333, 3),  # 2/3 right, 0.75 sure
        "flip_rate": (0.125, 4),
        "rstd": (0.5, 3),  # A never found, B always
    }
    assert list(summary["multiple_choice/art"]) == ["accuracy", "circular_accuracy", "ece", "flip_rate"]
    assert summary["multiple_choice/law"]["ece"]["mean"] == 0.25
    assert grades.summary(seed=0) == summary  # asking changes nothing


def test_summary_of_nothing() -> None:
    grades = GradeBook()
    assert grades.summary(seed=0) == {}
    grades.add("math", "g", None)
    assert grades.summary(seed=0) == {}


def test_one_value_is_its_own_interval() -> None:
    assert cell([1 / 3]) == {"mean": 0.333333, "ci_low": 0.333333, "ci_high": 0.333333, "n": 1}


def test_two_values() -> None:
    # Resamples of (0, 1) have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4: both tails are far above 2.5 %.
    assert cell([0.0, 1.0]) == {"mean": 0.5, "ci_low": 0, "ci_high": 1, "n": 2}
    assert cell([0.2, 0.2]) == {"mean": 0.2, "ci_low": 0.2, "ci_high": 0.2, "n": 2}


@pytest.mark.parametrize(("n", "ones"), [(400, 120), (10_000, 300), (10_001, 300), (1_000_000, 700_000)])
def test_interval_of_shares_is_binomial(n: int, ones: int) -> None:
    share = ones / n
    found = cell([1.0] * ones + [0.0] * (n - ones))
    low, high = scipy.stats.binom.ppf([0.025, 0.975], n, share) / n
    # The 2.5 % quantile of 1000 normal draws has a standard error of sqrt(0.025 * 0.975 / 1000) / 0.0584 = 0.085
    # standard deviations (0.0584: the density there), so 0.3 is 3.5 of them; and one step of the lattice, 1 / n.
    tolerance = 0.3 * math.sqrt(share * (1 - share) / n) + 1 / n
    assert found["mean"] == pytest.approx(share, abs=1e-6)
    assert found["n"] == n
    assert found["ci_low"] == pytest.approx(low, abs=tolerance)
    assert found["ci_high"] == pytest.approx(high, abs=tolerance)
    assert found["ci_low"] < share < found["ci_high"]


def test_interval_of_many_fractions_is_normal_and_needs_little_memory() -> None:
    n = 200_000  # all resamples at once would be 1000 * n * 8 B = 1.6 GB of indices
    grades = book(np.random.default_rng(1).random(n).tolist())
    tracemalloc.start()
    found = grades.summary(seed=0)["generation"]["f1"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    error = math.sqrt(1 / 12 / n)  # of the mean of n uniform values
    assert found["ci_high"] - found["mean"] == pytest.approx(1.96 * error, abs=0.3 * error)
    assert found["mean"] - found["ci_low"] == pytest.approx(1.96 * error, abs=0.3 * error)


def test_only_many_values_of_0_and_1_take_the_binomial_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("resampled")

    monkeypatch.setattr(scipy.stats, "bootstrap", refuse)
    ones = [1.0] * 9_000
    assert cell([*ones, *[0.0] * 1_001])["n"] == 10_001
    for values in ([*ones, *[0.0] * 1_000], [*ones, *[0.5] * 1_001]):
        with pytest.raises(AssertionError, match="resampled"):
            cell(values)


def test_summary_depends_on_grades_and_seed_alone() -> None:
    source = random.Random(0)
    rows = [
        (task, group, {"f1": source.random(), "exact_match": float(source.random() < 0.5)})
        for task, group in itertools.product(TASKS, (None, "x", "y"))
        for _ in range(20)
    ]
    summaries = []
    for order in range(3):
        random.Random(order).shuffle(rows)
        grades = GradeBook()
        for task, group, row in rows:
            grades.add(task, group, dict(sorted(row.items(), reverse=order == 1)))
        summaries.append(grades.summary(seed=7))
        assert grades.summary(seed=7) == summaries[0]  # asking changes nothing
        assert grades.summary(seed=8) != summaries[0]
        grades.add("math", "z", {"f1": 0.5})  # after a summary more may come, and other groups are not disturbed
        assert grades.summary(seed=7)["math/x"] == summaries[0]["math/x"]
    assert list(summaries[0]) == sorted(summaries[0])


def test_import_is_light() -> None:
    code = "import sys, ensemble.grading; print([m for m in ('scipy', 'rouge_score', 'nltk') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
