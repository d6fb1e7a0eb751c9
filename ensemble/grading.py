"""Grades of answers, and their summary: means with bootstrap confidence intervals, per task and per group."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ensemble.consistency import Consistency
from ensemble.errors import ConfigError
from ensemble.metrics import (
    accuracy,
    exact_match,
    f1,
    numeric_match,
    quasi_exact_match,
    rouge1,
    rouge2,
    rouge2_char,
    rougeL,
)
from ensemble.names import unknown
from ensemble.records import Gold, Task
from ensemble.rouge import Words

METRICS: dict[str, Callable[..., float]] = {  # (prediction, reference) -> grade; ROUGE also takes `words`
    "accuracy": accuracy,
    "exact_match": exact_match,
    "quasi_exact_match": quasi_exact_match,
    "numeric_match": numeric_match,
    "f1": f1,
    "rouge1": rouge1,
    "rouge2": rouge2,
    "rougeL": rougeL,
    "rouge2_char": rouge2_char,
}
ROUGE = ("rouge1", "rouge2", "rougeL")  # metrics of words, hence with a choice of what a word is

DEFAULT_METRICS: dict[Task, tuple[str, ...]] = {
    "multiple_choice": ("accuracy",),
    "summarization": ("rouge1", "rouge2", "rougeL", "rouge2_char"),
    "generation": ("exact_match", "quasi_exact_match", "f1"),
    "math": ("numeric_match",),
}

RESAMPLES = 1000
CONFIDENCE = 0.95
BINOMIAL_ABOVE = 10_000  # values
BATCH_VALUES = 1_000_000  # resampled at a time: with their int64 indices 16 MB


def check_metrics(task: Task, names: Iterable[str]) -> None:
    """ConfigError where a name is no metric or does not fit: accuracy compares options, all others compare texts."""
    fitting = [name for name in METRICS if (name == "accuracy") == (task == "multiple_choice")]
    for name in names:
        if name not in METRICS:
            raise ConfigError(unknown("metric", name, fitting))
        if name not in fitting:
            raise ConfigError(f"metric {name!r} does not fit task {task}; available: {', '.join(sorted(fitting))}")


def grade(
    task: Task, prediction: int | str | None, gold: Gold | None, metrics: Sequence[str], words: Words = "english"
) -> dict[str, float] | None:
    """{metric: grade in [0, 1]}, or None where there is no gold. ConfigError: see `check_metrics`, `rouge.tokens`.

    A prediction of None (no answer could be read) scores 0; of several references the best match counts.
    words: what ROUGE counts; the other metrics have their own definition of it.
    """
    check_metrics(task, metrics)
    if gold is None:
        return None
    references: tuple[int | str, ...] = gold if isinstance(gold, tuple) else (gold,)
    if prediction is None:
        return dict.fromkeys(metrics, 0.0)
    measures = {name: partial(METRICS[name], words=words) if name in ROUGE else METRICS[name] for name in metrics}
    return {name: max(measure(prediction, reference) for reference in references) for name, measure in measures.items()}


class GradeBook:
    """Collects grades, 8 bytes each, and how consistent choices are, and sums them up."""

    def __init__(self) -> None:
        self._grades: dict[tuple[Task, str | None, str], array[float]] = {}  # (task, group, metric)
        self._consistency: dict[tuple[Task, str | None], Consistency] = {}

    def add(
        self, task: Task, group: str | None, grades: Mapping[str, float] | None, letter_mass: float | None = None
    ) -> None:
        """Notes the grades of one question; None (no gold) leaves it out.

        letter_mass: the probability of all option letters together, which needs no gold; summed up as a metric.
        """
        noted = dict(grades or {})
        if letter_mass is not None:
            noted["letter_mass"] = letter_mass
        for metric, value in noted.items():
            self._grades.setdefault((task, group, metric), array("d")).append(value)

    def consistency(self, task: Task, group: str | None) -> Consistency:
        """What counts the multiple-choice questions of the group, summed up as metrics."""
        return self._consistency.setdefault((task, group), Consistency())

    def summary(self, seed: int) -> dict[str, dict[str, dict[str, float | int]]]:
        """{"task" or "task/group": {metric: {"mean", "ci_low", "ci_high", "n"}}}, keys sorted, rounded to 6 decimals.

        A "task" covers all of its questions, with and without group. The bounds are those of `interval`, or of
        `Consistency.summary`. The result depends on the grades and the seed alone, not on the order in which they came.
        """
        cells: dict[tuple[str, str], list[array[float]]] = {}
        for (task, group, metric), values in self._grades.items():
            for key in _keys(task, group):
                cells.setdefault((key, metric), []).append(values)
        result: dict[str, dict[str, dict[str, float | int]]] = {}
        for key, metric in sorted(cells):
            # Sorted, for neither floating-point sums nor resampling by index are independent of the order.
            grades = np.sort(np.concatenate([np.frombuffer(values) for values in cells[key, metric]]))
            mean, (low, high) = float(grades.mean()), interval(grades, seed)
            result.setdefault(key, {})[metric] = {
                "mean": round(mean, 6),
                "ci_low": round(low, 6),
                "ci_high": round(high, 6),
                "n": len(grades),
            }
        for key, measures in self._consistencies(seed).items():
            result[key] = dict(sorted((result.get(key, {}) | measures).items()))
        return dict(sorted(result.items()))

    def _consistencies(self, seed: int) -> dict[str, dict[str, dict[str, float | int]]]:
        """Per key those of `MEASURES` that are known of some of its questions."""
        merged: dict[str, Consistency] = {}
        for (task, group), consistency in self._consistency.items():
            for key in _keys(task, group):
                merged.setdefault(key, Consistency()).update(consistency)
        summaries = {key: consistency.summary(seed) for key, consistency in merged.items()}
        return {key: measures for key, measures in summaries.items() if measures}


def _keys(task: Task, group: str | None) -> set[str]:
    """Of grades.json, under which questions of this group count."""
    return {task, task if group is None else f"{task}/{group}"}


def interval(values: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, section 13.3) of float64 [n], n >= 1.

    For a million 0/1 values index resampling takes seconds and 10**9 random numbers. A resample of n values of
    which a share p is 1 has Binomial(n, p) ones, so RESAMPLES binomial draws have the same distribution.
    """
    n = len(values)
    if n == 1:  # scipy refuses it, and every resample is the value itself
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    if n > BINOMIAL_ABOVE and bool(((values == 0) | (values == 1)).all()):
        means = rng.binomial(n, values.mean(), size=RESAMPLES) / n
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)
    from scipy.stats import bootstrap

    bounds = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_VALUES // n),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return float(bounds.low), float(bounds.high)
