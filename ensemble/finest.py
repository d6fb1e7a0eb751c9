"""What a set of variants needs from the models, each member asked once and for all that some variant wants of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.calibration import rank
from ensemble.combine import Ints
from ensemble.config import Cloze, Letter, Member, TaskPlan, fingerprint, is_adaptive
from ensemble.evidence import Evidence, pick_orders
from ensemble.grid import AblationConfig, Expanded
from ensemble.orders import make_orders, union
from ensemble.records import Order, Question, Score, Task
from ensemble.tables import is_pmi

Key = tuple[str, ...]


def asked_as(member: Member, config: AblationConfig, expanded: Expanded) -> Key:
    """What members that one set of model calls serves have in common."""
    if member.samples is not None:
        return "samples", member.samples, member.scoring.method if member.scoring else ""
    template = fingerprint(expanded.templates[member.template].model_dump(mode="json", exclude={"description"}))
    method = member.scoring.method if isinstance(member.scoring, Letter | Cloze) else "generate"
    sampling = "" if method != "generate" else fingerprint(member.sampling.model_dump(exclude={"samples"}))
    return member.model, template, member.cut, str(member.cut_centre), method, sampling


def finest(config: AblationConfig, expanded: Expanded) -> dict[Task, dict[Key, Member]]:
    """Per task the members to ask, each for all that some variant wants of it."""
    found: dict[Task, dict[Key, list[tuple[Member, TaskPlan]]]] = {}
    for variant in expanded.variants:
        for member in variant.plan.members:
            members = found.setdefault(variant.task, {}).setdefault(asked_as(member, config, expanded), [])
            members.append((member, variant.plan))
    return {task: {key: _finest_of(members) for key, members in keys.items()} for task, keys in found.items()}


def _finest_of(members: Sequence[tuple[Member, TaskPlan]]) -> Member:
    first = members[0][0].model_copy(update={"weight": 1.0})
    if isinstance(first.scoring, Letter):
        wanted: list[str] = []
        for member, plan in members:
            assert isinstance(member.scoring, Letter)
            wanted.append(plan.adaptive.reference if is_adaptive(member) else member.scoring.orders)
            if member.scoring.debias == "pride":
                wanted.append("cyclic")
        return first.model_copy(update={"scoring": Letter(method="letter", orders=union(wanted))})
    if isinstance(first.scoring, Cloze):
        pmi = any(is_pmi(member) for member, _ in members)
        return first.model_copy(update={"scoring": Cloze(method="cloze", normalisation="pmi" if pmi else "char")})
    most = max((member.sampling for member, _ in members), key=lambda sampling: sampling.samples)
    return first.model_copy(update={"sampling": most})


class Scores(NamedTuple):
    """What one member said: logprobs [Q, orders, n], tokens [Q, n], bare [Q, n] the options without the question, None
    unless asked; prompt [Q] tokens."""

    orders: tuple[Order, ...]
    logprobs: npt.NDArray[np.float32]
    tokens: Ints
    bare: npt.NDArray[np.float32] | None
    prompt: Ints


class Part(NamedTuple):
    """Questions with n options. rows: their places among the task's questions, by rising rank. ranks: see
    `ensemble.calibration.rank`. characters: [Q, n] of the options."""

    n: int
    rows: Ints
    ranks: npt.NDArray[np.uint64]
    characters: Ints
    scores: dict[Key, Scores]

    @property
    def once(self) -> "npt.NDArray[np.bool_]":
        """[Q] the first question of each content."""
        return np.concatenate([[True], self.ranks[1:] != self.ranks[:-1]])


def load(known: Sequence[tuple[Question, Sequence[Evidence]]], members: Mapping[Key, Member], seed: int) -> list[Part]:
    """known: of one task's questions what each of the members (in their order) said, all that `finest` wants."""
    by_options: dict[int, list[int]] = {}
    for row, (question, _) in enumerate(known):
        by_options.setdefault(len(question.choices), []).append(row)
    parts = []
    for n, rows in sorted(by_options.items()):
        ranks = [rank(known[row][0], seed) for row in rows]
        rows = [row for _, row in sorted(zip(ranks, rows, strict=True))]
        scores = {
            key: _scores([known[row][1][i] for row in rows], _orders(member, n, seed))
            for i, (key, member) in enumerate(members.items())
            if isinstance(member.scoring, Letter | Cloze)
        }
        characters = np.array([[len(choice) for choice in known[row][0].choices] for row in rows])
        parts.append(Part(n, np.array(rows), np.array(sorted(ranks), dtype=np.uint64), characters, scores))
    return parts


def _orders(member: Member, n: int, seed: int) -> tuple[Order, ...]:
    if isinstance(member.scoring, Letter):
        return make_orders(member.scoring.orders, n, seed)
    return make_orders("identity", n, seed)


def _scores(said: Sequence[Evidence], orders: tuple[Order, ...]) -> Scores:
    found = [pick_orders(score, orders) for score in said if isinstance(score, Score)]
    assert len(found) == len(said)
    bare = [score.unconditional for score in found if score.unconditional is not None]
    return Scores(
        orders,
        np.array([score.logprobs for score in found]),
        np.array([score.tokens for score in found]),
        np.array(bare) if len(bare) == len(found) else None,
        np.array([score.prompt.tokens for score in found]),
    )
