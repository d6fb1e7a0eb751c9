"""What is known about a question from one member, and how new replies join it."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ensemble.records import Order, Sample, Score

Evidence = Score | tuple[Sample, ...] | None


def merge(known: Evidence, new: Score | Sample) -> Score | tuple[Sample, ...]:
    """What is known after `new` came in; of the same order or sample the first counts."""
    if isinstance(new, Sample):
        samples = known if isinstance(known, tuple) else ()
        return tuple(sorted({s.index: s for s in (new, *samples)}.values(), key=lambda s: s.index))
    return merge_scores(known if isinstance(known, Score) else None, new)


def merge_scores(known: Score | None, new: Score) -> Score:
    """The orders of both; of the same order the first counts."""
    if known is None:
        return new
    fresh = [i for i, order in enumerate(new.orders) if order not in known.orders]
    return Score(
        known.orders + tuple(new.orders[i] for i in fresh),
        np.concatenate([known.logprobs, new.logprobs[fresh]]) if known.orders else new.logprobs,
        known.tokens if known.orders else new.tokens,
        known.unconditional if known.unconditional is not None else new.unconditional,
        known.prompt if known.orders else new.prompt,
    )


def pick_orders(score: Score, wanted: tuple[Order, ...]) -> Score:
    """The score with only those of its orders that are wanted, in the order in which they are wanted."""
    if score.orders == wanted:
        return score
    orders, rows = _common(wanted, score.orders)
    return replace(score, orders=orders, logprobs=score.logprobs[rows])


@lru_cache(4096)  # few differ
def _common(wanted: tuple[Order, ...], had: tuple[Order, ...]) -> tuple[tuple[Order, ...], npt.NDArray[np.intp]]:
    place = {order: i for i, order in reversed(list(enumerate(had)))}
    orders = tuple(order for order in wanted if order in place)
    return orders, np.array([place[order] for order in orders], dtype=np.intp)


def known_prefix(score: Evidence, sequence: tuple[Order, ...]) -> int:
    """How many orders of the sequence are known from its beginning on."""
    if not isinstance(score, Score):
        return 0
    if score.orders[: len(sequence)] == sequence[: len(score.orders)]:
        return min(len(score.orders), len(sequence))
    had = set(score.orders)
    return next((i for i, order in enumerate(sequence) if order not in had), len(sequence))
