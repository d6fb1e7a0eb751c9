"""What adaptive voting looks at: the votes of several members for each option, order by order, as one array."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ensemble.combine import Combine, Floats, ballots


class Track(NamedTuple):
    """What is known of questions with the same number of options.

    ballots: [Q, T, n] what each order adds to each option, in [0, 1] and in sum 1 (`ensemble.combine.ballots`); nan
        from the first order that is not known. offset: [Q, n] what other members add, in the same unit, whatever the
        orders. first: [Q, n] log-probabilities after one order, without the labels' prior. means: [Q, n] mean
        log-probabilities over orders and members, up to a constant, which break ties between all votes; without them
        the lower index does.
    """

    ballots: Floats
    offset: Floats
    first: Floats
    means: Floats | float = 0.0


class Said(NamedTuple):
    """What one member says about questions with n options. table: [Q, orders, n] normalised log-probabilities, of an
    adaptive member for the T reference orders, nan from the first unknown one. first: [Q, n] the first order's without
    the labels' prior, None of a member that does not vote adaptively."""

    table: Floats
    weight: float
    first: Floats | None = None


def join(said: Sequence[Said], how: Combine) -> Track:
    """The members' votes as one; at least one is adaptive, and all adaptive ones know the same orders."""
    theirs = sum(member.weight for member in said if member.first is not None)
    total = sum(member.weight for member in said)
    orders = next(member.table.shape[1] for member in said if member.first is not None)
    questions, _, n = said[0].table.shape
    votes, (offset, first, means) = np.zeros((questions, orders, n)), np.zeros((3, questions, n))
    for member in said:
        unknown = np.isnan(member.table).any(axis=2)
        added = ballots(member.table, how)
        means += np.nanmean(member.table, axis=1) * (member.weight / total)
        if member.first is None:
            offset += added.mean(axis=1) * (member.weight / theirs * orders)
            first += np.exp(member.table).mean(axis=1) * (member.weight / total)
        else:
            added[unknown] = np.nan
            votes += added * (member.weight / theirs)
            first += np.exp(member.first) * (member.weight / total)
    return Track(votes, offset, np.log(np.maximum(first, 1e-300)), means)
