"""Which orders of the options to ask for, and how their log-probabilities become one decision. Pure numpy.

A `Voter` looks at what is known about a question and either names what is missing or decides; it does not care
whether the knowledge comes from an engine or from the store, so every decision can be replayed without a model.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.config import Cloze, Letter, Member, TaskPlan
from ensemble.elect import elect
from ensemble.records import Decision, Order, Question, Sample, Score
from ensemble.render import LETTERS

Evidence = Score | tuple[Sample, ...] | None
Floats = npt.NDArray[np.float64]


class Ask(NamedTuple):
    """What is missing from a member: orders, the options without the question, or texts by their index."""

    member: int
    orders: tuple[Order, ...] = ()
    unconditional: bool = False
    samples: tuple[int, ...] = ()

    @property
    def prompts(self) -> int:
        return len(self.orders) + self.unconditional + len(self.samples)


@lru_cache(maxsize=64)
def identity(n: int) -> tuple[Order, ...]:
    return (tuple(range(n)),)


@lru_cache(maxsize=64)
def cyclic(n: int) -> tuple[Order, ...]:
    """Each option stands once at each position."""
    return tuple(tuple((p + shift) % n for p in range(n)) for shift in range(n))


ORDERS = {"identity": identity, "cyclic": cyclic}


class Voter:
    """Combines the members of one task. `near_tie` is in log-probability per token, see `near_tie_bound`."""

    def __init__(self, plan: TaskPlan, names: Sequence[str], near_tie: float, labels: Sequence[str] = LETTERS) -> None:
        """labels: the options' names in the first member's prompt, by which a generated answer is read."""
        self._plan, self._members, self._names = plan, plan.members, tuple(names)
        self._near_tie, self._labels = near_tie, labels

    def next(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask] | Decision:
        """What to ask next, or the decision once nothing is missing."""
        if asks := self.missing(question, evidence):
            return asks
        decision = self.best(question, evidence)
        assert decision is not None
        return decision

    def missing(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask]:
        """All that the plan wants and nobody has said yet."""
        asks = (_missing(i, m, question, e) for i, (m, e) in enumerate(zip(self._members, evidence, strict=True)))
        return [ask for ask in asks if ask is not None]

    def first(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask]:
        """The least that makes a decision possible: one order or one text of the member that needs the fewest
        prompts, of several the first; nothing where there can be one already."""
        if any(_usable(m, question, e) for m, e in zip(self._members, evidence, strict=True)):
            return []
        asks = self.missing(question, evidence)
        cheapest = min(asks, key=lambda ask: _price(self._members[ask.member], question))
        return [cheapest._replace(orders=cheapest.orders[:1], samples=cheapest.samples[:1])]

    def best(self, question: Question, evidence: Sequence[Evidence]) -> Decision | None:
        """The decision from what is known by now, over the members that have said something; None if none has."""
        known = [(member, e) for member, e in zip(self._members, evidence, strict=True) if _usable(member, question, e)]
        if not known:
            return None
        scores = [(member, e) for member, e in known if isinstance(e, Score)]
        if scores:
            return self._vote(question, scores)
        samples = [(m.weight, s) for m, e in known if isinstance(e, tuple) for s in e[: m.sampling.samples]]
        return elect(question, samples, self._plan, self._names, self._labels)

    def _vote(self, question: Question, known: Sequence[tuple[Member, Score]]) -> Decision:
        # A million questions come through here: few calls of numpy, whose arrays are tiny.
        n = len(question.choices)
        total = sum(member.weight for member, _ in known)
        mean, spread, votes = np.zeros(n), np.zeros(n), np.zeros(n, dtype=int)
        scores, masses = [], []
        for member, stored in known:
            # The store may hold more orders than this member asks for: they must not show in any number.
            score = wanted_orders(member, question, stored)
            table = normalised(member, question, score)
            weight = member.weight / total
            mean += table.sum(axis=0) * (weight / len(table))
            votes += np.bincount(table.argmax(axis=1), minlength=n)
            spread += (weight * near_tie_bound(member, question, score)) ** 2
            scores.append(score)
            if isinstance(member.scoring, Letter):
                masses.append(float(np.exp(score.logprobs).sum()) / len(table))
        mean = log_softmax(mean)
        best = int(mean.argmax())
        near = mean[best] - mean <= self._near_tie * np.sqrt(spread[best] + spread)
        return Decision(
            prediction=best,
            answer_text=question.choices[best],
            confidence=math.exp(mean[best]),
            scores=tuple(mean.tolist()),
            votes=tuple(votes.tolist()),
            orders_used=sum(len(score.orders) for score in scores),
            members=self._names,
            near_tie=int(np.count_nonzero(near)) > 1,  # the best one is near itself
            letter_mass=min(masses, default=None),
            prompt=max((s.prompt for s in scores), key=lambda p: (p.cut_tokens, p.shots_dropped, p.tokens)),
        )


def _missing(index: int, member: Member, question: Question, known: Evidence) -> Ask | None:
    wanted = _wanted(member, question)
    if wanted is None:
        done = {sample.index for sample in known} if isinstance(known, tuple) else set()
        samples = tuple(i for i in range(member.sampling.samples) if i not in done)
        return Ask(index, samples=samples) if samples else None
    had = known.orders if isinstance(known, Score) else ()
    orders = tuple(order for order in wanted if order not in had)
    unconditional = _is_pmi(member) and (not isinstance(known, Score) or known.unconditional is None)
    return Ask(index, orders, unconditional) if orders or unconditional else None


def _usable(member: Member, question: Question, known: Evidence) -> bool:
    """Whether a decision can be made from what this member has said."""
    if isinstance(known, Score):
        wanted = _wanted(member, question) or ()
        said = any(order in known.orders for order in wanted)
        return said and not (_is_pmi(member) and known.unconditional is None)
    return bool(known) and known[0].index < member.sampling.samples  # type: ignore[index]


def _price(member: Member, question: Question) -> int:
    """Sequences that a first answer takes."""
    return len(question.choices) * (1 + _is_pmi(member)) if isinstance(member.scoring, Cloze) else 1


def _wanted(member: Member, question: Question) -> tuple[Order, ...] | None:
    """The orders that the member's config names; None for a member that generates text."""
    if isinstance(member.scoring, Letter):
        return ORDERS[member.scoring.orders](len(question.choices))
    return identity(len(question.choices)) if isinstance(member.scoring, Cloze) else None


def _is_pmi(member: Member) -> bool:
    return isinstance(member.scoring, Cloze) and member.scoring.normalisation == "pmi"


def wanted_orders(member: Member, question: Question, score: Score) -> Score:
    """The score with only those of its orders that the member's config names, in the config's order."""
    wanted = tuple(order for order in _wanted(member, question) or () if order in score.orders)
    if wanted == score.orders:
        return score
    rows = [score.orders.index(order) for order in wanted]
    return replace(score, orders=wanted, logprobs=score.logprobs[rows])


def normalised(member: Member, question: Question, score: Score) -> Floats:
    """[orders, options] log-probabilities that sum to one over the options, for the orders the member wants."""
    table: Floats = wanted_orders(member, question, score).logprobs.astype(np.float64)
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
    return np.full(len(question.choices), 1 / math.sqrt(len(score.orders)))


def log_softmax(x: Floats) -> Floats:
    result: Floats = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
    return result


def merge(known: Evidence, new: Score | Sample) -> Score | tuple[Sample, ...]:
    """What is known after `new` came in; of the same order or sample the first counts."""
    if isinstance(new, Sample):
        samples = known if isinstance(known, tuple) else ()
        return tuple(sorted({s.index: s for s in (new, *samples)}.values(), key=lambda s: s.index))
    return merge_scores(known if isinstance(known, Score) else None, new)


def merge_scores(known: Score | None, new: Score) -> Score:
    """The orders of both; of the same order the first counts."""
    if known is None:
        return new
    fresh = [i for i, order in enumerate(new.orders) if order not in known.orders]
    return Score(
        known.orders + tuple(new.orders[i] for i in fresh),
        np.concatenate([known.logprobs, new.logprobs[fresh]]) if known.orders else new.logprobs,
        known.tokens if known.orders else new.tokens,
        known.unconditional if known.unconditional is not None else new.unconditional,
        known.prompt if known.orders else new.prompt,
    )
