"""Does adaptive voting keep its promise, and what does it cost? Simulated scorers, drawn anew hundreds of times.

python benchmarks/simulated_votes.py [--draws 200] [--processes 2] [--only NAME ...] [--store STORE --input INPUT]

Each draw makes a scorer of 5,000 questions, calibrates as solve does (`ensemble.adaptive`, 1% at 95%), walks the rest,
and compares with the votes of all orders. Beside it stands a plain rule: per stage the lowest margin above which at
most 1% of 400 questions decide otherwise. With --store the scorer is a recorded one (`benchmarks/votes.py`), and only
the sample and the sequence of orders are drawn.

The probability of an option is the softmax of
    skill + letter prior + the question's own letter bias + option x letter interaction + order noise,
where the right option's skill leads by a gamma variable whose scale gives the accuracy that is wanted.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ensemble.adaptive import EXACT, certify, fit_gate, sample_sizes, walk
from ensemble.combine import log_softmax
from ensemble.orders import make_orders, positions
from ensemble.prior import by_option, estimate_prior
from ensemble.tracks import Track

QUESTIONS, PROMISED, CONFIDENCE, TUNED = 5000, 0.01, 0.95, 400


class Scorer(NamedTuple):
    """accuracy: of the votes, were there no noise. bias: deviation of the letters' prior; own: of a question's letter
    bias; mixed: of option x letter; noise: of an order's noise, all in logits. sharp: multiplies the skill, shape: of
    its gamma; scale: multiplies all logits (above 1 the scorer is saturated)."""

    name: str
    accuracy: float
    options: int = 4
    bias: float = 0.7
    own: float = 0.4
    mixed: float = 0.4
    noise: float = 0.5
    sharp: float = 1.0
    shape: float = 1.0
    scale: float = 1.0
    questions: int = QUESTIONS


def hard(name: str, accuracy: float, **other: Any) -> Scorer:
    return Scorer(name, accuracy, **other)


def easy(name: str, accuracy: float, **other: Any) -> Scorer:
    """Half the noise for the same skill."""
    return Scorer(name, accuracy, sharp=2.0, **other)


SCORERS = (
    easy("70%, easy", 0.7),
    hard("70%, hard", 0.7),
    easy("80%, easy", 0.8),
    hard("80%, hard", 0.8),
    hard("80%, prior x 3", 0.8, bias=2.1),
    hard("70%, prior x 3", 0.7, bias=2.1),
    hard("80%, own bias x 3", 0.8, own=1.2),
    hard("80%, interaction x 3", 0.8, mixed=1.2),
    hard("80%, noise x 3", 0.8, noise=1.5),
    hard("70%, noise x 3", 0.7, noise=1.5),
    hard("80%, saturated x 5", 0.8, scale=5.0),
    hard("70%, saturated x 5", 0.7, scale=5.0),
    easy("80%, easy, saturated x 5", 0.8, scale=5.0),
    hard("80%, flat x 0.3", 0.8, scale=0.3),
    hard("80%, heavy tail", 0.8, shape=0.5),
    hard("80%, even margins", 0.8, shape=4.0),
    hard("80%, 2 options", 0.8, options=2),
    hard("70%, 2 options", 0.7, options=2),
    hard("80%, 3 options", 0.8, options=3),
    hard("70%, 3 options", 0.7, options=3),
    hard("80%, 5 options", 0.8, options=5),
    hard("70%, 5 options", 0.7, options=5),
    hard("30%, guessing", 0.3),
    hard("80%, 1,000 questions", 0.8, questions=1000),
    hard("80%, 2,000 questions", 0.8, questions=2000),
    hard("80%, 20,000 questions", 0.8, questions=20000),
)


class Outcome(NamedTuple):
    """One draw. disagreement: share of all decisions that are not those of all orders; outside: of those outside the
    sample. cost: share of all orders of all questions, calibration counted. plain, plain_cost: of the plain rule.
    truth, first: accuracy of all orders and of the first."""

    disagreement: float
    outside: float
    cost: float
    plain: float
    plain_cost: float
    truth: float
    first: float
    guaranteed: bool


def simulate(scorer: Scorer, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """float64 [Q, T, n] log-probabilities by option, int [Q] gold, the orders."""
    rng = np.random.default_rng(seed)
    size, n = scorer.questions, scorer.options
    orders = make_orders("latin:24", n, seed)
    gold = rng.integers(n, size=size)
    mixed = rng.normal(0, scorer.mixed, (size, n, n))
    # What an interaction gives to an option in the mean over the letters belongs to the skill that is aimed at.
    others = rng.normal(size=(size, n)) + mixed.mean(2) / scorer.sharp
    lead = rng.gamma(scorer.shape, size=size)
    low, high = 0.0, 1000.0
    for _ in range(40):
        middle = (low + high) / 2
        skill = others.copy()
        skill[np.arange(size), gold] += middle * lead
        low, high = (middle, high) if (skill.argmax(1) == gold).mean() < scorer.accuracy else (low, middle)
    skill = (skill - mixed.mean(2) / scorer.sharp) * scorer.sharp
    place = positions(orders)  # [T, n]
    prior, own = rng.normal(0, scorer.bias, n), rng.normal(0, scorer.own, (size, n))
    logits = skill[:, None] + prior[place] + own[:, place] + mixed[:, np.arange(n), place]
    logits += rng.normal(0, scorer.noise, logits.shape)
    return log_softmax(scorer.scale * logits), gold, orders


def tracks(table: np.ndarray, orders: tuple[Any, ...], prior: np.ndarray, chosen: np.ndarray) -> Track:
    first = log_softmax(table[chosen, 0] - by_option(prior, orders[:1])[0])
    return Track(np.exp(table[chosen]), np.zeros((len(chosen), table.shape[2])), first, table[chosen].mean(1))


def outcome(table: np.ndarray, gold: np.ndarray, orders: tuple[Any, ...], seed: int) -> Outcome:
    """Calibrates on a random sample, walks the rest, compares with the votes of all orders."""
    size, total, n = table.shape
    shuffled = np.random.default_rng([seed, 1]).permutation(size)
    sizes = sample_sizes(size, PROMISED, CONFIDENCE)
    assert sizes is not None, "too few questions to certify"
    fit, test, rest = np.split(shuffled, [sizes.fit, sizes.fit + sizes.test])
    sample = shuffled[: sizes.fit + sizes.test]
    prior = estimate_prior(table[fit, :n])
    fitted = fit_gate([tracks(table, orders, prior, fit)])
    gate, _ = certify(fitted, [tracks(table, orders, prior, test)], PROMISED, CONFIDENCE)
    exact = walk(tracks(table, orders, prior, sample), EXACT)
    walked = walk(tracks(table, orders, prior, rest), gate)
    full = walk(tracks(table, orders, prior, np.arange(size)), EXACT).choice
    wrong = int((walked.choice != full[rest]).sum())
    plain, plain_cost = plain_rule(table, orders, full, shuffled)
    return Outcome(
        wrong / size, wrong / len(rest), (exact.orders.sum() + walked.orders.sum()) / (size * total), plain, plain_cost,
        float((full == gold).mean()), float((table[:, 0].argmax(1) == gold).mean()), gate.limit > 0,
    )  # fmt: skip


def plain_rule(
    table: np.ndarray, orders: tuple[Any, ...], full: np.ndarray, shuffled: np.ndarray
) -> tuple[float, float]:
    """Share of other decisions and of all orders where each stage stops above the margin that was tuned for it."""
    size, total, n = table.shape
    tuned, rest = shuffled[:TUNED], shuffled[TUNED:]
    first = np.exp(log_softmax(table[:, 0] - by_option(estimate_prior(table[tuned, :n]), orders[:1])[0]))
    ballots = np.exp(table)
    stages = [(1, first)] + [(count, ballots[:, :count].mean(1)) for count in range(n, total, n)]
    going, choice, asked = np.ones(size, dtype=bool), full.copy(), np.full(size, total)
    for count, mean in stages:
        top = np.partition(mean, n - 2, axis=1)
        margin, leader = top[:, -1] - top[:, -2], mean.argmax(1)
        seen = tuned[going[tuned]]
        seen = seen[np.argsort(-margin[seen])]
        share = np.cumsum(leader[seen] != full[seen]) / np.arange(1, len(seen) + 1)
        passing = np.flatnonzero(share <= PROMISED)
        if not len(passing):
            continue
        stops = going & (margin >= margin[seen[passing[-1]]])
        choice[stops], asked[stops] = leader[stops], count
        going &= ~stops
    spent = TUNED * total + asked[rest].sum()
    return float((choice[rest] != full[rest]).mean()), float(spent / (size * total))


def one(scorer: Scorer, seed: int) -> Outcome:
    return outcome(*simulate(scorer, seed), seed)


_recorded: list[Any] = []  # of a process: log-probabilities, gold, and the orders of the store


def load_recorded(store: str, spec: str) -> None:
    from votes import recorded

    questions, scores = recorded(store, spec, None)
    table = log_softmax(np.stack([s.logprobs for s in scores]).astype(np.float64))
    assert all(s.orders == scores[0].orders for s in scores)
    _recorded[:] = [table, np.array([q.gold for q in questions]), scores[0].orders]


def one_recorded(seed: int) -> Outcome:
    table, gold, had = _recorded
    orders = make_orders("latin:24", table.shape[2], seed)
    return outcome(table[:, [had.index(order) for order in orders]], gold, orders, seed)


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    found = Outcome(*(np.array(values) for values in zip(*outcomes, strict=True)))  # type: ignore[arg-type]
    cells = (
        name, f"{found.truth.mean():.1%}", f"{found.first.mean():.1%}",
        f"{found.cost.mean():.1%}", f"{found.cost.max():.1%}",
        f"{found.disagreement.mean():.2%}", f"{found.disagreement.max():.2%}",
        f"{(found.disagreement > PROMISED).sum()}", f"{(found.outside > PROMISED).sum()}",
        f"{found.plain.mean():.2%}", f"{(found.plain > PROMISED).sum()}", f"{found.plain_cost.mean():.1%}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "scorer", "all orders right", "first right", "cost", "worst", "other than full", "worst", "failed",
    "failed outside the sample", "plain: other", "plain: failed", "plain: cost",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of scorers, or beginnings of them")
    parser.add_argument("--store", help="recorded scores in all orders, instead of simulated ones")
    parser.add_argument("--input", help="their questions")
    options = parser.parse_args()
    print("|", " | ".join(HEAD), "|\n|", " | ".join(["---"] * len(HEAD)), "|", flush=True)
    started = time.monotonic()
    start: dict[str, Any] = {"initializer": load_recorded, "initargs": (options.store, options.input)}
    with ProcessPoolExecutor(options.processes, **(start if options.store else {})) as pool:
        if options.store:
            print(line(Path(options.store).name, list(pool.map(one_recorded, range(options.draws)))))
            return
        for scorer in SCORERS:
            if options.only is None or scorer.name.startswith(tuple(options.only)):
                seeds = range(options.draws)
                print(line(scorer.name, list(pool.map(one, [scorer] * options.draws, seeds))), flush=True)
    print(f"\n{options.draws} draws each, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
