"""Orders, normalisations and the average over members, against numbers worked by hand."""

import math

import numpy as np
import pytest

from ensemble.adaptive import Gate
from ensemble.calibration import Calibration
from ensemble.config import Adaptive, Cloze, Generate, Letter, Member, Sampling, TaskPlan
from ensemble.evidence import merge
from ensemble.orders import make_orders
from ensemble.records import Decision, Sample, Score
from ensemble.votes import Ask, Voter
from tests.conftest import cyclic, identity, question


def member(scoring, weight=1.0):
    return Member(model="m", template="t", scoring=scoring, weight=weight)


def score(logprobs, orders=None, tokens=None, unconditional=None):
    table = np.array(logprobs, dtype=np.float32)
    n = table.shape[1]
    return Score(
        orders=orders or identity(n),
        logprobs=table,
        tokens=np.array(tokens or [1] * n, dtype=np.int32),
        unconditional=None if unconditional is None else np.array(unconditional, dtype=np.float32),
    )


def decide(q, members, evidence, near_tie=0.0):
    step = Voter(TaskPlan(members=tuple(members)), [f"m{i}" for i in range(len(members))], near_tie).next(q, evidence)
    assert isinstance(step, Decision)
    return step


def test_cyclic_orders_put_each_option_once_at_each_position():
    assert cyclic(3) == ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    for n in range(2, 8):
        assert np.array_equal(np.sort(np.array(cyclic(n)), axis=0), np.tile(np.arange(n)[:, None], n))


def test_cyclic_mean_log_probability_cancels_a_letter_prior():
    # P(letter at p | option i there) proportional to prior[p] * truth[i]: over one cyclic block each option meets
    # each prior once, so the mean log-probability is log truth plus a constant, whatever the prior.
    prior, truth = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    rows = []
    for order in cyclic(3):
        joint = np.array([prior[order.index(i)] * truth[i] for i in range(3)])
        rows.append(np.log(joint / joint.sum()))
    biased = decide(question(choices=("a", "b", "c")), [member(Letter(method="letter"))], [score(rows[:1])])
    assert biased.prediction == 0  # one order is fooled by the prior: 0.14 against 0.10 and 0.03
    fair = decide(
        question(choices=("a", "b", "c")), [member(Letter(method="letter", orders="cyclic"))], [score(rows, cyclic(3))]
    )
    assert fair.prediction == 1
    assert np.exp(fair.scores) == pytest.approx(truth, abs=1e-6)
    assert fair.orders_used == 3


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        # sums -4, -6; tokens 1, 3; characters 2, 12; unconditional -1, -5
        ("sum", [-4.0, -6.0]),
        ("token", [-4.0, -2.0]),
        ("char", [-2.0, -0.5]),
        ("pmi", [-3.0, -1.0]),
    ],
)
def test_cloze_normalisations(normalisation, expected):
    q = question(choices=("no", "twelve chars"))
    s = score([[-4.0, -6.0]], tokens=[1, 3], unconditional=[-1.0, -5.0])
    found = Voter(TaskPlan(members=(member(Cloze(method="cloze", normalisation=normalisation)),)), ["m"], 0.0).table(
        0, q, s
    )[0]
    assert found[0] - found[1] == pytest.approx(expected[0] - expected[1])
    assert np.exp(found).sum() == pytest.approx(1.0)


def test_members_are_averaged_with_their_weights():
    # member 1: P = (0.8, 0.2), weight 1; member 2: P = (0.3, 0.7), weight 3.
    # mean log P: (ln .8 + 3 ln .3) / 4 = -0.95876, (ln .2 + 3 ln .7) / 4 = -0.66986; softmax of the second 0.57178
    q = question(choices=("a", "b"))
    members = [member(Letter(method="letter")), member(Letter(method="letter"), weight=3.0)]
    d = decide(q, members, [score(np.log([[0.8, 0.2]])), score(np.log([[0.3, 0.7]]))])
    assert d.prediction == 1
    assert d.confidence == pytest.approx(0.57173, abs=2e-4)
    assert d.votes == (1, 1)
    assert d.members == ("m0", "m1")


def test_an_exact_tie_goes_to_the_lowest_index_and_is_marked():
    d = decide(question(choices=("a", "b", "c")), [member(Letter(method="letter"))], [score([[-3.0, -1.0, -1.0]])])
    assert d.prediction == 1
    assert d.near_tie


@pytest.mark.parametrize(("margin", "marked"), [(0.13, True), (0.15, False)])
def test_near_ties_are_within_the_error_of_both_options(margin, marked):
    # One token each: the two errors of 0.1 add up to 0.1 * sqrt(2) = 0.1414.
    q = question(choices=("a", "b"))
    d = decide(q, [member(Letter(method="letter"))], [score([[-1.0, -1.0 - margin]])], near_tie=0.1)
    assert d.near_tie is marked


def test_letter_mass_is_what_the_letters_hold_before_normalisation():
    d = decide(question(choices=("a", "b")), [member(Letter(method="letter"))], [score(np.log([[0.03, 0.01]]))])
    assert d.letter_mass == pytest.approx(0.04)
    assert d.confidence == pytest.approx(0.75)


def test_a_voter_asks_only_for_the_orders_that_are_missing():
    q = question(choices=("a", "b", "c"))
    voter = Voter(TaskPlan(members=(member(Letter(method="letter", orders="cyclic")),)), ["m"], 0.0)
    assert voter.next(q, [None]) == [Ask(0, cyclic(3))]
    assert voter.next(q, [score([[-1.0, -2.0, -3.0]])]) == [Ask(0, cyclic(3)[1:])]


def test_pmi_asks_only_for_what_the_store_lacks():
    q = question(choices=("a", "b"))
    voter = Voter(TaskPlan(members=(member(Cloze(method="cloze", normalisation="pmi")),)), ["m"], 0.0)
    known = score([[-1.0, -2.0]])
    assert voter.next(q, [known]) == [Ask(0, (), True)]
    bare = Score((), np.empty((0, 2), np.float32), np.zeros(2, np.int32), np.array([-1.0, -3.0], np.float32))
    merged = merge(known, bare)
    assert voter.next(q, [merged]).prediction == 1  # -1 + 1 = 0 against -2 + 3 = 1
    assert merge(bare, known).tokens.tolist() == [1, 1]


def test_merge_keeps_the_first_value_of_an_order():
    first, second = score([[-1.0, -2.0]]), score([[-9.0, -9.0], [-3.0, -4.0]], cyclic(2))
    merged = merge(first, second)
    assert merged.orders == cyclic(2)
    assert merged.logprobs.tolist() == [[-1.0, -2.0], [-3.0, -4.0]]


@pytest.mark.parametrize(
    ("task", "choices", "text", "prediction", "answer_text"),
    [
        ("math", (), "2 + 3 = 5 apples. The answer is 5.", "5", "2 + 3 = 5 apples. The answer is 5."),
        ("generation", (), "Paris", "Paris", "Paris"),
        ("multiple_choice", ("red", "blue"), "B", 1, "blue"),
        ("multiple_choice", ("red", "blue"), "hard to say", None, None),
    ],
)
def test_generated_texts_are_parsed_by_task(task, choices, text, prediction, answer_text):
    scoring = Generate(method="generate") if task == "multiple_choice" else None
    d = decide(question(task=task, choices=choices), [member(scoring)], [(Sample(text, 3, "stop", 0, 0),)])
    assert (d.prediction, d.answer_text) == (prediction, answer_text)
    assert d.scores is None


def test_scores_sum_to_one_in_probability():
    rng = np.random.default_rng(0)
    for n in range(2, 12):
        table = rng.normal(size=(n, n)).astype(np.float32)
        d = decide(
            question(choices=tuple(f"o{i}" for i in range(n))),
            [member(Letter(method="letter", orders="cyclic"))],
            [score(table, cyclic(n))],
        )
        assert math.fsum(map(math.exp, d.scores)) == pytest.approx(1.0)
        assert sum(d.votes) == n


def test_orders_that_another_run_stored_do_not_show():
    q = question(choices=("a", "b", "c"))
    rows = np.log([[0.5, 0.3, 0.1], [0.1, 0.2, 0.6], [0.2, 0.2, 0.2]])
    only = decide(q, [member(Letter(method="letter"))], [score(rows[:1])], near_tie=0.3)
    more = decide(q, [member(Letter(method="letter"))], [score(rows, cyclic(3))], near_tie=0.3)
    assert more == only
    assert only.orders_used == 1


def test_a_generated_number_is_read_by_the_labels_that_were_shown():
    q = question(choices=("2", "3", "1"))
    plan = TaskPlan(members=(member(Generate(method="generate")),))
    step = Voter(plan, ["m"], 0.0, [str(n) for n in range(1, 27)]).next(q, [(Sample("2.", 1, "stop", 0, 0),)])
    assert step.prediction == 1


def letters(orders):
    return member(Letter(method="letter", orders=orders))


def pmi():
    return member(Cloze(method="cloze", normalisation="pmi"))


def several(n):
    return Member(model="m", template="t", sampling=Sampling(samples=n, temperature=0.7))


def sample(index, text="4"):
    return Sample(text, 1, "stop", 0, index)


@pytest.mark.parametrize(
    ("members", "choices", "evidence", "expected"),
    [
        ([letters("cyclic")], 3, [None], [Ask(0, identity(3))]),
        ([letters("cyclic")], 3, [score([[-1.0, -2.0, -3.0]])], []),  # there can be a decision already
        # cloze sends a sequence per option, letters one for all
        ([member(Cloze(method="cloze")), letters("cyclic")], 3, [None, None], [Ask(1, identity(3))]),
        ([pmi()], 2, [None], [Ask(0, identity(2), True)]),
        ([pmi()], 2, [score([[-1.0, -2.0]])], [Ask(0, (), True)]),  # without the bare options there is no decision
        ([several(3), several(2)], 0, [None, None], [Ask(0, samples=(0,))]),
        ([several(3), several(2)], 0, [None, (sample(1),)], []),
    ],
)
def test_a_first_answer_takes_the_least(members, choices, evidence, expected):
    q = question("How much?", tuple("abc"[:choices]), "multiple_choice" if choices else "math")
    names = [f"m{i}" for i in range(len(members))]
    voter = Voter(TaskPlan(members=tuple(members)), names, 0.0)
    assert voter.first(q, evidence) == expected
    assert (voter.best(q, evidence) is None) == bool(expected)


def test_the_best_decision_so_far_is_that_of_what_was_said():
    q = question(choices=("a", "b", "c"))
    rows = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
    voter = Voter(TaskPlan(members=(letters("cyclic"), letters("identity"))), ["x", "y"], 0.0)
    two = Score(cyclic(3)[:2], rows[:2].astype(np.float32), np.ones(3, np.int32))
    found = voter.best(q, [two, None])
    # geometric means sqrt(.5 .1), sqrt(.3 .2), sqrt(.2 .7)
    raw = np.sqrt([0.05, 0.06, 0.14])
    assert np.exp(found.scores) == pytest.approx(raw / raw.sum(), abs=1e-6)
    assert (found.prediction, found.orders_used) == (2, 2)
    assert voter.missing(q, [two, None]) == [Ask(0, cyclic(3)[2:]), Ask(1, identity(3))]


def test_samples_are_asked_for_by_index():
    voter = Voter(TaskPlan(members=(several(4),)), ["m"], 0.0)
    q = question("How much?", (), "math")
    known = merge(merge(None, sample(2)), sample(0))
    assert [s.index for s in known] == [0, 2]
    assert voter.next(q, [known]) == [Ask(0, samples=(1, 3))]
    assert merge(known, sample(0, "other"))[0].text == "4"  # of the same index the first counts


def test_stored_samples_beyond_the_plan_do_not_vote():
    q = question("How much?", (), "math")
    voter = Voter(TaskPlan(members=(several(2),)), ["m"], 0.0)
    stored = tuple(sample(i, text) for i, text in enumerate(["1", "1", "2", "2", "2"]))
    assert voter.next(q, [stored]).prediction == "1"


def by_adaptive(gate=None, combine="mean_prob", reference="latin:2", members=()):
    """A voter with an adaptive member first, in 6 reference orders of three options."""
    plan = TaskPlan(members=(letters("adaptive"), *members), combine=combine, adaptive=Adaptive(reference=reference))
    calibration = None if gate is None else Calibration({(0, 3): np.array([0.6, 0.3, 0.1])}, gate)
    return Voter(plan, [f"m{i}" for i in range(len(plan.members))], 0.0, calibration=calibration)


SIX = make_orders("latin:2", 3, 0)
ABC = question(choices=("a", "b", "c"))


def said(*rows):
    return Score(SIX[: len(rows)], np.log(np.array(rows, dtype=np.float32)), np.ones(3, np.int32))


@pytest.mark.parametrize(
    ("gate", "known", "asked"),
    [
        # Not calibrated: until it is certain. After 4 of 6 at the earliest, 4 : 0 with 2 left.
        (None, None, SIX[:4]),
        (None, said(*[[0.98, 0.01, 0.01]] * 4), ()),
        # leads .4 each: after 4 orders 1.6, 2 left; after the fifth at most 2.6 > 1
        (None, said(*[[0.6, 0.2, 0.2]] * 4), SIX[4:5]),
        (None, said(*[[0.4, 0.4, 0.2]] * 4), SIX[4:]),  # 0 + 1 is not above 1
        # Certified: one order, then to the end of its block, or as far as curtailment may need
        (Gate(0.1), None, SIX[:1]),
        (Gate(0.1), said([0.4, 0.3, 0.3]), SIX[1:3]),
        (Gate(0.1), said([0.98, 0.01, 0.01]), ()),
        # Uncertified: a block
        (Gate(0.1, None), None, SIX[:3]),
        (Gate(0.1, None), said([0.9, 0.05, 0.05]), SIX[1:3]),
        # Orders of another run, from the middle of the sequence, are no beginning.
        (Gate(0.1), score([[-1.0, -2.0, -3.0]], SIX[2:3]), SIX[:1]),
        (Gate(0.1, None), score([[-1.0, -2.0, -3.0]], SIX[1:2]), (SIX[0], SIX[2])),
    ],
)
def test_adaptive_voting_asks_step_by_step(gate, known, asked):
    found = by_adaptive(gate).missing(ABC, [known])
    assert found == ([Ask(0, tuple(asked))] if asked else [])


def test_one_order_is_decided_without_the_prior_a_block_with_it():
    # .6 .3 .1 over the prior .6 .3 .1 would be a tie; .5 .3 .2: .83 : 1 : 2, so option 2 has .52.
    voter = by_adaptive(Gate(0.6))
    one = voter.next(ABC, [said([0.5, 0.3, 0.2])])
    assert (one.prediction, one.orders_used) == (2, 1)
    ratios = np.array([0.5 / 0.6, 1.0, 2.0])
    assert np.exp(one.scores) == pytest.approx(ratios / ratios.sum(), abs=1e-6)
    # .001 + .999 / (1 + exp(-(.4 - 1.8 ln 2))) = .3006
    assert one.doubt == pytest.approx(0.3006, abs=1e-4)
    rows = [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]]
    block = by_adaptive(Gate(0.05, None)).best(ABC, [said(*rows)])
    assert (block.prediction, block.orders_used) == (0, 3)
    assert np.exp(block.scores) == pytest.approx([0.7, 0.5 / 3, 0.4 / 3], abs=1e-6)


def test_more_stored_orders_do_not_show():
    voter = by_adaptive(Gate(0.6))
    rows = [[0.5, 0.3, 0.2], *[[0.98, 0.01, 0.01]] * 5]
    assert voter.next(ABC, [said(*rows)]) == voter.next(ABC, [said(rows[0])])


def test_adaptive_voting_waits_for_the_other_members():
    # With cloze of the same weight: its one vote is as many as all orders, so at first one order is asked, not four.
    cloze = member(Cloze(method="cloze", normalisation="sum"))
    voter = by_adaptive(members=(cloze,))
    assert voter.next(ABC, [None, None]) == [Ask(1, identity(3)), Ask(0, SIX[:1])]
    sure, split = score(np.log([[0.98, 0.01, 0.01]])), score(np.log([[0.3, 0.4, 0.3]]))
    # Both for option 0: .97 x 6 = 5.82 + .8 = 6.62 > 5 left
    decided = voter.next(ABC, [said([0.9, 0.05, 0.05]), sure])
    assert (decided.prediction, decided.orders_used, decided.doubt) == (0, 2, 0.0)
    # .9 - .05 - .1 x 6 = .25 ahead, 5 left: it takes 3 more that are all for option 0 (3.25 > 2)
    assert voter.next(ABC, [said([0.9, 0.05, 0.05]), split]) == [Ask(0, SIX[1:4])]


def test_a_tie_of_votes_after_all_orders_goes_to_the_higher_mean_log_probability():
    rows = [[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.05, 0.9, 0.05], [0.05, 0.9, 0.05], [0.05, 0.9, 0.05]]
    decided = by_adaptive(combine="majority").next(ABC, [said(*rows)])
    assert (decided.prediction, decided.votes, decided.orders_used) == (1, (3, 3, 0), 6)


@pytest.mark.parametrize(
    ("rows", "flip_rate", "circular"),
    [
        ([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], 2 / 3, -1),  # two of the three pairs differ
        ([[0.2, 0.5, 0.3]] * 3, 0.0, 1),
        ([[0.2, 0.5, 0.3]], None, None),
    ],
)
def test_decisions_say_how_much_orders_agree(rows, flip_rate, circular):
    found = decide(
        ABC, [letters("cyclic" if len(rows) == 3 else "identity")], [score(np.log(rows), cyclic(3)[: len(rows)])]
    )
    assert found.flip_rate == (None if flip_rate is None else pytest.approx(flip_rate))
    assert found.circular == circular
