"""One vote out of many log-probabilities, against tables worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.combine import ballots, log_softmax, vote
from ensemble.config import Letter, Member
from ensemble.tables import normalise


def logs(*orders):
    return np.log(np.array(orders, dtype=np.float64))


# Three orders. Geometric means: (.9 .2 .2)^(1/3) = .33019, (.05 .7 .3)^(1/3) = .21898, (.05 .1 .5)^(1/3) = .13572; in
# sum .68489. Means: 1.3/3 = .4333, 1.05/3 = .35, .65/3 = .2167. Each order chooses another option: one vote each.
SPREAD = logs([0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.2, 0.3, 0.5])
# Two of three orders are for option 1 by a little, one is against it by a lot.
LOUD = logs([0.45, 0.55], [0.45, 0.55], [0.95, 0.05])


@pytest.mark.parametrize(
    ("tables", "weights", "how", "choice", "shares"),
    [
        ([SPREAD], [1.0], "mean_logprob", 0, [0.48211, 0.31973, 0.19816]),
        ([SPREAD], [1.0], "mean_prob", 0, [0.43333, 0.35, 0.21667]),
        ([SPREAD], [1.0], "majority", 0, [1 / 3]),  # a tie of votes goes to the higher mean log-probability
        # (.45 .45 .95)^(1/3) = .57727, (.55 .55 .05)^(1/3) = .24730
        ([LOUD], [1.0], "mean_logprob", 0, [0.70009, 0.29991]),
        ([LOUD], [1.0], "mean_prob", 0, [0.61667, 0.38333]),
        ([LOUD], [1.0], "majority", 1, [2 / 3]),
        # Members with one and three orders, weights 1 and 3: an order of the second weighs as much as all of the first.
        # mean_prob: (.2 + 3 * .61667) / 4 = .5125. majority: 1 is chosen with (1 + 3 * 2/3) / 4 = .75.
        ([logs([0.2, 0.8]), LOUD], [1.0, 3.0], "mean_prob", 0, [0.5125, 0.4875]),
        ([logs([0.2, 0.8]), LOUD], [1.0, 3.0], "majority", 1, [0.75]),
        # mean_logprob: (.2 x .57727^3)^(1/4) = .44289, (.8 x .24730^3)^(1/4) = .33166
        ([logs([0.2, 0.8]), LOUD], [1.0, 3.0], "mean_logprob", 0, [0.57180, 0.42820]),
        # The same by weights that sum to something else
        ([logs([0.2, 0.8]), LOUD], [0.1, 0.3], "mean_prob", 0, [0.5125, 0.4875]),
    ],
)
def test_votes_by_hand(tables, weights, how, choice, shares):
    found = vote(tables, weights, how)
    assert found.choice == choice
    if how == "majority":
        assert found.shares[choice] == pytest.approx(shares[0], abs=1e-5)
        # Scores stay probabilities, those of the mean log-probability.
        assert found.scores == pytest.approx(vote(tables, weights, "mean_logprob").scores)
    else:
        assert np.exp(found.scores) == pytest.approx(shares, abs=2e-5)
        assert found.shares == pytest.approx(shares, abs=2e-5)


@pytest.mark.parametrize(
    ("table", "how", "choice"),
    [
        (logs([0.4, 0.4, 0.2]), "mean_logprob", 0),
        (logs([0.4, 0.4, 0.2]), "mean_prob", 0),
        (logs([0.2, 0.4, 0.4]), "majority", 1),
        # 0 and 1 have .5 each in the mean; the geometric means are sqrt(.09) = .3 and sqrt(.25) = .5
        (logs([0.9, 0.5], [0.1, 0.5]), "mean_prob", 1),
        (
            logs([0.1, 0.5, 0.4], [0.9, 0.05, 0.05], [0.1, 0.4, 0.5]),
            "majority",
            1,
        ),  # 4.5^(1/3) .. : .2080, .2154, .2154
        # The same three numbers for each option in another order: floats sum to another last digit, but it is a tie.
        (np.array([[-0.1, -2.3], [-2.3, -5.9], [-5.9, -0.1]]), "mean_logprob", 0),
        (np.array([[-0.1, -0.1], [-0.3, -0.7], [-0.7, -0.3]]), "mean_logprob", 0),
    ],
)
def test_ties_go_to_the_higher_mean_log_probability_then_to_the_lower_index(table, how, choice):
    assert vote([table], [1.0], how).choice == choice
    # The orders' order, that of members and a split into members of equal weight change no tie.
    assert vote([table[::-1]], [1.0], how).choice == choice
    parts = [table[i : i + 1] for i in range(len(table))]
    assert vote(parts, [1.0] * len(parts), how).choice == choice


HOWS = ["mean_logprob", "mean_prob", "majority"]


@pytest.mark.parametrize("how", HOWS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 7))
def test_many_questions_at_once_are_the_same_as_one_by_one(how, seed, n):
    rng = np.random.default_rng(seed)
    tables = [log_softmax(rng.normal(0, 2, (9, orders, n))) for orders in (1, n, 5)]
    weights = [1.0, 0.5, 2.0]
    at_once = vote(tables, weights, how)
    for q in range(9):
        alone = vote([table[q] for table in tables], weights, how)
        assert alone.choice == at_once.choice[q]
        assert alone.scores == pytest.approx(at_once.scores[q])
        assert alone.shares == pytest.approx(at_once.shares[q])


@pytest.mark.parametrize("how", HOWS)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_vote_follows_the_options(how, seed):
    rng = np.random.default_rng(seed)
    table, permutation = log_softmax(rng.normal(0, 2, (5, 6))), rng.permutation(6)
    assert permutation[vote([table[:, permutation]], [1.0], how).choice] == vote([table], [1.0], how).choice


def test_ballots_of_an_order():
    table = logs([0.2, 0.5, 0.3], [0.4, 0.2, 0.4])
    assert ballots(table, "mean_prob") == pytest.approx(np.exp(table))
    assert ballots(table, "majority").tolist() == [[0, 1, 0], [1, 0, 0]]
    assert ballots(table, "mean_logprob") is table


def test_impossible_options_stay_finite():
    with np.errstate(divide="ignore"):
        table = np.log(np.array([[1.0, 0.0], [1.0, 0.0]]))
    found = vote([np.maximum(table, -1e5)], [1.0], "mean_prob")
    assert found.choice == 0
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.8, 0.2]),
        (2.0, [2 / 3, 1 / 3]),  # sqrt(.8) : sqrt(.2) = 2 : 1
        (0.5, [16 / 17, 1 / 17]),  # .64 : .04
    ],
)
def test_a_temperature_flattens_or_sharpens(temperature, expected):
    member = Member(model="m", template="t", scoring=Letter(method="letter", temperature=temperature))
    assert np.exp(normalise(member, logs([0.4, 0.1]), np.ones(2))[0]) == pytest.approx(expected)


def test_temperature_comes_after_the_prior():
    # Observed .8 : .2 under a prior .5 : .125 (as 4 : 1) is 1 : 1 at every temperature.
    member = Member(model="m", template="t", scoring=Letter(method="letter", temperature=3.0))
    table = normalise(member, logs([0.8, 0.2]), np.ones(2), log_prior=logs([0.8, 0.2]))
    assert np.exp(table[0]) == pytest.approx([0.5, 0.5])
