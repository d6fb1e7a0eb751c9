"""When to stop asking for further orders: exact curtailment, and a gate that is certified on a calibration sample.

Questions are asked in a fixed sequence of T reference orders, cyclic block after cyclic block. After any order the
vote is certain once the rest cannot change the winner (curtailment). After the first order and after each block a gate
estimates the probability that all T orders would choose another option, and stops where that is at most a limit.

The limit is chosen on a random sample of the questions in three steps that do not see each other's numbers: one part
fits the estimate (four coefficients and the labels' prior), the other tests limits from the strictest on, each by an
exact binomial bound, and the last one before the first failure is taken. Testing in a fixed order needs no correction
for the number of tests (Angelopoulos et al. 2021, "Learn then Test", fixed sequence testing), so with the stated
confidence the share of disagreeing decisions is at most the stated one, whatever the estimate is worth.

All arrays are float64; the leading axis is questions, T is the number of reference orders, n that of options.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.combine import Floats, Ints, winner
from ensemble.tracks import Track

EPSILON = 1e-9  # of a sum of ballots
FIRST, LATER = (0.4, -1.8), (0.3, -5.4)  # coefficients where nothing was fitted, from simulated scorers
SHRINK, FLOOR = 2.0, 0.002  # blocks that the variance within blocks counts for, and what is added to it
SHAKY = 1.25  # what other hardware may do to an estimate, as a factor of the limit
LAPSE = 0.001  # of one order, however sure: without it three surprises among 473 leave no limit that passes
LIMITS = tuple(np.geomspace(1e-4, 0.5, 75).tolist())  # tested one after another
FIT = (100, 200)  # least and most questions that fit the estimate
TEST_SHARE = 0.1  # of the questions, for the bound; never fewer than it takes
TESTED_AT_MOST = 2000


class Gate(NamedTuple):
    """limit: stop where the estimated probability of another winner is at most this. first, later: intercept and
    slope of that probability's logit, after one order in the log-odds of the two best options (None: go on), after
    blocks in log(1 + z), see `_later`. most: stop there in any case, at the last boundary of so many orders."""

    limit: float
    first: tuple[float, float] | None = FIRST
    later: tuple[float, float] = LATER
    most: int | None = None


EXACT = Gate(0.0)  # never stops before it is certain


class Walk(NamedTuple):
    """orders: int [Q], after which each question stops. choice: int [Q], its winner then. doubt: [Q], the
    estimated probability that all orders choose another one, 0 where that is impossible. needs: int [Q], how many
    orders have to be known to go on, 0 where the question has stopped. shaky: whether a slightly looser limit would
    have stopped at another choice."""

    orders: Ints
    choice: Ints
    doubt: Floats
    needs: Ints
    shaky: npt.NDArray[np.bool_]


class Certificate(NamedTuple):
    """What a calibration promises.

    guarantee: whether the share of disagreeing decisions is at most `max_disagreement` with `confidence`. fit, test:
    questions of the two parts. disagreements: of the tested questions. bound: upper confidence bound of the share, None
    where nothing was tested. orders: expected per question outside the sample. reason: why there is no guarantee.
    """

    guarantee: bool
    max_disagreement: float
    confidence: float
    fit: int = 0
    test: int = 0
    disagreements: int = 0
    bound: float | None = None
    orders: float | None = None
    reason: str = ""

    def sentence(self) -> str:
        """For people."""
        wanted = f"at most {self.max_disagreement:.2%} of different questions decided other than by all orders"
        if not self.guarantee:
            return f"no guarantee of {wanted}: {self.reason}"
        return (
            f"{wanted}, with {self.confidence:.0%} confidence "
            f"({self.disagreements} of {self.test} tested questions, bound {self.bound:.2%}); "
            f"about {self.orders:.1f} orders a question"
        )


class Sizes(NamedTuple):
    fit: int
    test: int


def questions_needed(max_disagreement: float, confidence: float) -> int:
    """The fewest tested questions that certify, without a disagreement among them: 299 for 1% at 95%."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-max_disagreement))


@lru_cache(64)
def sample_sizes(questions: int, max_disagreement: float, confidence: float) -> Sizes | None:
    """How many of the questions to ask in all orders; None where they are too few to certify anything."""
    needed = questions_needed(max_disagreement, confidence)
    fit = min(max(FIT[0], questions // 40), FIT[1])
    if questions < fit + needed:
        return None
    test = min(max(needed, int(TEST_SHARE * questions)), max(needed, TESTED_AT_MOST))
    # More questions help only when they allow one more disagreement: 299, 473, 628 .. for 1% at 95%.
    sizes = np.arange(needed, test + 1)
    wrong = range(1 + int(test * max_disagreement))
    allowed = [upper_bound(errors, sizes, confidence) <= max_disagreement for errors in wrong]
    return Sizes(fit, int(max(sizes[passing].min() for passing in allowed if passing.any())))


def upper_bound(wrong: int, tested: Any, confidence: float) -> Any:
    """Clopper and Pearson's one-sided upper bound of a share of which `wrong` of `tested` were seen."""
    from scipy.stats import beta

    return beta.ppf(confidence, wrong + 1, tested - wrong)


def first_ask(gate: Gate, n: int, orders: int) -> int:
    """How many orders to ask for at first: fewer could never stop."""
    if gate == EXACT:
        return orders // 2 + 1
    alone = gate.first is not None or (gate.most is not None and gate.most < n)
    return 1 if alone else min(n, orders // 2 + 1)


def boundaries(n: int, orders: int) -> list[int]:
    """After how many orders the gate may stop: one, each block; the last one ends anyway."""
    return [1, *range(n, orders, n)] if n < orders else [1]


def walk(track: Track, gate: Gate) -> Walk:
    """Where each question stops. Unknown orders are never looked at: `needs` says what it takes to go on."""
    stages = _stages(track, gate, gate.limit > 0 or gate.most is not None)
    found = _stop(stages, gate, track)
    looser = _stop(stages, gate._replace(limit=gate.limit * SHAKY), track)
    return found._replace(shaky=found.choice != looser.choice)


def fit_gate(tracks: Sequence[Track]) -> Gate:
    """The coefficients that fit best, drawn towards FIRST and LATER; the tracks are known until they are certain."""
    points: list[list[tuple[Floats, Floats]]] = [[], []]
    for track in tracks:
        stages = _stages(track, EXACT)
        for i, count in enumerate(stages.counts):
            open_ = stages.certain > count
            flips = (stages.choices[open_, i] != stages.winner[open_]).astype(np.float64)
            points[count > 1].append((stages.signals[open_, i], flips))
    first, later = (_logistic(part, start) for part, start in zip(points, (FIRST, LATER), strict=True))
    return Gate(0.0, first, later)


def certify(
    gate: Gate, tracks: Sequence[Track], max_disagreement: float, confidence: float
) -> tuple[Gate, list[tuple[float, int, float, float]]]:
    """The gate with the loosest limit that passes, and all limits up to it: limit, disagreements, upper bound of
    their share, mean orders. The tracks (at least one question) are known until they are certain."""
    tested = sum(len(track.ballots) for track in tracks)
    prepared = [(_stages(track, gate), track) for track in tracks]
    passed: list[tuple[float, int, float, float]] = []
    best = gate._replace(limit=0.0)
    for limit in (0.0, *LIMITS):
        wrong, orders = 0, 0
        for stages, track in prepared:
            stopped = _stop(stages, gate._replace(limit=limit), track)
            wrong += int((stopped.choice != stages.winner).sum())
            orders += int(stopped.orders.sum())
        # Limit 0 stops only where the rest cannot change the winner: it promises nothing that needs a test.
        bound = 0.0 if limit == 0 else float(upper_bound(wrong, tested, confidence)) if wrong < tested else 1.0
        if bound > max_disagreement:
            break
        best = gate._replace(limit=limit)
        passed.append((limit, wrong, bound, orders / tested))
    return best, passed


class _Stages(NamedTuple):
    """counts: the boundaries. choices, signals, doubts: [Q, boundaries] the leader there, what the estimate looks at,
    and the estimate. certain, winner: [Q] where curtailment stops, and the winner there. leads: [Q, T], of the best
    over the second option, nan where not known. known: [Q] orders."""

    counts: list[int]
    choices: Ints
    signals: Floats
    doubts: Floats
    certain: Ints
    winner: Ints
    leads: Floats
    known: Ints


def _stages(track: Track, gate: Gate, estimated: bool = True) -> _Stages:
    """estimated: whether anybody looks at the estimates."""
    ballots, offset, first, means = track
    questions, orders, n = ballots.shape
    totals = np.cumsum(ballots, axis=1) + offset[:, None]
    top = np.partition(totals, n - 2, axis=2)
    leads = top[..., n - 1] - top[..., n - 2]
    known = np.where(np.isnan(leads).any(axis=1), np.isnan(leads).argmax(axis=1), orders)
    left = np.arange(orders - 1, -1, -1)
    sure = leads > left + EPSILON
    sure[:, -1] = True
    certain = sure.argmax(axis=1) + 1
    last = np.minimum(certain, np.maximum(known, 1)) - 1
    winner = _best(totals[np.arange(questions), last], means)
    counts = boundaries(n, orders)
    choices = np.zeros((questions, len(counts)), dtype=np.intp)
    signals = np.zeros((questions, len(counts)))
    for i, count in enumerate(counts if estimated else ()):
        if count > known.max():  # of one question, where a few orders are known, most of the time would go there
            break
        if count == 1:
            choices[:, i], signals[:, i] = _first(first)
        else:
            choices[:, i], signals[:, i] = _later(ballots[:, :count], offset, orders)
    lines = np.array([(gate.first or FIRST) if count == 1 else gate.later for count in counts])
    doubts = np.exp(-np.logaddexp(0, -(lines[:, 0] + lines[:, 1] * signals)))
    doubts[:, 0] = LAPSE + (1 - LAPSE) * doubts[:, 0]
    return _Stages(counts, choices, signals, doubts, certain, winner, leads, known)


def _best(totals: Floats, means: Floats | float) -> Ints:
    """The winner of all votes, of equal ones (all orders known, hence not certain before) that of
    `ensemble.combine.vote`: majority has one tie in a hundred questions, more than may disagree."""
    totals = np.nan_to_num(totals, nan=-np.inf)
    return winner(totals, means, EPSILON)


def _first(first: Floats) -> tuple[Ints, Floats]:
    """Leader and log-odds against the second after one order, without the labels' prior."""
    top = np.partition(first, first.shape[1] - 2, axis=1)
    return first.argmax(axis=1), np.nan_to_num(top[:, -1] - top[:, -2], nan=0.0)


def _later(ballots: Floats, offset: Floats, orders: int) -> tuple[Ints, Floats]:
    """Leader and log(1 + z) after b of B blocks, z the smallest over its rivals of

        (lead that is expected after all orders) / (standard deviation of what the other blocks may change)

    The variance of a block's mean lead is that between the blocks seen, shrunk towards the variance within them over n
    (which has the labels' preferences in it, hence is too large rather than too small). Of blocks drawn without
    replacement the rest differs from the seen ones with variance v (1/b + 1/(B - b)).
    """
    questions, seen, n = ballots.shape
    blocks, rest = seen // n, (orders - seen) // n
    mean = ballots.mean(axis=1)
    final = offset + orders * mean
    leader = np.nan_to_num(final, nan=-np.inf).argmax(axis=1)
    lead = np.take_along_axis(ballots, leader[:, None, None], axis=2) - ballots  # [Q, seen, n]
    within = lead.var(axis=1, ddof=1) / n + FLOOR
    of_blocks = lead.reshape(questions, blocks, n, n).mean(axis=2)
    between = ((of_blocks - lead.mean(axis=1)[:, None]) ** 2).sum(axis=1)
    variance = (SHRINK * within + between) / (SHRINK + blocks - 1)
    deviation = np.sqrt(variance * (1 / blocks + 1 / rest)) * (orders - seen)
    z = (np.take_along_axis(final, leader[:, None], axis=1) - final) / deviation
    np.put_along_axis(z, leader[:, None], np.inf, axis=1)
    return leader, np.log1p(np.nan_to_num(z, nan=0.0, posinf=1e9).min(axis=1))


def _stop(stages: _Stages, gate: Gate, track: Track) -> Walk:
    orders = track.ballots.shape[1]
    count, choice = stages.certain.copy(), stages.winner.copy()
    doubt = np.zeros(len(count))
    going = np.ones(len(count), dtype=bool)
    most = orders if gate.most is None else gate.most
    forced = max(c for c in stages.counts if c <= most) if most < orders else orders
    next_gate = np.full(len(count), orders)
    for i, boundary in enumerate(stages.counts):
        usable = (boundary > 1 or gate.first is not None or forced == 1) and (gate.limit > 0 or forced < orders)
        if not usable:
            continue
        going &= stages.certain > boundary
        unknown = going & (stages.known < boundary)
        next_gate[unknown] = np.minimum(next_gate[unknown], boundary)
        going &= ~unknown
        stops = going & ((stages.doubts[:, i] <= gate.limit) | (boundary >= forced))
        count[stops], choice[stops] = boundary, stages.choices[stops, i]
        doubt[stops] = stages.doubts[stops, i]
        going &= ~stops
    needs = np.where(count > stages.known, np.minimum(next_gate, _may_be_certain(stages, orders)), 0)
    return Walk(count, choice, doubt, needs, np.zeros(len(count), dtype=bool))


def _may_be_certain(stages: _Stages, orders: int) -> Ints:
    """Orders after which curtailment could stop at the earliest, if all to come were for the leader."""
    known = np.maximum(stages.known, 1)
    lead = np.where(stages.known > 0, stages.leads[np.arange(len(known)), known - 1], 0.0)
    left = orders - stages.known
    more = np.floor((left - lead + EPSILON) / 2).astype(np.intp) + 1
    soonest: Ints = np.minimum(stages.known + np.maximum(more, 1), orders)
    return soonest


def _logistic(points: Sequence[tuple[Floats, Floats]], start: tuple[float, float]) -> tuple[float, float]:
    """Intercept and slope at the maximum of the likelihood times normal densities of deviation 1 around `start`."""
    from scipy.optimize import minimize

    if not points:
        return start
    x, y = (np.concatenate(part) for part in zip(*points, strict=True))

    def loss(w: Floats) -> float:
        return float(np.logaddexp(0, (1 - 2 * y) * (w[0] + w[1] * x)).sum() + ((w - start) ** 2).sum() / 2)

    found = minimize(loss, np.array(start)).x
    return float(found[0]), float(min(found[1], 0.0))
