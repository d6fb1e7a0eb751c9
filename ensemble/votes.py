"""Which orders of the options to ask for, and how their log-probabilities become one decision. Pure numpy.

A `Voter` looks at what is known about a question and either names what is missing or decides; it does not care
whether the knowledge comes from an engine or from the store, so every decision can be replayed without a model.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.config import Cloze, Letter, Member, TaskPlan
from ensemble.parsing import chosen_option, final_number
from ensemble.prompts import LETTERS
from ensemble.records import Decision, Order, Question, Sample, Score

Evidence = Score | Sample | None
Floats = npt.NDArray[np.float64]


class Ask(NamedTuple):
    """What is missing from a member: orders, the options without the question, or (neither) a generated text."""

    member: int
    orders: tuple[Order, ...] = ()
    unconditional: bool = False


def identity(n: int) -> tuple[Order, ...]:
    return (tuple(range(n)),)


def cyclic(n: int) -> tuple[Order, ...]:
    """Each option stands once at each position."""
    return tuple(tuple((p + shift) % n for p in range(n)) for shift in range(n))


ORDERS = {"identity": identity, "cyclic": cyclic}


class Voter:
    """Combines the members of one task. `near_tie` is in log-probability per token, see `near_tie_bound`."""

    def __init__(self, plan: TaskPlan, names: Sequence[str], near_tie: float, labels: Sequence[str] = LETTERS) -> None:
        """labels: the options' names in the first member's prompt, by which a generated answer is read."""
        self._members, self._names, self._near_tie, self._labels = plan.members, tuple(names), near_tie, labels

    def next(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask] | Decision:
        """What to ask next, or the decision once nothing is missing."""
        asks = [
            ask
            for i, (member, known) in enumerate(zip(self._members, evidence, strict=True))
            if (ask := _missing(i, member, question, known))
        ]
        return asks or self._decide(question, evidence)

    def _decide(self, question: Question, evidence: Sequence[Evidence]) -> Decision:
        known = [e for e in evidence if e is not None]
        first = known[0]
        if isinstance(first, Sample):
            decision = _read_sample(question, first, self._names, self._labels)
        else:
            decision = self._vote(question, [e for e in known if isinstance(e, Score)])
        return decision

    def _vote(self, question: Question, known: Sequence[Score]) -> Decision:
        # The store may hold more orders than this member asks for: they must not show in any number.
        scores = [wanted_orders(m, question, s) for m, s in zip(self._members, known, strict=True)]
        tables = [normalised(m, question, s) for m, s in zip(self._members, scores, strict=True)]
        weights = np.array([m.weight for m in self._members])
        weights = weights / weights.sum()
        mean: Floats = log_softmax(sum(w * t.mean(axis=0) for w, t in zip(weights, tables, strict=True)))
        votes = np.zeros(len(mean), dtype=int)
        for table in tables:
            np.add.at(votes, table.argmax(axis=1), 1)
        best = int(mean.argmax())
        bound = np.sqrt(
            sum(
                (w * near_tie_bound(m, question, s)) ** 2
                for w, m, s in zip(weights, self._members, scores, strict=True)
            )
        )
        rivals = np.delete(np.arange(len(mean)), best)
        margin = mean[best] - mean[rivals]
        masses = [
            float(np.exp(s.logprobs.astype(float)).sum(axis=1).mean())
            for m, s in zip(self._members, scores, strict=True)
            if isinstance(m.scoring, Letter)
        ]
        return Decision(
            prediction=best,
            answer_text=question.choices[best],
            confidence=float(math.exp(mean[best])),
            scores=tuple(float(x) for x in mean),
            votes=tuple(int(v) for v in votes),
            orders_used=sum(len(s.orders) for s in scores),
            members=self._names,
            near_tie=bool((margin <= self._near_tie * np.hypot(bound[best], bound[rivals])).any()),
            letter_mass=min(masses, default=None),
            prompt=max((s.prompt for s in scores), key=lambda p: (p.cut_tokens, p.shots_dropped, p.tokens)),
        )


def _missing(index: int, member: Member, question: Question, known: Evidence) -> Ask | None:
    if isinstance(member.scoring, Letter | Cloze):
        wanted = ORDERS[member.scoring.orders](len(question.choices)) if isinstance(member.scoring, Letter) else ((),)
        if isinstance(member.scoring, Cloze):
            wanted = identity(len(question.choices))
        done = known.orders if isinstance(known, Score) else ()
        orders = tuple(order for order in wanted if order not in done)
        pmi = isinstance(member.scoring, Cloze) and member.scoring.normalisation == "pmi"
        unconditional = pmi and (not isinstance(known, Score) or known.unconditional is None)
        return Ask(index, orders, unconditional) if orders or unconditional else None
    return None if isinstance(known, Sample) else Ask(index)


def wanted_orders(member: Member, question: Question, score: Score) -> Score:
    """The score with only the orders that the member's config names, in their order."""
    kind = member.scoring.orders if isinstance(member.scoring, Letter) else "identity"
    wanted = ORDERS[kind](len(question.choices))
    rows = [score.orders.index(order) for order in wanted]
    return replace(score, orders=wanted, logprobs=score.logprobs[rows])


def normalised(member: Member, question: Question, score: Score) -> Floats:
    """[orders, options] log-probabilities that sum to one over the options, for the orders the member wants."""
    table = wanted_orders(member, question, score).logprobs.astype(np.float64)
    if isinstance(member.scoring, Cloze):
        if member.scoring.normalisation == "pmi":
            assert score.unconditional is not None
            table = table - score.unconditional.astype(np.float64)
        else:
            table = table / _lengths(member.scoring, question, score)
    return log_softmax(table)


def _lengths(scoring: Cloze, question: Question, score: Score) -> Floats:
    """Per option what its summed log-probability is divided by."""
    if scoring.normalisation == "token":
        return score.tokens.astype(np.float64)
    if scoring.normalisation == "char":  # as lm-evaluation-harness's acc_norm counts
        return np.array([len(choice) for choice in question.choices], dtype=np.float64)
    return np.ones(len(question.choices))


def near_tie_bound(member: Member, question: Question, score: Score) -> Floats:
    """Per option, how a numerical error of 1 in each token's log-probability adds up, tokens being independent."""
    if isinstance(member.scoring, Cloze):
        bound: Floats = np.sqrt(score.tokens) / _lengths(member.scoring, question, score)
        return bound
    return np.ones(len(question.choices)) / math.sqrt(len(score.orders))


def log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def merge(known: Evidence, new: Score) -> Score:
    """What is known after `new` came in; of the same order the first counts."""
    if not isinstance(known, Score):
        return new
    fresh = [i for i, order in enumerate(new.orders) if order not in known.orders]
    return Score(
        known.orders + tuple(new.orders[i] for i in fresh),
        np.concatenate([known.logprobs, new.logprobs[fresh]]) if known.orders else new.logprobs,
        known.tokens if known.orders else new.tokens,
        known.unconditional if known.unconditional is not None else new.unconditional,
        known.prompt if known.orders else new.prompt,
    )


def _read_sample(question: Question, sample: Sample, names: tuple[str, ...], labels: Sequence[str]) -> Decision:
    prediction: int | str | None = sample.text
    answer_text: str | None = sample.text
    if question.task == "multiple_choice":
        prediction = chosen_option(sample.text, labels[: len(question.choices)], question.choices)
        answer_text = None if prediction is None else question.choices[prediction]
    elif question.task == "math":
        prediction = final_number(sample.text)
    return Decision(
        prediction=prediction,
        answer_text=answer_text,
        confidence=None,
        scores=None,
        votes=None,
        orders_used=1,
        members=names,
        prompt=sample.prompt,
    )
