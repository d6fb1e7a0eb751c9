"""What to ask about a question, and how the answers become one decision. Pure numpy.

A `Voter` looks at what is known about a question and either names what is missing or decides; it does not care
whether the knowledge comes from an engine or from the store, so every decision can be replayed without a model.
"""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np

from ensemble.adaptive import EXACT, Gate, Walk, first_ask, walk
from ensemble.calibration import NOBODY, Calibration, Drawn, needs_sample, rank
from ensemble.combine import EQUAL, Floats, Vote, ballots, vote
from ensemble.config import Cloze, Letter, Member, TaskPlan, is_adaptive
from ensemble.elect import elect
from ensemble.evidence import Evidence, known_prefix, pick_orders
from ensemble.orders import make_orders
from ensemble.prior import by_option
from ensemble.records import Decision, Order, Question, Score
from ensemble.render import LETTERS
from ensemble.tables import divisors, error_bound, is_pmi, normalise
from ensemble.tracks import Said, Track, join

Known = tuple[Question, Sequence[Evidence]]


class Ask(NamedTuple):
    """What is missing from a member: orders, the options without the question, or texts by their index."""

    member: int
    orders: tuple[Order, ...] = ()
    unconditional: bool = False
    samples: tuple[int, ...] = ()

    @property
    def prompts(self) -> int:
        return len(self.orders) + self.unconditional + len(self.samples)


class Voter:
    """Combines the members of one task. `near_tie` is in log-probability per token, see `error_bound`."""

    def __init__(
        self,
        plan: TaskPlan,
        names: Sequence[str],
        near_tie: float,
        labels: Sequence[str] = LETTERS,
        seed: int = 0,
        drawn: Drawn = NOBODY,
        calibration: Calibration | None = None,
        here: Container[int] | None = None,
    ) -> None:
        """labels: the options' names in the first member's prompt, by which a generated answer is read.
        seed: of the orders and of the sample. drawn: the sample that `calibration` comes from. here: the members that
        can be asked now, left out: all; of the others nothing is missing."""
        self.plan, self._members, self._names = plan, plan.members, tuple(names)
        self._near_tie, self._labels, self._seed, self._drawn = near_tie, labels, seed, drawn
        self._here = range(len(plan.members)) if here is None else here
        self._adaptive = tuple(i for i, member in enumerate(plan.members) if is_adaptive(member))
        self.calibrated = calibration is not None or not needs_sample(plan)
        self._calibration = calibration or Calibration({}, EXACT)
        self._ahead: dict[int, tuple[Sequence[Evidence], _Stop]] = {}

    def with_calibration(self, calibration: Calibration) -> "Voter":
        return Voter(
            self.plan, self._names, self._near_tie, self._labels, self._seed, self._drawn, calibration, self._here
        )

    def next(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask] | Decision:
        """What to ask next, or the decision once nothing is missing."""
        if asks := self.missing(question, evidence):
            return asks
        decision = self.best(question, evidence)
        assert decision is not None
        return decision

    def walk_ahead(self, known: Sequence[Known]) -> None:
        """Looks at many questions at once, for what `missing` and `best` are asked about the same evidence next: a
        replay of adaptive votes is several times faster."""
        self._ahead = {}
        groups: dict[tuple[int, bool], list[Known]] = {}
        for question, evidence in known if self._adaptive else ():
            fixed = (i for i in range(len(self._members)) if i not in self._adaptive)
            if self._seen(question, evidence) and all(self._lacks(i, question, evidence[i]) is None for i in fixed):
                groups.setdefault((len(question.choices), self._is_drawn(question)), []).append((question, evidence))
        for items in groups.values():
            found = walk(self.track(items), self._gate(items[0][0]))
            for row, (question, evidence) in enumerate(items):
                self._ahead[question.row_index] = evidence, self._stop_of(found, row, question)

    def missing(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask]:
        """All that the plan wants next and nobody has said yet; of adaptive members what the next look takes."""
        asks = [
            ask
            for i, known in enumerate(evidence)
            if i in self._here and i not in self._adaptive and (ask := self._lacks(i, question, known)) is not None
        ]
        if self._adaptive:
            sequence = self.reference(question)
            count = 1 if asks else self._walk(question, evidence).needs
            for i in (i for i in self._adaptive if i in self._here):
                if new := self._unknown(evidence[i], sequence[:count]):
                    asks.append(Ask(i, new))
        return asks

    def first(self, question: Question, evidence: Sequence[Evidence]) -> list[Ask]:
        """The least that makes a decision possible: one order or one text of the member that needs the fewest
        prompts, of several the first; nothing where there can be one already."""
        if any(self._usable(i, question, e) for i, e in enumerate(evidence)):
            return []
        asks = self.missing(question, evidence)
        if not asks:
            return []
        cheapest = min(asks, key=lambda ask: _price(self._members[ask.member], question))
        return [cheapest._replace(orders=cheapest.orders[:1], samples=cheapest.samples[:1])]

    def best(self, question: Question, evidence: Sequence[Evidence]) -> Decision | None:
        """The decision from what is known by now, over the members that have said something; None if none has."""
        usable = [i for i, e in enumerate(evidence) if self._usable(i, question, e)]
        if not usable:
            return None
        if any(isinstance(evidence[i], Score) for i in usable):
            return self._decide(question, {i: e for i in usable if isinstance(e := evidence[i], Score)})
        texts = [(self._members[i], e) for i in usable if isinstance(e := evidence[i], tuple)]
        samples = [(m.weight, sample) for m, said in texts for sample in said[: m.sampling.samples]]
        return elect(question, samples, self.plan, self._names, self._labels)

    def reference(self, question: Question) -> tuple[Order, ...]:
        """The orders that adaptive voting must agree with, in the sequence in which it asks for them."""
        return make_orders(self.plan.adaptive.reference, len(question.choices), self._seed)

    def track(self, known: Sequence[Known]) -> Track:
        """What adaptive voting looks at, for questions with the same number of options whose other members have said
        all and whose adaptive ones at least one order."""
        size = len(self.reference(known[0][0]))
        said = []
        for i, member in enumerate(self._members):
            tables, firsts = [], []
            for question, evidence in known:
                score = evidence[i]
                assert isinstance(score, Score)
                if i not in self._adaptive:
                    tables.append(self.table(i, question, pick_orders(score, self.wanted(i, question))))
                    continue
                score = pick_orders(score, self.reference(question)[: self._seen(question, evidence)])
                table = self.table(i, question, score)
                tables.append(np.pad(table, ((0, size - len(table)), (0, 0)), constant_values=np.nan))
                one = pick_orders(score, score.orders[:1])
                firsts.append(self.table(i, question, one, correct=True)[0])
            said.append(Said(np.array(tables), member.weight, np.array(firsts) if firsts else None))
        return join(said, self.plan.combine)

    def wanted(self, member: int, question: Question) -> tuple[Order, ...]:
        """The orders that a member's config names; of an adaptive one the reference."""
        scoring, n = self._members[member].scoring, len(question.choices)
        if not isinstance(scoring, Letter):
            return make_orders("identity", n, 0)
        if member in self._adaptive:
            return self.reference(question)
        orders = make_orders(scoring.orders, n, self._seed)
        limit = self._drawn.prior.get((member, n), -1)
        if limit >= 0 and rank(question, self._seed) <= limit:
            cycle = make_orders("cyclic", n, 0)
            orders = (*cycle, *(order for order in orders if order not in cycle))
        return orders

    def table(self, member: int, question: Question, score: Score, correct: bool | None = None) -> Floats:
        """[orders, options] normalised log-probabilities of all the score's orders.

        correct: whether the labels' prior is divided out; left out: as the config says.
        """
        config = self._members[member]
        scoring = config.scoring
        if correct is None:
            correct = isinstance(scoring, Letter) and scoring.debias == "pride"
        prior = self._calibration.priors.get((member, len(question.choices))) if correct else None
        return normalise(
            config,
            score.logprobs,
            divisors(config, score.tokens, _characters(question)),
            score.unconditional,
            None if prior is None else by_option(prior, score.orders),
        )

    def _decide(self, question: Question, known: dict[int, Score]) -> Decision:
        # A million questions come through here: few calls of numpy, whose arrays are tiny.
        stopped: _Stop | None = None
        if self._adaptive and len(known) == len(self._members):
            stopped = self._walk(question, [known[i] for i in range(len(known))])
        scores, tables, weights, bounds, masses = [], [], [], [], []
        for i, stored in known.items():
            member = self._members[i]
            wanted = self.wanted(i, question)
            if i in self._adaptive:
                count = stopped.orders if stopped else known_prefix(stored, wanted)
                wanted = wanted[: max(count, 1)]
            # The store may hold more orders than this member asks for: they must not show in any number.
            score = pick_orders(stored, wanted)
            only = len(score.orders) == 1 and i in self._adaptive
            tables.append(self.table(i, question, score, correct=True if only else None))
            lengths = divisors(member, score.tokens, _characters(question))
            bounds.append(error_bound(member, score.tokens, lengths, len(score.orders)))
            scores.append(score)
            weights.append(member.weight)
            if isinstance(member.scoring, Letter):
                masses.append(float(np.exp(score.logprobs).sum()) / len(score.orders))
        voted = vote(tables, weights, self.plan.combine)
        best = stopped.choice if stopped and stopped.early else int(voted.choice)
        choices = [table.argmax(axis=1) for table in tables]
        counts = [np.bincount(chosen, minlength=len(question.choices)) for chosen in choices]
        return Decision(
            prediction=best,
            answer_text=question.choices[best],
            confidence=float(voted.shares[best]),
            scores=tuple(voted.scores.tolist()),
            votes=tuple(sum(counts).tolist()),  # type: ignore[union-attr]
            orders_used=sum(len(score.orders) for score in scores),
            members=self._names,
            near_tie=bool(stopped and stopped.shaky) or self._is_near_tie(voted, tables, weights, bounds, best),
            letter_mass=min(masses, default=None),
            # Adaptive members are asked in more orders where they waver: that says nothing of the other questions.
            flip_rate=None if self._adaptive else _flip_rate(counts),
            circular=None if self._adaptive else _circular(scores, choices),
            doubt=stopped.doubt if stopped and not stopped.needs else None,
            prompt=max((s.prompt for s in scores), key=lambda p: (p.cut_tokens, p.shots_dropped, p.tokens)),
        )

    def _is_near_tie(
        self, voted: Vote, tables: list[Floats], weights: list[float], bounds: list[Floats], best: int
    ) -> bool:
        """Whether errors of `near_tie` in each log-probability, members being independent, may change the winner."""
        total = sum(weights)
        if self.plan.combine == "majority":  # an order with its own near tie may vote otherwise
            support, shaky = np.zeros(len(voted.scores)), 0.0
            for table, weight, bound in zip(tables, weights, bounds, strict=True):
                support += ballots(table, "majority").mean(axis=0) * (weight / total)
                top = np.partition(table, -2, axis=1)
                error = self._near_tie * np.sqrt(2.0) * bound.max() * np.sqrt(len(table))
                shaky += (top[:, -1] - top[:, -2] <= error).mean() * (weight / total)
            rivals = np.delete(support, best)
            return bool(support[best] - rivals.max(initial=0.0) <= 2 * shaky + EQUAL)
        spread = sum((weight / total * bound) ** 2 for weight, bound in zip(weights, bounds, strict=True))
        near = voted.scores[best] - voted.scores <= self._near_tie * np.sqrt(spread[best] + spread)  # type: ignore[index]
        return int(np.count_nonzero(near)) > 1  # the best one is near itself

    def _walk(self, question: Question, evidence: Sequence[Evidence]) -> "_Stop":
        if not self._seen(question, evidence):
            orders = len(self.reference(question))
            return _Stop(0, 0, 1.0, first_ask(self._gate(question), len(question.choices), orders), False)
        known, stop = self._ahead.get(question.row_index, (None, None))
        if stop is not None and known is evidence:
            return stop
        return self._stop_of(walk(self.track([(question, evidence)]), self._gate(question)), 0, question)

    def _stop_of(self, found: Walk, row: int, question: Question) -> "_Stop":
        orders, choice, needs = int(found.orders[row]), int(found.choice[row]), int(found.needs[row])
        early, shaky = orders < len(self.reference(question)), bool(found.shaky[row])
        return _Stop(orders, choice, float(found.doubt[row]), needs, early, shaky)

    def _gate(self, question: Question) -> Gate:
        return EXACT if self._is_drawn(question) else self._calibration.gate

    def _is_drawn(self, question: Question) -> bool:
        return self._drawn.test >= 0 and rank(question, self._seed) <= self._drawn.test

    def in_sample(self, question: Question) -> bool:
        """Whether the calibration looks at this question."""
        n, place = len(question.choices), rank(question, self._seed)
        limits = (self._drawn.prior.get((i, n), -1) for i in range(len(self._members)))
        return place <= max(self._drawn.test, *limits)

    def _seen(self, question: Question, evidence: Sequence[Evidence]) -> int:
        """How many reference orders all adaptive members have answered, from the first on."""
        return min(known_prefix(evidence[i], self.reference(question)) for i in self._adaptive)

    def _lacks(self, index: int, question: Question, known: Evidence) -> Ask | None:
        member = self._members[index]
        if not _scores(member):
            done = {sample.index for sample in known} if isinstance(known, tuple) else set()
            samples = tuple(i for i in range(member.sampling.samples) if i not in done)
            return Ask(index, samples=samples) if samples else None
        orders = self._unknown(known, self.wanted(index, question))
        unconditional = is_pmi(member) and (not isinstance(known, Score) or known.unconditional is None)
        return Ask(index, orders, unconditional) if orders or unconditional else None

    def _unknown(self, known: Evidence, wanted: tuple[Order, ...]) -> tuple[Order, ...]:
        if not isinstance(known, Score):
            return wanted
        if known.orders[: len(wanted)] == wanted:
            return ()
        had = set(known.orders)
        return tuple(order for order in wanted if order not in had)

    def _usable(self, index: int, question: Question, known: Evidence) -> bool:
        """Whether a decision can be made from what this member has said."""
        member = self._members[index]
        if isinstance(known, Score):
            wanted = self.wanted(index, question)
            said = known_prefix(known, wanted) if index in self._adaptive else not set(wanted).isdisjoint(known.orders)
            return bool(said) and not (is_pmi(member) and known.unconditional is None)
        return bool(known) and known[0].index < member.sampling.samples  # type: ignore[index]


class _Stop(NamedTuple):
    """`ensemble.adaptive.Walk` of one question; early: before all orders."""

    orders: int
    choice: int
    doubt: float
    needs: int
    early: bool
    shaky: bool = False


def _scores(member: Member) -> bool:
    return isinstance(member.scoring, Letter | Cloze)


def _characters(question: Question) -> Floats:
    return np.array([len(choice) for choice in question.choices], dtype=np.float64)


def _price(member: Member, question: Question) -> int:
    """Sequences that a first answer takes."""
    return len(question.choices) * (1 + is_pmi(member)) if isinstance(member.scoring, Cloze) else 1


def _flip_rate(counts: Sequence[np.ndarray]) -> float | None:
    """counts: per member how many of its orders chose each option."""
    rates = []
    for count in counts:
        orders = int(count.sum())
        if orders > 1:
            rates.append(1 - float((count * (count - 1)).sum()) / (orders * (orders - 1)))
    return sum(rates) / len(rates) if rates else None


def _circular(scores: Sequence[Score], choices: Sequence[np.ndarray]) -> int | None:
    found = set[int]()
    for score, chosen in zip(scores, choices, strict=True):
        n = len(score.tokens)
        if n > 1 and score.orders[:n] == make_orders("cyclic", n, 0):
            found |= set(chosen[:n].tolist())
    return None if not found else found.pop() if len(found) == 1 else -1
