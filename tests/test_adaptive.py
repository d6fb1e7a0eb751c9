"""When asking ends: curtailment against brute force, gates whatever the order of arrival, what a sample certifies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from ensemble.adaptive import (
    EXACT,
    FIRST,
    Certificate,
    Gate,
    Sizes,
    boundaries,
    certify,
    first_ask,
    fit_gate,
    questions_needed,
    sample_sizes,
    upper_bound,
    walk,
)
from ensemble.combine import ballots, log_softmax, vote
from ensemble.tracks import Said, Track, join
from tests.scorers import Scorer, prior_of, simulate, track_of

UNIFORM = {n: np.full(n, 1 / n) for n in (2, 3, 4, 5)}


def track(votes, offset=None, first=None):
    """Of one question, whose first order's log-probabilities are its ballots."""
    votes = np.array(votes, dtype=np.float64)
    n = votes.shape[1]
    beginning = np.log(np.maximum(votes[0], 1e-9)) if first is None else np.array(first)
    return Track(votes[None], np.zeros((1, n)) if offset is None else np.array([offset]), beginning[None])


@pytest.mark.parametrize(
    ("votes", "offset", "orders", "choice"),
    [
        # 4 orders: after two .9s the lead is 1.6, which 2 orders can turn; after three 2.4 > 1 left.
        ([[0.9, 0.1]] * 4, None, 3, 0),
        # One vote each: 3 of 4 are a majority; 2 : 0 with two left may still be a tie.
        ([[1, 0], [1, 0], [1, 0], [0, 1]], None, 3, 0),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], None, 4, 0),  # a tie, without means the lower index
        ([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]], None, 6, 1),  # 3 : 1 with 1 left: 2 > 1
        # Other members are for option 1 by 1.5: after one order for it the lead is 2.5, 3 are left; after two 3.5 > 2.
        ([[0, 1]] * 4, [0.0, 1.5], 2, 1),
        ([[1, 0]] * 4, [0.0, 3.5], 4, 0),  # .5 ahead in the end only
        ([[1, 0]] * 4, [0.0, 9.0], 1, 1),  # nothing can change it
    ],
)
def test_curtailment_by_hand(votes, offset, orders, choice):
    if len(votes) == 6:  # after 5: 0, 1, 2 have 1, 3, 1
        orders = 5
    found = walk(track(votes, offset), EXACT)
    assert (found.orders[0], found.choice[0], found.doubt[0], found.needs[0]) == (orders, choice, 0.0, 0)


ORDERS = st.sampled_from([(2, 2), (2, 4), (3, 6), (3, 9), (4, 8), (4, 24), (5, 10)])


@st.composite
def tracks(draw):
    """One question of any shape: ballots in the simplex from flat to one-hot, with or without other members."""
    n, orders = draw(ORDERS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharpness = draw(st.sampled_from([0.3, 2.0, 30.0]))
    logprobs = log_softmax(rng.normal(0, 1, (orders, n)) * sharpness + rng.normal(0, 1, n) * draw(st.floats(0, 4)))
    votes = ballots(logprobs, draw(st.sampled_from(["mean_prob", "majority"])))
    offset = rng.dirichlet(np.ones(n)) * draw(st.sampled_from([0.0, 0.7, 1.0, 2.0])) * orders
    return Track(votes[None], offset[None], logprobs[:1])


def totals(found, count):
    return found.ballots[0, :count].sum(axis=0) + found.offset[0]


@settings(max_examples=300)
@given(found=tracks(), seed=st.integers(0, 2**32 - 1))
def test_curtailment_stops_where_no_completion_changes_the_winner_and_not_later(found, seed):
    orders, n = found.ballots.shape[1:]
    stopped = walk(found, EXACT)
    count, choice = int(stopped.orders[0]), int(stopped.choice[0])
    rng = np.random.default_rng(seed)

    def completions(after):
        """Totals after the rest: all of it to one option, to two of them by turns, and anything."""
        for i in range(n):
            yield totals(found, after) + (orders - after) * np.eye(n)[i]
        for _ in range(20):
            yield totals(found, after) + rng.dirichlet(np.full(n, 0.3), orders - after).sum(axis=0)

    if count < orders:
        for total in completions(count):
            assert total.argmax() == choice
            assert np.delete(total, choice).max() < total[choice]
    else:
        assert totals(found, orders)[choice] >= totals(found, orders).max() - 1e-9
    if count > 1:  # one order earlier somebody could still have won, or made it a tie
        before = totals(found, count - 1)
        leader = before.argmax()
        assert max(np.delete(total, leader).max() - total[leader] for total in completions(count - 1)) >= -1e-8


GATES = [
    EXACT,
    Gate(0.05),
    Gate(0.3),
    Gate(0.02, None),
    Gate(0.1, most=1),
    Gate(0.1, None, most=9),
    Gate(0.0, (0, -1.0)),
]


@pytest.mark.parametrize("gate", GATES)
@settings(max_examples=60)
@given(found=tracks())
def test_asking_step_by_step_ends_as_with_everything_known(gate, found):
    orders, n = found.ballots.shape[1:]
    whole = walk(found, gate)
    known = first_ask(gate, n, orders)
    for _ in range(orders + 1):
        # Nothing that is not asked for is seen: asked for in any larger steps it would come to the same.
        part = walk(found._replace(ballots=np.where(np.arange(orders)[:, None] < known, found.ballots, np.nan)), gate)
        if not part.needs[0]:
            break
        assert known < part.needs[0] <= orders
        known = int(part.needs[0])
    assert part.needs[0] == 0
    assert (part.orders[0], part.choice[0], part.doubt[0]) == (whole.orders[0], whole.choice[0], whole.doubt[0])
    if not found.offset.any():
        assert known == whole.orders[0]  # never more than required
    assert whole.needs[0] == 0


@pytest.mark.parametrize("gate", GATES)
def test_questions_do_not_look_at_each_other(gate):
    said = simulate(Scorer(), 60, 4, "latin:24", 3).logprobs
    together = walk(track_of(said, "latin:24", UNIFORM[4]), gate)
    for q in range(60):
        alone = walk(track_of(said[q : q + 1], "latin:24", UNIFORM[4]), gate)
        assert (alone.orders[0], alone.choice[0]) == (together.orders[q], together.choice[q])
        assert alone.doubt[0] == pytest.approx(together.doubt[q])


@pytest.mark.parametrize("how", ["mean_prob", "majority"])
def test_the_exact_winner_is_the_vote_of_all_orders_also_in_ties(how):
    said = simulate(Scorer(accuracy=0.5), 2000, 4, "latin:24", 0).logprobs
    voted = vote([said], [1.0], how).choice
    assert (walk(track_of(said, "latin:24", UNIFORM[4], how), EXACT).choice == voted).all()
    if how == "majority":  # that ties are in it: by the lower index some would be others
        votes = ballots(said, how).sum(axis=1)
        assert (votes.argmax(axis=1) != voted).sum() > 10


def test_members_join_in_the_unit_of_an_order():
    # An adaptive member of weight 1 with 2 of 4 orders known, and a fixed one of weight 3: its one vote counts for
    # 3 x 4 orders.
    table = np.log([[[0.8, 0.2], [0.6, 0.4], [np.nan, np.nan], [np.nan, np.nan]]])
    fixed = np.log([[[0.1, 0.9]]])
    found = join([Said(table, 1.0, table[:, 0]), Said(fixed, 3.0)], "mean_prob")
    assert found.ballots[0, :2] == pytest.approx(np.exp(table[0, :2]))
    assert np.isnan(found.ballots[0, 2:]).all()
    assert found.offset[0] == pytest.approx([1.2, 10.8])
    assert np.exp(found.first[0]) == pytest.approx([(0.8 + 0.3) / 4, (0.2 + 2.7) / 4])
    # .8 + .6 = 1.4 against .6, with 1.2 against 10.8: 9 behind with 2 left
    assert walk(found, EXACT)._replace(doubt=0, shaky=False) == (1, 1, 0, 0, False)


@pytest.mark.parametrize(
    ("n", "orders", "expected"), [(4, 24, [1, 4, 8, 12, 16, 20]), (3, 6, [1, 3]), (4, 4, [1]), (2, 2, [1])]
)
def test_gates_stand_after_the_first_order_and_after_each_block(n, orders, expected):
    assert boundaries(n, orders) == expected


@pytest.mark.parametrize(
    ("gate", "n", "orders", "expected"),
    [
        (EXACT, 4, 24, 13),  # 12 : 0 may end in a tie
        (EXACT, 2, 2, 2),
        (Gate(0.1), 4, 24, 1),
        (Gate(0.1, None), 4, 24, 4),  # before a block there is nothing to stop at
        (Gate(0.1, None), 4, 4, 3),  # one block is all: curtailment
        (Gate(0.1, None, most=3), 4, 24, 1),
        (Gate(0.1, None, most=7), 4, 24, 4),
    ],
)
def test_what_is_asked_at_first_is_the_least_that_may_be_enough(gate, n, orders, expected):
    assert first_ask(gate, n, orders) == expected


SHARP = np.eye(4)[np.zeros(24, dtype=int)] * 0.96 + 0.01  # 24 orders that all say .97 for option 0


def test_an_uncertified_gate_never_stops_before_a_block():
    said = simulate(Scorer(accuracy=0.9, sharpness=3.0), 500, 4, "latin:24", 0).logprobs
    stopped = walk(track_of(said, "latin:24", UNIFORM[4]), Gate(0.5, None))
    assert (stopped.orders == 4).mean() > 0.9
    assert stopped.orders.min() == 4


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 1), (4, 4), (11, 8), (23, 20)])
def test_a_gate_ends_at_the_last_boundary_of_its_budget(most, expected):
    said = simulate(Scorer(accuracy=0.4, noise=3.0), 300, 4, "latin:24", 0).logprobs
    known = track_of(said, "latin:24", UNIFORM[4])
    stopped, exact = walk(known, Gate(1e-9, None, most=most)), walk(known, EXACT)
    assert stopped.orders.max() == expected <= most
    assert ((stopped.doubt > 0) == (exact.orders > expected)).all()
    assert (stopped.doubt < 1).all()  # an estimate, whichever order ended it


def test_doubt_is_the_logistic_of_the_margin():
    # Log-odds after one order ln(.97 / .01) = 4.575; 1 / (1 + exp(-(.4 - 1.8 x 4.575))) = 3.9587e-4, and the lapse
    found = walk(track(SHARP), Gate(0.01))
    assert (found.orders[0], found.choice[0]) == (1, 0)
    assert found.doubt[0] == pytest.approx(0.001 + 0.999 / (1 + np.exp(-FIRST[0]) * 97 ** -FIRST[1]))
    # A margin of 1,000 nats is no overflow.
    assert walk(track(SHARP, first=[0.0, -1000.0, -1000.0, -1000.0]), Gate(0.01)).orders[0] == 1


def test_the_second_gate_by_hand():
    # Two options, 3 blocks of 2 orders; leads .4 and .2 in the first block: mean .3, expected final lead 6 x .3 = 1.8.
    # Variance within: (.1^2 + .1^2) / 1 / 2 + .002 = .012; one block says nothing of that between: v = 2 x .012 / 2.
    # Deviation of the other 4 orders: sqrt(.012 (1 + 1/2)) x 4 = .53666; z = 3.35410.
    # logit .3 - 5.4 ln(4.35410) = -7.6438, doubt 4.79e-4.
    votes = [[0.7, 0.3], [0.6, 0.4], *[[0.5, 0.5]] * 4]
    found = walk(track(votes), Gate(0.001, None))
    assert found.orders[0] == 2
    assert found.doubt[0] == pytest.approx(4.79e-4, rel=2e-3)
    assert walk(track(votes), Gate(4e-4, None)).orders[0] > 2


@pytest.mark.parametrize(
    ("max_disagreement", "confidence", "needed"),
    [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.01, 0.99, 459), (0.001, 0.95, 2995), (0.1, 0.9, 22)],
)
def test_how_many_questions_it_takes_without_a_disagreement(max_disagreement, confidence, needed):
    assert questions_needed(max_disagreement, confidence) == needed
    assert (1 - max_disagreement) ** needed <= 1 - confidence < (1 - max_disagreement) ** (needed - 1)


@pytest.mark.parametrize(
    ("questions", "max_disagreement", "expected"),
    [
        (398, 0.01, None),
        (399, 0.01, Sizes(100, 299)),
        (2000, 0.01, Sizes(100, 299)),
        (5000, 0.01, Sizes(125, 473)),  # one disagreement of 473 passes, of 472 it does not
        (8000, 0.01, Sizes(200, 773)),  # 628 for two, 773 for three
        (10**6, 0.01, Sizes(200, 1941)),  # 12
        (400, 0.05, Sizes(100, 59)),
        (5000, 0.0005, None),
    ],
)
def test_sizes_of_the_sample(questions, max_disagreement, expected):
    found = sample_sizes(questions, max_disagreement, 0.95)
    assert found == expected
    if found:  # one more disagreement than it allows would have a chance of 5% at a share just as high as may be
        allowed = int(binom.ppf(0.05, found.test, max_disagreement))
        allowed -= binom.cdf(allowed, found.test, max_disagreement) > 0.05
        assert binom.cdf(allowed, found.test - 1, max_disagreement) > 0.05  # and a question fewer would not do


@pytest.mark.parametrize(("wrong", "tested"), [(0, 299), (1, 473), (2, 628), (5, 500), (17, 40), (0, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_the_bound_is_clopper_and_pearsons(wrong, tested, confidence):
    peer = binomtest(wrong, tested, alternative="less").proportion_ci(confidence, method="exact").high
    assert upper_bound(wrong, tested, confidence) == pytest.approx(peer, rel=1e-9)


def test_the_limit_is_the_last_before_the_first_failure():
    # 400 questions, each with its own doubt after one order; two of them are wrong there, the 200th and the 300th
    # surest. One of 400 bounds the share at 1.18% at 95%, none at .75%.
    margins = np.linspace(9.0, 1.0, 400)
    votes = np.full((400, 4, 2), 0.5)
    votes[:, :, 0] += 1e-3  # certain only after all orders
    votes[:, :, 1] -= 1e-3
    votes[[199, 299]] = votes[[199, 299]][..., ::-1]
    first = log_softmax(np.stack([margins, np.zeros(400)], axis=1))
    known = Track(votes, np.zeros((400, 2)), first)
    gate = Gate(0.0, (0.0, -1.0), (50.0, 0.0))  # doubt exp(-margin), later none that passes
    found, passed = certify(gate, [known], 0.01, 0.95)
    limit = found.limit
    stopped = walk(known, found)
    assert (stopped.orders[:199] == 1).sum() == (0.001 + 0.999 / (1 + np.exp(margins[:199])) <= limit).sum() > 150
    assert stopped.orders[199] == 4
    assert [row[1] for row in passed] == [0] * len(passed)
    assert passed[-1][2] == pytest.approx(1 - 0.05 ** (1 / 400))
    assert passed[-1][3] == pytest.approx(stopped.orders.mean())
    # Twice the share may disagree: one passes, two (1.57%) do not.
    found, passed = certify(gate, [known], 0.012, 0.95)
    assert passed[-1][1] == 1
    assert walk(known, found).orders[299] == 4
    assert found.limit < 1 / (1 + np.exp(margins[299]))


def test_after_a_failure_no_looser_limit_is_tried():
    # After one order (doubt .4) all are right, after the first of two blocks (doubt .1) all are wrong: from .1 to .4
    # every limit fails, above .4 each would pass. Testing in sequence pays for its search by ending at .1.
    votes = np.tile([[0.4, 0.6], [0.3, 0.7], [0.9, 0.1], [0.9, 0.1]], (400, 1, 1))
    known = Track(votes, np.zeros((400, 2)), np.tile(np.log([0.6, 0.4]), (400, 1)))
    gate = Gate(0.0, (0.0, -1.0), (np.log(0.1 / 0.9), 0.0))
    assert (walk(known, gate._replace(limit=0.45)).choice == 0).all()
    assert (walk(known, gate._replace(limit=0.2)).choice == 1).all()
    found, passed = certify(gate, [known], 0.01, 0.95)
    assert found.limit < 0.1
    assert passed[-1][0] == found.limit > 0.08


def test_too_few_to_certify_leaves_curtailment_which_promises_everything():
    said = simulate(Scorer(), 50, 4, "latin:24", 0).logprobs
    known = track_of(said, "latin:24", UNIFORM[4])
    found, passed = certify(fit_gate([known]), [known], 0.01, 0.95)
    assert found.limit == 0.0
    assert passed == [(0.0, 0, 0.0, walk(known, EXACT).orders.mean())]
    assert (walk(known, found).choice == walk(known, EXACT).choice).all()


def test_a_scorer_whose_orders_agree_costs_about_one_order():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(4, 0.5), 700)
    said = log_softmax(np.log(truth + 1e-6)[:, None] + np.zeros((700, 24, 1)))
    fit, test = (track_of(part, "latin:24", UNIFORM[4]) for part in (said[:125], said[125:600]))
    gate, passed = certify(fit_gate([fit]), [test], 0.01, 0.95)
    assert passed[-1][1] == 0
    rest = walk(track_of(said[600:], "latin:24", UNIFORM[4]), gate)
    assert rest.orders.mean() < 1.1
    assert (rest.choice == truth[600:].argmax(axis=1)).all()


def test_a_fit_finds_the_probability_of_another_winner():
    said = simulate(Scorer(), 4000, 4, "latin:24", 5).logprobs
    known = track_of(said, "latin:24", prior_of(said[:500]))
    gate = fit_gate([track_of(said[:2000], "latin:24", prior_of(said[:500]))])
    held_out = Track(*(part[2000:] for part in known))
    right = walk(held_out, EXACT).choice
    stopped = walk(held_out, gate._replace(limit=1.0))  # all after one order
    assert (stopped.orders == 1).all()
    wrong = stopped.choice != right
    # As many wrong as estimated, in all and in the surer and the less sure half: within three standard deviations.
    doubt = stopped.doubt
    for part in (doubt < 2, doubt < np.median(doubt), doubt >= np.median(doubt)):
        deviation = np.sqrt((doubt[part] * (1 - doubt[part])).sum())
        assert abs(wrong[part].sum() - doubt[part].sum()) < 3 * deviation + 0.02 * part.sum()


@pytest.mark.parametrize(
    ("how", "scorer"),
    [
        ("mean_prob", Scorer(accuracy=0.8)),
        ("mean_prob", Scorer(accuracy=0.7, letter=1.5, noise=1.0)),
        ("majority", Scorer(accuracy=0.7)),
    ],
)
def test_the_bound_holds_over_draws_of_simulated_scorers(how, scorer):
    # At 95% at most 5% of draws may fail. Of 40 draws more than 5 do with probability 1.4%, with fixed seeds.
    assert binom.sf(5, 40, 0.05) == pytest.approx(0.0139, abs=1e-4)
    sizes = sample_sizes(2000, 0.01, 0.95)
    fit, sampled = sizes.fit, sum(sizes)
    failed, cost = 0, []
    for seed in range(40):
        said = simulate(scorer, 2000, 4, "latin:24", seed).logprobs
        prior = prior_of(said[:fit])
        parts = (track_of(part, "latin:24", prior, how) for part in (said[:fit], said[fit:sampled], said[sampled:]))
        fitted, tested, rest = parts
        gate, _ = certify(fit_gate([fitted]), [tested], 0.01, 0.95)
        stopped = walk(rest, gate)
        failed += (stopped.choice != vote([said[sampled:]], [1.0], how).choice).mean() > 0.01
        cost.append(stopped.orders.mean())
    assert failed <= 5
    assert np.mean(cost) < 12  # half of all orders, and cheaper than curtailment


@pytest.mark.parametrize(
    ("certificate", "sentence"),
    [
        (
            Certificate(True, 0.01, 0.95, 125, 473, 1, 0.00998, 5.44),
            "at most 1.00% of different questions decided other than by all orders, with 95% confidence "
            "(1 of 473 tested questions, bound 1.00%); about 5.4 orders a question",
        ),
        (
            Certificate(False, 0.01, 0.95, reason="200 questions are too few to certify it"),
            "no guarantee of at most 1.00% of different questions decided other than by all orders: "
            "200 questions are too few to certify it",
        ),
    ],
)
def test_what_people_are_told(certificate, sentence):
    assert certificate.sentence() == sentence
