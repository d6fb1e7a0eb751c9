"""PriDe: the labels' prior by hand, recovered from scores that were made with a known one, and kept in files."""

import json

import numpy as np
import pytest

from ensemble.combine import log_softmax
from ensemble.errors import ConfigError, StoreError
from ensemble.orders import make_orders, positions
from ensemble.prior import StoredPrior, by_option, estimate_prior, load_prior, prior_key, save_prior
from tests.conftest import cyclic


def observed(prior, truth, orders):
    """[Q, orders, n] log P(option shown under its label) where P is proportional to prior(label) x truth(option)."""
    return log_softmax(np.log(prior)[positions(orders)] + np.log(truth)[:, None, :])


def test_the_prior_of_one_question_by_hand():
    # Two options. In order (0, 1) A holds option 0: A .8, B .2; in order (1, 0) A holds option 1: A .6, B .4.
    by_labels = np.array([[0.8, 0.2], [0.6, 0.4]])
    tables = np.log(np.array([[[0.8, 0.2], [0.4, 0.6]]]))  # by option
    # exp(mean log): A sqrt(.48) = .69282, B sqrt(.08) = .28284; .71010 and .28990 of their sum (1 / (1 + sqrt(1/6)))
    assert np.sqrt(by_labels.prod(axis=0)) == pytest.approx([0.69282, 0.28284], abs=1e-5)
    assert estimate_prior(tables) == pytest.approx([0.71010, 0.28990], abs=1e-5)


def test_the_prior_is_the_mean_over_questions():
    # The second question says A .5, B .5 in both orders: the mean of .71010 and .5 is .60505.
    tables = np.log(np.array([[[0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]]]))
    assert estimate_prior(tables) == pytest.approx([0.60505, 0.39495], abs=1e-5)


def test_the_prior_of_each_option_is_that_of_its_label():
    found = by_option(np.array([0.5, 0.3, 0.2]), ((0, 1, 2), (2, 0, 1)))
    assert np.exp(found) == pytest.approx(np.array([[0.5, 0.3, 0.2], [0.3, 0.2, 0.5]]))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 26])
def test_a_known_prior_is_recovered_and_divided_out(n):
    rng = np.random.default_rng(n)
    prior, truth = rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(n, 0.7), 50)
    assert estimate_prior(observed(prior, truth, cyclic(n))) == pytest.approx(prior, abs=1e-6)
    # Elsewhere one order is enough, whichever it is.
    orders = make_orders("sampled:5", n, 1)
    shown = observed(prior, truth, orders)
    fair = log_softmax(shown - by_option(prior, orders))
    assert np.exp(fair) == pytest.approx(np.broadcast_to(truth[:, None], fair.shape), abs=1e-6)
    assert (fair.argmax(axis=-1) == truth.argmax(axis=-1)[:, None]).all()
    assert n == 2 or (shown.argmax(axis=-1) != truth.argmax(axis=-1)[:, None]).any()


def test_a_known_prior_is_recovered_where_questions_differ():
    rng = np.random.default_rng(0)
    prior, truth = np.array([0.5, 0.25, 0.15, 0.1]), rng.dirichlet(np.ones(4), 2000)
    own = np.exp(rng.normal(0, 0.3, (2000, 4)))  # each question's own preference for labels
    tables = observed(prior, truth, cyclic(4)) + np.log(own)[:, positions(cyclic(4))]
    found = estimate_prior(log_softmax(tables + rng.normal(0, 0.3, tables.shape)))
    # A logit of deviation sqrt(.3^2 + .3^2 / 4) = .34 moves a share by up to .25 x .34, its mean over 2,000 by .002,
    # and being averaged as a probability by its curvature, below .01.
    assert found == pytest.approx(prior, abs=0.01)


DESCRIPTION = {"model": "f1", "dtype": "auto", "quantization": None, "chat": False, "template": {"question": "q"}}


def described(**changes):
    return {**DESCRIPTION, "shots": None, "hardware": "cpu:x", "cut": "tail", **changes}


def test_a_stored_prior_comes_back(tmp_path):
    path, key = tmp_path / "priors" / "p.json", prior_key(described())
    save_prior(path, StoredPrior("m/letters", key, {2: [0.6, 0.4], 4: [0.4, 0.3, 0.2, 0.1]}))
    found = load_prior(str(path), "m/letters", key, [4])
    assert {n: values.tolist() for n, values in found.items()} == {2: [0.6, 0.4], 4: [0.4, 0.3, 0.2, 0.1]}
    before = path.stat().st_mtime_ns
    save_prior(path, StoredPrior("m/letters", key, {2: [0.6, 0.4], 4: [0.4, 0.3, 0.2, 0.1]}))
    assert path.stat().st_mtime_ns == before  # the same is not written again


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"hardware": "cuda:H200"}, True),
        ({"cut": "head"}, True),
        ({"model": "f2"}, False),
        ({"template": {"question": "another"}}, False),
        ({"shots": "5 of dev"}, False),
        ({"chat": True}, False),
        ({"quantization": "gptq"}, False),
    ],
)
def test_a_prior_belongs_to_a_model_and_a_prompt(change, same):
    assert (prior_key(described(**change)) == prior_key(described())) is same


GOOD = {"name": "m/letters", "key": "k", "priors": {"2": [0.6, 0.4]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(GOOD | {"key": "other"}), "of m/letters, with another model or template than m/cloze"),
        (json.dumps(GOOD | {"priors": {"4": [0.25] * 4}}), "has none for 2 options"),
        (json.dumps(GOOD | {"priors": {}}), "has none for 2 options"),
        (json.dumps(GOOD | {"priors": {"2": [0.6, 0.5]}}), "for 2 options it is no distribution over 2 labels"),
        (json.dumps(GOOD | {"priors": {"2": [1.0, 0.0]}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"2": [1.5, -0.5]}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"2": [0.5, 0.3, 0.2]}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"2": [None, 1.0]}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"2": 0.5}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"2": [[0.25, 0.25], [0.25, 0.25]]}}), "no distribution"),
        (json.dumps(GOOD | {"priors": {"two": [0.6, 0.4]}}), "not a stored prior"),
        (json.dumps(GOOD | {"priors": {"2": ["a", "b"]}}), "not a stored prior"),
        (json.dumps(GOOD | {"priors": [[0.6, 0.4]]}), "not a stored prior"),
        (json.dumps(GOOD | {"more": 1}), "not a stored prior"),
        (json.dumps({"key": "k"}), "not a stored prior"),
        (json.dumps([1, 2]), "not a stored prior"),
        (json.dumps(GOOD)[:40], "not a stored prior"),
        ("", "not a stored prior"),
        (b"\xff\xfe\x00", "not a stored prior"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused_with_the_cure(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as e:
        load_prior(str(path), "m/cloze", "k", [2])
    assert message in str(e.value)
    assert str(path) in str(e.value)
    assert "leave prior out to estimate one here" in str(e.value)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json.*give a file of STORE/priors, or leave prior out"):
        load_prior(str(tmp_path / "none.json"), "m", "k", [2])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save_prior(tmp_path / "file" / "p.json", StoredPrior("m", "k", {2: [0.6, 0.4]}))
