"""Orders in which the options of a question are shown: which ones a config names, and how many they are.

An order is a tuple of option indices, `order[p]` stands at position p. A cyclic block is the n rotations of a base:
each option stands once at each position, so that over a block a preference for a position cancels.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.errors import ConfigError
from ensemble.names import unknown
from ensemble.records import Order

Kind = Literal["identity", "cyclic", "latin", "sampled", "full", "adaptive"]
KINDS: tuple[Kind, ...] = ("identity", "cyclic", "latin", "sampled", "full", "adaptive")
COUNTED = ("latin", "sampled")
MOST = 1000  # of a number after the colon
FULL_UP_TO = 5  # options: 120 orders; six have 720


class Orders(NamedTuple):
    kind: Kind
    k: int = 0  # blocks of latin, orders of sampled


def parse_orders(text: str) -> Orders:
    """`cyclic`, `latin:2`. Raises ValueError with the cure."""
    name, colon, count = text.partition(":")
    if name not in KINDS:
        raise ValueError(unknown("orders", name, KINDS))
    if name not in COUNTED:
        if colon:
            raise ValueError(f"orders {name} takes no number; write {name}")
        return Orders(name)
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"orders {name} needs a number, such as {name}:2")
    if int(count) > MOST:
        raise ValueError(f"orders {text}: at most {name}:{MOST}")
    return Orders(name, int(count))


def union(texts: Iterable[str]) -> str:
    """What names all of their orders, joined by + where it takes several."""
    parts = sorted({part for text in texts for part in text.split("+")})
    return "full" if "full" in parts else "+".join(parts)


def count_orders(text: str, n: int) -> int:
    """Orders per question with n options; of adaptive the least, 1."""
    if "+" in text:
        return len(make_orders(text, n, 0))
    kind, k = parse_orders(text)
    if kind == "latin":
        return min(k * n, math.factorial(n))
    if kind == "sampled":
        return min(k, math.factorial(n))
    return {"cyclic": n, "full": math.factorial(n)}.get(kind, 1)


@lru_cache(maxsize=256)
def make_orders(text: str, n: int, seed: int) -> tuple[Order, ...]:
    """The orders that `text` names for n options, the given one first (but in `sampled`).

    latin:k is the beginning of latin:k+1, sampled:k of sampled:k+1: what is stored of one serves the other.
    """
    if "+" in text:
        return tuple(dict.fromkeys(order for part in text.split("+") for order in make_orders(part, n, seed)))
    total = count_orders(text, n)
    if parse_orders(text).kind == "sampled":
        return tuple(itertools.islice(_shuffled(tuple(range(n)), seed), total))
    shown = (order for base in _bases(n, seed) for order in rotations(base))
    return tuple(itertools.islice(shown, total))


def rotations(base: Order) -> Iterator[Order]:
    """The cyclic block of a base; of (0, .., n-1) the n cyclic orders."""
    return (base[shift:] + base[:shift] for shift in range(len(base)))


def _bases(n: int, seed: int) -> Iterator[Order]:
    """One order of each cyclic block, the given order first, the rest shuffled."""
    given = tuple(range(n))
    yield given
    for rest in _shuffled(given[1:], seed):
        if (0, *rest) != given:
            yield (0, *rest)


def _shuffled(items: Order, seed: int) -> Iterator[Order]:
    """All orders of the items, each once, shuffled by a hash: the same on every version of every library."""

    def rank(*values: int) -> bytes:
        return hashlib.blake2b(repr((seed, values)).encode(), digest_size=8).digest()

    if len(items) <= FULL_UP_TO + 1:
        yield from sorted(itertools.permutations(items), key=lambda order: rank(*order))
        return
    seen = set[Order]()
    for draw in itertools.count():
        order = tuple(sorted(items, key=lambda item: rank(draw, item)))
        if order not in seen:
            seen.add(order)
            yield order


@lru_cache(maxsize=256)
def positions(orders: tuple[Order, ...]) -> npt.NDArray[np.intp]:
    """[orders, options]: at which position each option stands."""
    return np.argsort(np.array(orders, dtype=np.intp), axis=1)


def check_orders(text: str, options: Mapping[int, int]) -> None:
    """Raises ConfigError where `full` would be too many orders; options: number of options -> questions."""
    if "full" not in text.split("+"):
        return
    for n, questions in sorted(options.items()):
        if n > FULL_UP_TO:
            each = math.factorial(n)
            raise ConfigError(
                f"orders: full is {each:,} prompts for each of {questions:,} questions with {n} options "
                f"({each * questions:,} in all), refused above {FULL_UP_TO} options: "
                f"use latin:4 ({4 * n} orders), sampled:24, cyclic ({n}) or adaptive"
            )
