"""One answer out of several generated texts: a vote where answers can be equal, else the most central text."""

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction

from ensemble.config import TaskPlan
from ensemble.grading import DEFAULT_METRICS, grade
from ensemble.parsing import chosen_option, final_number
from ensemble.records import Decision, Question, Sample

Weighted = Sequence[tuple[float, Sample]]


def elect(
    question: Question, samples: Weighted, plan: TaskPlan, names: tuple[str, ...], labels: Sequence[str]
) -> Decision:
    """The decision over (weight, text) pairs of all members, at least one.

    Numbers and options: the answer with the largest summed weight wins (self-consistency, Wang et al. 2022,
    arXiv:2203.11171), of equals the one that came first; texts without an answer do not vote. Its share of the
    votes is the confidence. Other texts: the one with the largest mean utility against all others wins (minimum
    Bayes risk, Kumar & Byrne 2004); the utility is the task's first metric.
    """
    votes = None
    if question.task == "multiple_choice":
        best, confidence, counts = majority(
            samples, lambda text: chosen_option(text, labels[: len(question.choices)], question.choices)
        )
        prediction = chosen_option(best.text, labels[: len(question.choices)], question.choices)
        answer_text = None if prediction is None else question.choices[prediction]
        votes = tuple(counts.get(i, 0) for i in range(len(question.choices)))
        return _decision(samples, best, prediction, answer_text, confidence, votes, names)
    if question.task == "math":
        best, confidence, _ = majority(samples, _number)
        return _decision(samples, best, final_number(best.text), best.text, confidence, None, names)
    best = central(samples, _utility(question, plan))
    return _decision(samples, best, best.text, best.text, None, None, names)


def majority(
    samples: Weighted, read: Callable[[str], Hashable | None]
) -> tuple[Sample, float | None, dict[Hashable, int]]:
    """The first text of the winning answer, the answer's share of all weight (None for one text) and texts per answer.

    read: text -> its answer, or None where it has none. Where no text has one, the first text wins with share 0.
    """
    answers = [read(sample.text) for _, sample in samples]
    weights: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for (weight, _), answer in zip(samples, answers, strict=True):
        if answer is not None:
            weights[answer] = weights.get(answer, 0.0) + weight
            counts[answer] = counts.get(answer, 0) + 1
    if not weights:
        return samples[0][1], None if len(samples) == 1 else 0.0, {}
    winner = max(weights, key=weights.__getitem__)  # of equals the first that was seen
    share = weights[winner] / sum(weight for weight, _ in samples)
    return samples[answers.index(winner)][1], None if len(samples) == 1 else share, counts


def central(samples: Weighted, utility: Callable[[str, str], float]) -> Sample:
    """The text with the largest weighted mean utility(text, other) over the others; of equals the first."""
    texts = [sample.text for _, sample in samples]
    known: dict[tuple[str, str], float] = {}

    def score(i: int) -> float:
        total = 0.0
        for j, (weight, _) in enumerate(samples):
            if i != j:
                pair = texts[i], texts[j]
                if pair not in known:
                    known[pair] = utility(*pair)
                total += weight * known[pair]
        return total

    return samples[max(range(len(samples)), key=score)][1] if len(samples) > 1 else samples[0][1]


def _utility(question: Question, plan: TaskPlan) -> Callable[[str, str], float]:
    metric = (plan.metrics or DEFAULT_METRICS[question.task])[0]

    def utility(text: str, other: str) -> float:
        grades = grade(question.task, text, (other,), (metric,), plan.rouge_words)
        assert grades is not None
        return grades[metric]

    return utility


def _number(text: str) -> Hashable | None:
    """A number by its value: 0.75 and 3/4 are one answer."""
    number = final_number(text)
    return Fraction(number) if number is not None and len(number) <= 80 else number


def _decision(
    samples: Weighted,
    best: Sample,
    prediction: int | str | None,
    answer_text: str | None,
    confidence: float | None,
    votes: tuple[int, ...] | None,
    names: tuple[str, ...],
) -> Decision:
    return Decision(
        prediction=prediction,
        answer_text=answer_text,
        confidence=confidence,
        scores=None,
        votes=votes if len(samples) > 1 else None,
        orders_used=len(samples),
        members=names,
        prompt=best.prompt,
        samples=tuple(sample.text for _, sample in samples) if len(samples) > 1 else (),
    )
