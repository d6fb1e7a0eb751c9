"""Makes a task's calibration of what its sample was asked: `ensemble.calibration` says who is in the sample."""

from collections.abc import Mapping, Sequence

import numpy as np

from ensemble.adaptive import (
    EXACT,
    LATER,
    LIMITS,
    Certificate,
    Gate,
    certify,
    fit_gate,
    sample_sizes,
    upper_bound,
    walk,
)
from ensemble.calibration import LEAST, Calibration, Drawn, Population, estimates_prior, rank
from ensemble.combine import Floats, log_softmax
from ensemble.config import Adaptive, TaskPlan, is_adaptive
from ensemble.evidence import pick_orders
from ensemble.orders import make_orders
from ensemble.prior import estimate_prior
from ensemble.records import Score
from ensemble.tracks import Track
from ensemble.votes import Known, Voter

Priors = Mapping[tuple[int, int], Floats]


def calibrate(
    plan: TaskPlan,
    voter: Voter,
    drawn: Drawn,
    population: Population,
    known: Sequence[Known],
    stored: Priors,
    seed: int,
) -> Calibration:
    """voter: of the same plan and sample, without a calibration. known: the sample's questions that lack nothing, in
    any order. stored: (member, number of options) -> prior out of a file."""
    known = sorted(known, key=lambda item: (rank(item[0], seed), item[0].row_index))  # sums depend on the order
    known = list({rank(item[0], seed): item for item in reversed(known)}.values())[::-1]  # each content once
    ranks = [rank(question, seed) for question, _ in known]
    fit = [item for item, r in zip(known, ranks, strict=True) if r <= drawn.fit]
    test = [item for item, r in zip(known, ranks, strict=True) if drawn.fit < r <= drawn.test]
    priors = dict(stored)
    for i, member in enumerate(plan.members):
        if estimates_prior(member):
            of_prior = ((item, drawn.prior.get((i, len(item[0].choices)), -1)) for item in known)
            priors |= _priors(i, [item for item, limit in of_prior if rank(item[0], seed) <= limit])
        elif is_adaptive(member):
            priors |= _priors(i, fit, LEAST)
    if not any(map(is_adaptive, plan.members)):
        return Calibration(priors, EXACT)
    if not test:
        return Calibration(priors, *uncertified(plan.adaptive, len(population.distinct())))
    corrected = voter.with_calibration(Calibration(priors, EXACT))
    gate, promise = certified(plan.adaptive, _tracks(fit, corrected), _tracks(test, corrected), population)
    return Calibration(priors, gate, promise)


def _priors(member: int, known: Sequence[Known], least: int = 1) -> dict[tuple[int, int], Floats]:
    """Per number of options, from the questions that were asked in all cyclic orders, where they are `least`."""
    tables: dict[int, list[Floats]] = {}
    for question, evidence in known:
        cycle = make_orders("cyclic", len(question.choices), 0)
        score = evidence[member]
        if isinstance(score, Score) and set(cycle) <= set(score.orders):
            # Without the member's temperature: the prior is divided out before that is.
            table = log_softmax(pick_orders(score, cycle).logprobs.astype(np.float64))
            tables.setdefault(len(question.choices), []).append(table)
    return {(member, n): estimate_prior(np.array(found)) for n, found in tables.items() if len(found) >= least}


def _tracks(known: Sequence[Known], voter: Voter) -> list[Track]:
    by_options: dict[int, list[Known]] = {}
    for item in known:
        by_options.setdefault(len(item[0].choices), []).append(item)
    return [voter.track(items) for _, items in sorted(by_options.items())]


def certified(
    adaptive: Adaptive, fit: Sequence[Track], test: Sequence[Track], population: Population
) -> tuple[Gate, Certificate]:
    gate, passed = certify(fit_gate(fit), test, adaptive.max_disagreement, adaptive.confidence)
    _, wrong, bound, orders = passed[-1]
    sizes = sum(len(track.ballots) for track in fit), sum(len(track.ballots) for track in test)
    certificate = Certificate(True, adaptive.max_disagreement, adaptive.confidence, *sizes, wrong, bound, orders)
    if adaptive.budget is None:
        return gate, certificate
    return _within_budget(adaptive, gate, certificate, fit, test, population)


def _within_budget(
    adaptive: Adaptive,
    gate: Gate,
    certificate: Certificate,
    fit: Sequence[Track],
    test: Sequence[Track],
    population: Population,
) -> tuple[Gate, Certificate]:
    """The certified gate where its expected cost fits the budget, else the strictest one whose cost does.

    Expected means the upper 95% bound of the mean orders on the tested questions.
    """
    assert adaptive.budget is not None
    sampled = certificate.fit + certificate.test
    spent = sum(int(walk(track, EXACT).orders.sum()) for track in (*fit, *test))
    left = (adaptive.budget * population.total() - spent) / max(population.total() - sampled, 1)
    gates = [gate, *(gate._replace(limit=limit) for limit in LIMITS if limit > gate.limit)]
    gates.append(gates[-1]._replace(most=max(int(left), 1)))  # where even the loosest takes more
    for looser in gates:
        walks = [walk(track, looser) for track in test]
        counts = np.concatenate([w.orders for w in walks])
        if counts.mean() + 1.645 * counts.std() / np.sqrt(len(counts)) <= left:
            break
    if looser == gate:
        return gate, certificate
    wrong = sum(int((w.choice != walk(t, EXACT).choice).sum()) for w, t in zip(walks, test, strict=True))
    told = certificate._replace(
        guarantee=False, disagreements=wrong, bound=upper_bound(wrong, len(counts), adaptive.confidence),
        orders=float(counts.mean()), reason=f"the budget of {adaptive.budget:g} orders a question is too small for it",
    )  # fmt: skip
    return looser, told


def uncertified(adaptive: Adaptive, questions: int) -> tuple[Gate, Certificate]:
    """Where nothing can be certified: stop where it is certain, where the estimate with its standard coefficients is at
    most `max_disagreement`, or where the budget ends."""
    budget = None if adaptive.budget is None else int(adaptive.budget)
    if sample_sizes(questions, adaptive.max_disagreement, adaptive.confidence) is None:
        reason = f"{questions} questions are too few to certify it"
    else:
        reason = "its sample was not asked" if budget is None else "the budget is too small to calibrate"
    # One order says nothing about how much others differ, so a whole block is asked at least, where it may be.
    gate = Gate(adaptive.max_disagreement, None, LATER, budget)
    return gate, Certificate(False, adaptive.max_disagreement, adaptive.confidence, reason=reason)
