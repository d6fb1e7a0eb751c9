"""How log-probabilities over orders and members become one vote. Vectorised: leading axes are questions.

Everywhere `n` is the number of options, and the last axis is by content, whatever position an option was shown at.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Combine = Literal["mean_logprob", "mean_prob", "majority"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
EQUAL = 1e-9  # votes that differ by less are a tie: sums of floats depend on their order


class Vote(NamedTuple):
    """choice: int [...], the winner. scores: [..., n], normalised log-probabilities, the winner's the highest but for
    `majority`. shares: [..., n], probabilities, of `majority` shares of the votes; in sum 1."""

    choice: Ints
    scores: Floats
    shares: Floats


class Mean(NamedTuple):
    """A member over its orders, each [..., n]. log: mean log-probability. support: mean of what each order adds."""

    log: Floats
    support: Floats


def mean(table: Floats, how: Combine) -> Mean:
    """table: [..., orders, n] normalised log-probabilities (`log_softmax`)."""
    log = table.mean(axis=-2)
    return Mean(log, log if how == "mean_logprob" else ballots(table, how).mean(axis=-2))


def vote(tables: Sequence[Floats], weights: Sequence[float], how: Combine) -> Vote:
    """As `vote_of`; tables: per member [..., orders, n], whose numbers of orders may differ."""
    return vote_of([mean(table, how) for table in tables], weights, how)


def vote_of(members: Sequence[Mean], weights: Sequence[float], how: Combine) -> Vote:
    """The ensemble's vote; weights: per member, of any sum.

    Ties go to the higher mean log-probability, then to the lower index.
    """
    means = log_softmax(_weighted([member.log for member in members], weights))
    if how == "mean_logprob":
        choice = winner(means, means)
        return Vote(choice, means, np.exp(means))
    support = _weighted([member.support for member in members], weights)
    choice = winner(support, means)
    if how == "mean_prob":
        with np.errstate(divide="ignore"):
            scores = np.maximum(np.log(support), -1e4)  # an impossible option stays a number
        return Vote(choice, scores, support)
    return Vote(choice, means, support)


def ballots(table: Floats, how: Combine) -> Floats:
    """[..., orders, n] what each order adds to each option: of `mean_prob` and `majority` in [0, 1], in sum 1."""
    if how == "mean_logprob":
        return table
    if how == "mean_prob":
        return np.exp(table)
    chosen: Floats = (np.arange(table.shape[-1]) == table.argmax(axis=-1)[..., None]).astype(np.float64)
    return chosen


def log_softmax(x: Floats) -> Floats:
    top = x.max(axis=-1, keepdims=True)
    shifted = x - top
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _weighted(values: Sequence[Floats], weights: Sequence[float]) -> Floats:
    total = sum(weights)
    result: Floats = np.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        result += value * (weight / total)
    return result


def winner(support: Floats, means: Floats | float, equal: float = EQUAL) -> Ints:
    """[...] the option of most support; of those that lack at most `equal` the higher mean, then the lower index."""
    best = support >= support.max(axis=-1, keepdims=True) - equal
    among = np.where(best, means, -np.inf)
    first: Ints = (among >= among.max(axis=-1, keepdims=True) - EQUAL).argmax(axis=-1)
    return first
