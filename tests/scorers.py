"""Simulated scorers: what a model with preferences for labels says about options in every order.

The logit of option i under label l in one order is the sum of the option's merit, the model's preference for l (of all
questions, and of this question), a preference of this option for this label, and noise of this order.
"""

from typing import NamedTuple

import numpy as np

from ensemble.combine import Floats, Ints, ballots, log_softmax
from ensemble.orders import make_orders, positions
from ensemble.prior import by_option, estimate_prior
from ensemble.tracks import Track


class Scorer(NamedTuple):
    """Standard deviations, in nats. letter: of the labels' preferences over all questions; own: of a question's;
    pair: of an option's for a label; noise: of an order. accuracy: of the merits alone; sharpness: their factor."""

    accuracy: float = 0.8
    letter: float = 0.7
    own: float = 0.4
    pair: float = 0.4
    noise: float = 0.5
    sharpness: float = 1.0


class Said(NamedTuple):
    """logprobs: [Q, orders, n] normalised, by option. gold: int [Q]."""

    logprobs: Floats
    gold: Ints


def simulate(scorer: Scorer, questions: int, n: int, reference: str, seed: int) -> Said:
    rng = np.random.default_rng(seed)
    at = positions(make_orders(reference, n, 0))  # [orders, n]
    gold = rng.integers(0, n, questions)
    merit = _merits(rng, gold, n, scorer.accuracy) * scorer.sharpness
    labels = rng.normal(0, scorer.letter, n) + rng.normal(0, scorer.own, (questions, n))
    pairs = rng.normal(0, scorer.pair, (questions, n, n))
    logits = merit[:, None] + labels[:, at] + pairs[:, np.arange(n), at]
    return Said(log_softmax(logits + rng.normal(0, scorer.noise, logits.shape)), gold)


def track_of(logprobs: Floats, reference: str, prior: Floats, how: str = "mean_prob") -> Track:
    """Of one member that is alone."""
    questions, _, n = logprobs.shape
    first = log_softmax(logprobs[:, 0] - by_option(prior, make_orders(reference, n, 0))[0])
    return Track(ballots(logprobs, how), np.zeros((questions, n)), first, logprobs.mean(axis=1))  # type: ignore[arg-type]


def prior_of(logprobs: Floats) -> Floats:
    """PriDe's, of scores whose first n orders are the cyclic ones."""
    n = logprobs.shape[2]
    return estimate_prior(logprobs[:, :n])


def _merits(rng: np.random.Generator, gold: Ints, n: int, accuracy: float) -> Floats:
    """[Q, n]: normal, and of the gold option a gamma more, so scaled that it is best in this share of questions."""
    rows = np.arange(len(gold))
    merit: Floats = rng.normal(0, 1, (len(gold), n))
    more = rng.gamma(1.0, 1.0, len(gold))
    own = merit[rows, gold].copy()
    low, high = 0.0, 50.0
    for _ in range(40):
        scale = (low + high) / 2
        merit[rows, gold] = own + scale * more
        low, high = (scale, high) if (merit.argmax(axis=1) == gold).mean() < accuracy else (low, scale)
    return merit
