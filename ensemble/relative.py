"""A run's score relative to a baseline: the sum over tasks of our mean divided by the baseline's.

The Matsuo Lab competition of 2023 counts so: accuracy / baseline accuracy + ROUGE-2 / baseline ROUGE-2. Equal to the
baseline is 1 a task.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.config import RunConfig
from ensemble.errors import ConfigError
from ensemble.grading import DEFAULT_METRICS, check_metrics, grade
from ensemble.records import Question, Task
from ensemble.submissions import read_answers, require_common

Means = Mapping[Task, Mapping[str, float]]  # per task one metric and the baseline's mean of it


def check_baseline(config: RunConfig) -> None:
    """Raises ConfigError where `baseline` cannot be compared with what the run measures."""
    for task, means in config.baseline.items():
        where = f"baseline.{task}"
        if task not in config.tasks:
            raise ConfigError(f"{where}: nobody answers {task}; add members under tasks.{task}, or remove it")
        if len(means) != 1:
            raise ConfigError(
                f"{where}: has {len(means)} metrics; keep one, such as {{{metrics(config, task)[0]}: 0.2}}"
            )
        name, mean = next(iter(means.items()))
        check_metrics(task, [name])
        if name not in metrics(config, task):
            raise ConfigError(f"{where}: {name} is not measured; add it to tasks.{task}.metrics")
        if mean <= 0:
            raise ConfigError(f"{where}.{name}: is {mean}, and nothing can be relative to that; give a mean above 0")


def metrics(config: RunConfig, task: Task) -> Sequence[str]:
    """What the run measures of a task."""
    return config.tasks[task].metrics or DEFAULT_METRICS[task]


def relative(grades: Mapping[str, Mapping[str, Mapping[str, float]]], baseline: Means) -> dict[str, Any] | None:
    """{"total", "tasks": {task: {"metric", "mean", "baseline", "ratio"}}}, rounded to 6 decimals.

    grades: as in grades.json. A task that one of the two lacks is left out; where the baseline's mean is 0 the ratio is
    None and the total does without it. None where no task has a ratio.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task, means in baseline.items():
        for name, mean in means.items():
            if name in grades.get(task, {}):
                ours = grades[task][name]["mean"]
                ratio = round(ours / mean, 6) if mean > 0 else None
                tasks[task] = {"metric": name, "mean": ours, "baseline": round(mean, 6), "ratio": ratio}
    ratios = [entry["ratio"] for entry in tasks.values() if entry["ratio"] is not None]
    return {"total": round(sum(ratios), 6), "tasks": tasks} if ratios else None


class BaselineGrades:
    """Grades a baseline's submission on the run's questions, by the same gold and metric; 8 bytes a question.

    A question that the baseline does not answer counts as wrong. Raises InputError: see `submissions.submission_rows`.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._path, self._config, self._answers = path, config, read_answers(path)
        self._grades: dict[Task, array[float]] = {}

    def require_common(self, ids: Iterable[int | str]) -> None:
        """Raises InputError where the baseline answers none of the run's questions."""
        require_common(self._path, self._answers, ids)

    def metric(self, task: Task) -> str:
        """The one that is compared: the task's first, or, as in the competition, rouge2_char where it is measured."""
        names = metrics(self._config, task)
        return "rouge2_char" if self._config.submission.format == "matsuo" and "rouge2_char" in names else names[0]

    def add(self, question: Question) -> None:
        """Grades the baseline's answer to a question with its gold; without gold it does not count."""
        answer = self._answers.get(question.id)
        name = self.metric(question.task)
        grades = grade(
            question.task,
            None if answer is None else answer.prediction(question),
            question.gold,
            [name],
            self._config.tasks[question.task].rouge_words,
        )
        if grades is not None:
            self._grades.setdefault(question.task, array("d")).append(grades[name])

    def means(self) -> dict[Task, dict[str, float]]:
        """{task: {metric: mean}} of the tasks that had gold."""
        return {task: {self.metric(task): sum(sorted(x)) / len(x)} for task, x in self._grades.items()}
