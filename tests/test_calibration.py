"""The sample that votes are calibrated on, what comes out of it, and voters that stop early by it."""

import numpy as np
import pytest

from ensemble.adaptive import EXACT, Gate, Sizes, walk
from ensemble.calibrate import calibrate, uncertified
from ensemble.calibration import (
    NOBODY,
    Calibration,
    Drawn,
    Population,
    certifiable,
    draw,
    needs_sample,
    rank,
)
from ensemble.combine import log_softmax, vote
from ensemble.config import Adaptive, Cloze, Letter, Member, TaskPlan, check_plan
from ensemble.evidence import merge
from ensemble.orders import make_orders, positions
from ensemble.records import Decision, Score
from ensemble.votes import Ask, Voter
from tests.conftest import cyclic, identity, question
from tests.scorers import Scorer, simulate, track_of

REFERENCE = "latin:24"


def letter(orders="adaptive", weight=1.0, **fields):
    return Member(model="m", template="t", scoring=Letter(method="letter", orders=orders, **fields), weight=weight)


def plan(*members, combine="mean_prob", **adaptive):
    return TaskPlan(members=members or (letter(),), combine=combine, adaptive=Adaptive(**adaptive))


def questions(count, n=4, start=0):
    options = tuple(f"option {i}" for i in range(n))
    return [question(f"Which one of {n}, {i}?", options, row_index=i) for i in range(start, start + count)]


def population(asked, seed=0):
    ranks = {}
    for q in asked:
        ranks.setdefault(len(q.choices), []).append(rank(q, seed))
    return Population(ranks)


class Engine:
    """Answers asks out of tables: per member and question text the orders and their log-probabilities."""

    def __init__(self):
        self._said = {}
        self.asked = 0

    def knows(self, member, asked, orders, logprobs):
        for q, table in zip(asked, logprobs, strict=True):
            self._said[member, q.text] = dict(zip(orders, table, strict=True))

    def says(self, member, q, orders):
        self.asked += len(orders)
        rows = np.array([self._said[member, q.text][order] for order in orders], dtype=np.float32)
        return Score(orders, rows, np.ones(len(q.choices), np.int32))

    def answer(self, voter, q, known=None):
        """Decision, what was known by then, and the asks."""
        evidence, asks = list(known or [None] * len(voter.plan.members)), []
        while isinstance(step := voter.next(q, evidence), list):
            assert step
            asks.append(step)
            for ask in step:
                assert ask.orders
                assert len(asks) < 30
                evidence[ask.member] = merge(evidence[ask.member], self.says(ask.member, q, ask.orders))
        return step, evidence, asks


def setup(task, asked, seed=0, certify=True):
    """A voter that is not calibrated yet, its sample, and the population."""
    everybody = population(asked, seed)
    drawn = draw(task, everybody, certify)
    return Voter(task, [f"m{i}" for i in range(len(task.members))], 0.0, seed=seed, drawn=drawn), drawn, everybody


def calibration_of(engine, voter, drawn, everybody, asked, stored=None, seed=0):
    sample = [(q, engine.answer(voter, q)[1]) for q in asked if voter.in_sample(q)]
    return calibrate(voter.plan, voter, drawn, everybody, sample, stored or {}, seed), sample


# The sample


def test_the_sample_is_drawn_by_content_and_seed():
    asked = questions(1000)
    ranks = np.array([rank(q, 0) for q in asked], dtype=np.float64) / 2**64
    assert abs(ranks.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 1000)
    assert rank(asked[0], 0) == rank(question(asked[0].text, asked[0].choices, row_index=77, group="g"), 0)
    drawn = draw(plan(), population(asked))
    assert draw(plan(), population(asked[::-1])) == drawn
    assert draw(plan(), population(asked, seed=1)) != drawn
    fit = {q.row_index for q in asked if rank(q, 0) <= drawn.fit}
    test = {q.row_index for q in asked if drawn.fit < rank(q, 0) <= drawn.test}
    assert (len(fit), len(test)) == (100, 299)


@pytest.mark.parametrize(
    ("members", "needs"),
    [
        ([letter()], True),
        ([letter("cyclic")], False),
        ([letter("identity", debias="pride")], True),
        ([letter("identity", debias="pride", prior="a.json")], False),
        ([letter("full"), letter()], True),
        ([Member(model="m", template="t", scoring=Cloze(method="cloze"))], False),
    ],
)
def test_which_votes_depend_on_a_sample(members, needs):
    task = plan(*members)
    assert needs_sample(task) is needs
    assert Voter(task, ["m"] * len(members), 0.0).calibrated is not needs


@pytest.mark.parametrize(
    ("share", "four", "ten", "expected"),
    [
        (0.05, 1000, 0, {(0, 4): 50}),
        (0.05, 1001, 400, {(0, 4): 51, (0, 10): 20}),
        (0.05, 100, 7, {(0, 4): 16, (0, 10): 7}),  # never fewer than 16 where there are as many
        (1.0, 30, 0, {(0, 4): 30}),
    ],
)
def test_a_prior_takes_a_share_of_the_questions_of_each_number_of_options(share, four, ten, expected):
    asked = questions(four) + questions(ten, 10)
    drawn = draw(plan(letter("identity", debias="pride", prior_share=share)), population(asked))
    sizes = {
        key: sum(len(q.choices) == key[1] and rank(q, 0) <= limit for q in asked) for key, limit in drawn.prior.items()
    }
    assert sizes == expected
    assert (drawn.fit, drawn.test) == (-1, -1)


@pytest.mark.parametrize(
    ("count", "adaptive", "expected"),
    [
        (398, {}, None),
        (399, {}, Sizes(100, 299)),
        (5000, {}, Sizes(125, 473)),
        # 399 questions x 24 orders = 9,576; half of 5,000 x 4 is 10,000, half of 5,000 x 3 is 7,500
        (2000, {"budget": 10.0}, Sizes(100, 299)),
        (2000, {"budget": 9.0}, None),
        # 2,141 x 24 = 51,384 orders are less than half of 120,000, but leave no order for each of the other 97,859
        (100_000, {"budget": 1.2}, None),
        (60_000, {"budget": 2.0}, Sizes(200, 1941)),
    ],
)
def test_a_sample_that_promises_nothing_or_costs_too_much_is_not_drawn(count, adaptive, expected):
    ranks = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64).tolist()
    assert certifiable(plan(**adaptive), Population({4: ranks})) == expected
    assert certifiable(plan(letter("cyclic")), Population({4: ranks})) is None
    assert (draw(plan(**adaptive), Population({4: ranks})).test >= 0) is (expected is not None)
    assert draw(plan(**adaptive), Population({4: ranks}), certify=False) == NOBODY


def test_questions_that_repeat_are_tested_once():
    # 100 questions, ten times each: they are drawn together, and 299 rows would be a test of 30 questions.
    task, asked = plan(), questions(100) * 10
    assert draw(task, population(asked)) == NOBODY
    asked, engine, _ = simulated(450)
    twice = [*asked, *asked]
    voter, drawn, everybody = setup(task, twice)
    calibration, sample = calibration_of(engine, voter, drawn, everybody, twice)
    assert len(sample) == 2 * 399
    assert (calibration.certificate.fit, calibration.certificate.test) == (100, 299)
    once = setup(task, asked)
    assert calibration.gate == calibration_of(engine, *once, asked)[0].gate


def test_no_prior_is_estimated_from_what_is_tested():
    # Those asked in more orders than others for the prior would be tested under another vote than all others get.
    estimating = letter("identity", debias="pride", prior_share=0.2)
    with pytest.raises(ValueError, match="give it a prior, or orders: adaptive too"):
        check_plan("multiple_choice", plan(letter(), estimating))
    named = letter("identity", debias="pride", prior="priors/x.json")
    check_plan("multiple_choice", plan(letter(), named))


# Priors


PRIOR = np.array([0.55, 0.25, 0.15, 0.05])


def biased(count, seed=0, n=4, orders=None):
    """Orders, their log-probabilities prior x truth, and the truth."""
    prior = PRIOR[:n] / PRIOR[:n].sum()
    truth = np.random.default_rng(seed).dirichlet(np.ones(n), count)
    orders = orders or make_orders("full", n, 0)
    return orders, log_softmax(np.log(prior)[positions(orders)] + np.log(truth)[:, None]), truth


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_a_voter_recovers_the_prior_and_decides_by_the_truth(temperature):
    asked, engine = questions(200), Engine()
    orders, logprobs, truth = biased(200)
    engine.knows(0, asked, orders, logprobs)
    voter, drawn, everybody = setup(plan(letter("identity", debias="pride", temperature=temperature)), asked)
    calibration, sample = calibration_of(engine, voter, drawn, everybody, asked)
    assert len(sample) == 16
    assert engine.asked == 16 * 4  # pride's questions in all cyclic orders
    assert calibration.priors[0, 4] == pytest.approx(PRIOR, abs=1e-6)
    assert (calibration.gate, calibration.certificate) == (EXACT, None)
    calibrated = voter.with_calibration(calibration)
    raw = 0
    for q, right in zip(asked, truth, strict=True):
        decision, _, _ = engine.answer(calibrated, q)
        assert decision.prediction == right.argmax()
        tempered = right ** (1 / temperature)
        assert np.exp(decision.scores) == pytest.approx(tempered / tempered.sum(), abs=1e-4)
        assert decision.orders_used == (4 if voter.in_sample(q) else 1)
        raw += engine.says(0, q, identity(4)).logprobs[0].argmax() != right.argmax()
    assert raw > 40  # without it more than a fifth would be wrong


def test_a_stored_prior_needs_no_sample():
    asked, engine = questions(50), Engine()
    orders, logprobs, truth = biased(50)
    engine.knows(0, asked, orders, logprobs)
    task = plan(letter("identity", debias="pride", prior="p.json"))
    voter = Voter(task, ["m"], 0.0, calibration=Calibration({(0, 4): PRIOR}, EXACT))
    for q, right in zip(asked, truth, strict=True):
        decision, _, asks = engine.answer(voter, q)
        assert decision.prediction == right.argmax()
        assert asks == [[Ask(0, identity(4))]]


def test_an_uncalibrated_voter_says_so_and_asks_for_what_the_sample_takes():
    asked = questions(100)
    voter, _, _ = setup(plan(letter("identity", debias="pride")), asked)
    assert not voter.calibrated
    wanted = {voter.in_sample(q): voter.next(q, [None]) for q in asked}
    assert wanted == {True: [Ask(0, cyclic(4))], False: [Ask(0, identity(4))]}


# Certified gates


def simulated(count, n=4, scorer=None, seed=0, members=1):
    """Questions, and an engine whose members know all reference orders of them."""
    asked, engine = questions(count, n), Engine()
    tables = [simulate(scorer or Scorer(), count, n, REFERENCE, seed + i).logprobs for i in range(members)]
    for i, table in enumerate(tables):
        engine.knows(i, asked, make_orders(REFERENCE, n, 0), table)
    return asked, engine, tables


def test_adaptive_voting_from_sample_to_decisions():
    asked, engine, (table,) = simulated(1000, seed=2)
    task = plan()
    voter, drawn, everybody = setup(task, asked)
    calibration, sample = calibration_of(engine, voter, drawn, everybody, asked)
    certificate = calibration.certificate
    assert len(sample) == 399
    assert (certificate.guarantee, certificate.fit, certificate.test) == (True, 100, 299)
    assert certificate.disagreements == 0
    assert certificate.bound <= 0.01
    calibrated = voter.with_calibration(calibration)
    full = vote([table], [1.0], "mean_prob").choice
    engine.asked, differ, orders = 0, 0, []
    for q, right in zip(asked, full, strict=True):
        decision, evidence, asks = engine.answer(calibrated, q)
        assert decision.orders_used == len(evidence[0].orders)  # nothing was asked in vain
        differ += decision.prediction != right
        if voter.in_sample(q):
            assert decision.prediction == right
            assert decision.doubt == 0
        else:
            orders.append(decision.orders_used)
            assert len(asks[0][0].orders) == 1
            assert decision.doubt <= calibration.gate.limit
    assert differ <= 10  # 1% of 1,000
    assert np.mean(orders) == pytest.approx(certificate.orders, abs=1.0)
    assert np.mean(orders) < 8


def test_a_calibration_does_not_depend_on_arrival_nor_on_more_stored_orders():
    asked, engine, _ = simulated(450)
    voter, drawn, everybody = setup(plan(), asked)
    calibration, sample = calibration_of(engine, voter, drawn, everybody, asked)
    rng = np.random.default_rng(0)
    everything = make_orders(REFERENCE, 4, 0)
    more = []
    for i in rng.permutation(len(sample)):
        q, _ = sample[i]
        shuffled = tuple(everything[j] for j in rng.permutation(24))
        more.append((q, [engine.says(0, q, shuffled)]))
    again = calibrate(voter.plan, voter, drawn, everybody, more, {}, 0)
    assert again.gate == calibration.gate
    assert again.certificate == calibration.certificate
    assert again.priors[0, 4].tolist() == calibration.priors[0, 4].tolist()


def test_the_certificate_does_not_look_at_the_tested_questions_to_fit():
    asked, engine, _ = simulated(450)
    voter, drawn, everybody = setup(plan(), asked)
    calibration, sample = calibration_of(engine, voter, drawn, everybody, asked)
    broken = [
        (q, e if rank(q, 0) <= drawn.fit else [engine.says(0, sample[0][0], make_orders(REFERENCE, 4, 0))])
        for q, e in sample
    ]
    again = calibrate(voter.plan, voter, drawn, everybody, broken, {}, 0)
    assert (again.gate.first, again.gate.later) == (calibration.gate.first, calibration.gate.later)
    assert again.priors[0, 4].tolist() == calibration.priors[0, 4].tolist()
    assert again.certificate.orders != calibration.certificate.orders


@pytest.mark.parametrize("combine", ["mean_prob", "majority"])
def test_questions_with_different_numbers_of_options_share_a_gate(combine):
    parts = [simulated(500, n, Scorer(noise=0.3), n) for n in (2, 3, 4)]
    asked, engine = [q for part, _, _ in parts for q in part], Engine()
    for part, _, (table,) in parts:
        engine.knows(0, part, make_orders(REFERENCE, len(part[0].choices), 0), table)
    voter, drawn, everybody = setup(plan(combine=combine, max_disagreement=0.03), asked)
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    assert set(calibration.priors) == {(0, 2), (0, 3), (0, 4)}
    assert calibration.certificate.guarantee
    calibrated = voter.with_calibration(calibration)
    for part, _, (table,) in parts:
        full = vote([table], [1.0], combine).choice
        found = [engine.answer(calibrated, q)[0] for q in part]
        assert (np.array([d.prediction for d in found]) != full).mean() < 0.045
        assert np.mean([d.orders_used for d in found]) < table.shape[1]


def test_a_fixed_member_beside_an_adaptive_one():
    asked, engine, (table,) = simulated(600, seed=1)
    rng = np.random.default_rng(3)
    cloze = np.log(rng.dirichlet(np.ones(4), (600, 1)))
    engine.knows(1, asked, identity(4), cloze)
    other = Member(model="m", template="t", scoring=Cloze(method="cloze", normalisation="sum"), weight=0.5)
    task = plan(letter(weight=2.0), other, max_disagreement=0.02)
    voter, drawn, everybody = setup(task, asked)
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    calibrated = voter.with_calibration(calibration)
    full = vote([table, cloze], [2.0, 0.5], "mean_prob").choice
    differ, orders = 0, []
    for q, right in zip(asked, full, strict=True):
        decision, evidence, asks = engine.answer(calibrated, q)
        assert asks[0] == [Ask(1, identity(4)), Ask(0, identity(4))]
        assert decision.orders_used == len(evidence[0].orders) + 1
        differ += decision.prediction != right
        orders.append(decision.orders_used)
    assert differ <= 12
    assert np.mean(orders) < 16


def test_two_adaptive_members_are_asked_together():
    asked, engine, tables = simulated(500, members=2)
    task = plan(letter(), letter(weight=3.0), max_disagreement=0.02)
    voter, drawn, everybody = setup(task, asked)
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    calibrated = voter.with_calibration(calibration)
    full = vote(tables, [1.0, 3.0], "mean_prob").choice
    differ = 0
    for q, right in zip(asked, full, strict=True):
        decision, evidence, asks = engine.answer(calibrated, q)
        assert evidence[0].orders == evidence[1].orders
        assert all([ask.member for ask in step] == [0, 1] for step in asks)
        differ += decision.prediction != right
    assert differ <= 10


def test_decisions_depend_neither_on_the_order_of_questions_nor_on_what_is_stored():
    asked, engine, _ = simulated(500)
    voter, drawn, everybody = setup(plan(), asked)
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    calibrated = voter.with_calibration(calibration)
    decisions = {q.text: engine.answer(calibrated, q)[0] for q in asked[:150]}
    rng = np.random.default_rng(0)
    everything = make_orders(REFERENCE, 4, 0)
    for i in rng.permutation(150):
        q = asked[i]
        some = tuple(everything[j] for j in rng.permutation(24)[: rng.integers(1, 25)])
        decision, _, _ = engine.answer(calibrated, q, [engine.says(0, q, some)])
        assert decision == decisions[q.text]
        assert isinstance(calibrated.next(q, [engine.says(0, q, everything)]), Decision)


def test_a_partial_decision_promises_nothing():
    asked, engine, _ = simulated(500, scorer=Scorer(accuracy=0.4, noise=2.0))
    voter, drawn, everybody = setup(plan(), asked, certify=False)
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    calibrated = voter.with_calibration(calibration)
    two = [[engine.says(0, q, make_orders(REFERENCE, 4, 0)[:2])] for q in asked]
    assert all(calibrated.best(q, said).doubt is None for q, said in zip(asked, two, strict=True))
    assert all(calibrated.best(q, said).orders_used == 2 for q, said in zip(asked, two, strict=True))


# Without a guarantee, and budgets


@pytest.mark.parametrize(
    ("count", "certify", "budget", "reason"),
    [
        (
            200,
            True,
            None,
            "no guarantee of at most 1.00% of different questions decided other than by all orders: "
            "200 questions are too few",
        ),
        (2000, True, 3.0, "the budget is too small to calibrate"),
        (2000, False, None, "its sample was not asked"),
    ],
)
def test_where_nothing_is_certified_the_reason_is_told_and_a_block_is_asked(count, certify, budget, reason):
    asked, engine, (table,) = simulated(count, scorer=Scorer(accuracy=0.9, sharpness=2.0))
    voter, drawn, everybody = setup(plan(budget=budget), asked, certify=certify)
    assert (drawn.fit, drawn.test) == (-1, -1)
    calibration = calibrate(voter.plan, voter, drawn, everybody, [], {}, 0)
    assert not calibration.certificate.guarantee
    assert reason in calibration.certificate.sentence()
    calibrated = voter.with_calibration(calibration)
    found = [engine.answer(calibrated, q)[0] for q in asked[:200]]
    if budget:  # an order each is all that fits
        assert {d.orders_used for d in found} == {1}
        assert all(0 < d.doubt < 1 for d in found)
    else:
        assert min(d.orders_used for d in found) == 4
        assert np.mean([d.orders_used for d in found]) < 14
    right = vote([table[:200]], [1.0], "mean_prob").choice
    differ = np.array([d.prediction for d in found]) != right
    assert differ.mean() <= 3 * np.mean([d.doubt for d in found]) + 0.03  # the estimate is of that size


@pytest.mark.parametrize(("budget", "most"), [(1.0, 1), (3.9, 3), (11.0, 11), (None, None)])
def test_an_uncertified_gate_ends_with_the_budget(budget, most):
    gate, certificate = uncertified(Adaptive(budget=budget), 100)
    assert gate == Gate(0.01, None, most=most)
    assert certificate.reason == "100 questions are too few to certify it"


@pytest.mark.parametrize("budget", [1.6, 3.0, 6.0, 10.0, 24.0])
@pytest.mark.parametrize("scorer", [Scorer(), Scorer(accuracy=0.4, noise=1.0)])
def test_a_budget_is_kept_calibration_included(budget, scorer):
    # 20,000 questions, of which the 399 of the sample come through the voter and the rest as an array.
    table = simulate(scorer, 20_000, 4, REFERENCE, 1).logprobs
    asked, engine, rest = questions(399), Engine(), table[399:]
    engine.knows(0, asked, make_orders(REFERENCE, 4, 0), table[:399])
    ranks = sorted(rank(q, 0) for q in asked)
    drawn = Drawn({}, ranks[99], ranks[398])
    voter = Voter(plan(budget=budget), ["m"], 0.0, drawn=drawn)
    everybody = Population({4: ranks + [2**64 - 1] * 19_601})
    calibration, _ = calibration_of(engine, voter, drawn, everybody, asked)
    certificate, gate = calibration.certificate, calibration.gate
    known = track_of(rest, REFERENCE, calibration.priors[0, 4])
    found = walk(known, gate)
    assert (engine.asked + found.orders.sum()) / 20_000 <= budget
    differ = (found.choice != vote([rest], [1.0], "mean_prob").choice).mean()
    # What is told is of the gate that is used.
    assert found.orders.mean() == pytest.approx(certificate.orders, abs=1.5)
    assert abs(differ - certificate.disagreements / certificate.test) < 0.06
    assert certificate.guarantee is (budget > (15 if scorer.noise == 1.0 else 9))
    if certificate.guarantee:
        assert certificate.bound <= 0.01
        assert differ <= 0.01
    else:
        assert f"the budget of {budget:g} orders a question is too small" in certificate.sentence()
        assert certificate.bound > 0.01


def test_a_sample_that_was_not_asked_is_no_guarantee():
    # All of it failed, say: then votes are as without a sample.
    asked, _, _ = simulated(500)
    voter, drawn, everybody = setup(plan(), asked)
    calibration = calibrate(voter.plan, voter, drawn, everybody, [], {}, 0)
    assert not calibration.certificate.guarantee
    assert calibration.priors == {}
    assert drawn != NOBODY
    assert isinstance(drawn, Drawn)
