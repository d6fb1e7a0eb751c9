"""Several texts, one answer: votes counted by hand, and the most central text by utilities worked by hand."""

import pytest

from ensemble.config import Generate, Member, Sampling, TaskPlan
from ensemble.elect import central, elect, majority
from ensemble.records import Sample
from tests.conftest import question

SOME = TaskPlan(members=(Member(model="m", template="t", sampling=Sampling(samples=2, temperature=1.0)),))


def texts(*values, weights=None):
    samples = [Sample(text, 1, "stop", 0, i) for i, text in enumerate(values)]
    return list(zip(weights or [1.0] * len(values), samples, strict=True))


@pytest.mark.parametrize(
    ("values", "weights", "prediction", "confidence"),
    [
        (("The answer is 3.", "#### 4", "so 4"), None, "4", 2 / 3),
        (("0.75", "1/2", "the answer is 3/4"), None, "0.75", 2 / 3),  # equal by value; the first text speaks
        (("5", "6"), None, "5", 1 / 2),  # a tie goes to the one that came first
        (("5", "6", "6"), (3.0, 1.0, 1.0), "5", 3 / 5),
        (("no idea", "no", "7"), None, "7", 1 / 3),  # texts without a number do not vote, but make doubt
        (("no idea", "none"), None, None, 0.0),
        (("8",), None, "8", None),  # one text says nothing about its own certainty
    ],
)
def test_numbers_are_elected_by_self_consistency(values, weights, prediction, confidence):
    found = elect(question("How much?", (), "math"), texts(*values, weights=weights), SOME, ("m",), "AB")
    assert found.prediction == prediction
    assert found.confidence == (None if confidence is None else pytest.approx(confidence))
    assert found.orders_used == len(values)


def test_the_elected_number_comes_with_its_own_solution():
    found = elect(question("How much?", (), "math"), texts("1 and 1 is 3", "1 + 1 = 2", "It is 2."), SOME, ("m",), "AB")
    assert (found.prediction, found.answer_text) == ("2", "1 + 1 = 2")
    assert found.samples == ("1 and 1 is 3", "1 + 1 = 2", "It is 2.")


def test_options_are_elected_with_votes_per_option():
    plan = TaskPlan(
        members=(Member(model="m", template="t", scoring=Generate(method="generate"), sampling=Sampling()),)
    )
    q = question("Which?", ("red", "blue", "green"))
    found = elect(q, texts("B", "blue", "A", "hm"), plan, ("m",), "ABC")
    assert (found.prediction, found.answer_text) == (1, "blue")
    assert found.votes == (1, 2, 0)
    assert found.confidence == pytest.approx(0.5)


def test_a_text_is_elected_by_its_mean_utility_against_the_others():
    # ROUGE-1 F between pairs: (a b c, a b d) 2/3; (a b c, x y z) 0; (a b d, x y z) 0. The first two tie at 2/3 / 2.
    q = question("Long text", (), "summarization")
    plan = TaskPlan(members=SOME.members, metrics=("rouge1",))
    found = elect(q, texts("x y z", "alpha beta gamma", "alpha beta delta"), plan, ("m",), "AB")
    assert found.prediction == "alpha beta gamma"
    assert found.confidence is None


def test_weights_count_in_the_utility():
    # "a" is near what weighs much: 5 * 1 against 1 * 1.
    def same_start(text, other):
        return float(text[0] == other[0])

    pool = texts("a1", "b1", "a2", "b2", weights=(1.0, 1.0, 5.0, 1.0))
    assert central(pool, same_start).text == "a1"
    assert central(texts("b1", "a1", "b2"), same_start).text == "b1"


def test_majority_counts_texts_and_weighs_them():
    best, share, counts = majority(texts("x", "y", "y", weights=(5.0, 1.0, 1.0)), str)
    assert (best.text, share, counts) == ("x", pytest.approx(5 / 7), {"x": 1, "y": 2})
