"""Which questions a task's votes are calibrated on, and what comes out: priors of the labels, and when to stop.

The sample is drawn by a hash of each question's content and the run's seed, so that it is random, the same on every
run, and independent of files, order and engines. Everything is computed from the store: a replay calibrates itself.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.adaptive import Certificate, Gate, Sizes, sample_sizes
from ensemble.combine import Floats
from ensemble.config import Letter, Member, TaskPlan, is_adaptive
from ensemble.orders import count_orders
from ensemble.records import Question

LEAST = 16  # questions of a prior, where there are as many


Ranks = npt.NDArray[np.uint64]


class Drawn(NamedTuple):
    """The sample, by the rank of its questions (`rank`), which is uniform over 64 bits.

    prior: (member, number of options) -> ranks up to this are asked in cyclic orders for PriDe. fit, test: of adaptive
    voting: ranks up to `fit` fit the gate, those above and up to `test` certify it; -1: nobody.
    """

    prior: Mapping[tuple[int, int], int]
    fit: int = -1
    test: int = -1


NOBODY = Drawn({})


class Calibration(NamedTuple):
    """priors: (member, number of options) -> [options] probability of each label. certificate: what the gate
    promises, None where no member votes adaptively."""

    priors: Mapping[tuple[int, int], Floats]
    gate: Gate
    certificate: Certificate | None = None


class Population(NamedTuple):
    """The ranks of a task's questions by their number of options, each [Q] unsigned."""

    ranks: Mapping[int, Ranks | Sequence[int]]

    @property
    def options(self) -> dict[int, int]:
        return {n: len(ranks) for n, ranks in self.ranks.items()}

    def total(self) -> int:
        return sum(map(len, self.ranks.values()))

    def distinct(self) -> Ranks:
        """One rank of questions with the same content: they are drawn together, hence one question to a test."""
        return np.unique(np.concatenate([np.asarray(ranks, dtype=np.uint64) for ranks in self.ranks.values()]))


def rank(question: Question, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(question.hash + seed.to_bytes(8, "big"), digest_size=8).digest(), "big")


def estimates_prior(member: Member) -> bool:
    """Whether the member's prior has to be estimated from the questions at hand."""
    scoring = member.scoring
    return isinstance(scoring, Letter) and scoring.debias == "pride" and scoring.prior is None


def needs_sample(plan: TaskPlan) -> bool:
    return any(is_adaptive(member) or estimates_prior(member) for member in plan.members)


def draw(plan: TaskPlan, population: Population, certify: bool = True) -> Drawn:
    """The sample for a task's plan; empty where nothing needs one, or where it would be too small for a guarantee."""
    prior = {}
    for i, member in enumerate(plan.members):
        if isinstance(member.scoring, Letter) and estimates_prior(member):
            for n, ranks in population.ranks.items():
                size = min(len(ranks), max(LEAST, int(np.ceil(member.scoring.prior_share * len(ranks)))))
                prior[i, n] = _smallest(ranks, size)
    sizes = certifiable(plan, population) if certify else None
    if sizes is None:
        return Drawn(prior)
    ranks = population.distinct()
    return Drawn(prior, _smallest(ranks, sizes.fit), _smallest(ranks, sizes.fit + sizes.test))


def certifiable(plan: TaskPlan, population: Population) -> Sizes | None:
    """Sizes of the sample for adaptive voting; None where nobody votes so, or it would promise nothing."""
    if not any(map(is_adaptive, plan.members)):
        return None
    sizes = sample_sizes(len(population.distinct()), plan.adaptive.max_disagreement, plan.adaptive.confidence)
    if sizes is None or plan.adaptive.budget is None:
        return sizes
    # At most half of the budget may go into calibration, and one order for each question must be left.
    each = max(count_orders(plan.adaptive.reference, n) for n in population.ranks)
    cost, whole = sum(sizes) * each, population.total() * plan.adaptive.budget
    return sizes if cost <= min(whole / 2, whole - population.total() + sum(sizes)) else None


def _smallest(ranks: Ranks | Sequence[int], size: int) -> int:
    """The size-th smallest rank."""
    values = np.asarray(ranks, dtype=np.uint64)
    return int(np.partition(values, size - 1)[size - 1])
