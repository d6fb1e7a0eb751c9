"""The first phase of a run whose votes are calibrated: which questions of the sample still have to be asked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ensemble.known import Evidences
from ensemble.plan import Plan
from ensemble.read import iter_blocks
from pipelines.work import Part


class SampleWork(NamedTuple):
    """Parts of blocks, and how many questions of each task they are."""

    parts: list[Part]
    tasks: Counter[str]


def sample_work(plan: Plan, store: Path, blocks: Sequence[str]) -> SampleWork:
    """What the sample lacks, of tasks that are not calibrated yet."""
    parts: list[Part] = []
    tasks: Counter[str] = Counter()
    voters = {task: voter for task in plan.tasks if not (voter := plan.voter(task)).calibrated}
    evidences = Evidences(plan, store)
    for path, block in zip(blocks, iter_blocks(blocks), strict=True):
        drawn = [q for q in block if q.task in voters and voters[q.task].in_sample(q)]
        lacking = [q for q, evidence in evidences(drawn) if voters[q.task].missing(q, evidence)]
        if lacking:
            parts.append(Part(path, [question.row_index for question in lacking]))
            tasks.update(question.task for question in lacking)
    return SampleWork(parts, tasks)


def first_questions(plan: Plan, blocks: Sequence[str], tasks: Sequence[str]) -> list[Part]:
    """One question of each task, of its sample where votes are not calibrated yet."""
    firsts: dict[str, Part] = {}
    voters = {task: plan.voter(task) for task in plan.tasks if task in tasks}
    for path, block in zip(blocks, iter_blocks(blocks), strict=True):
        for question in block:
            voter = voters.get(question.task)
            if voter is not None and question.task not in firsts and (voter.calibrated or voter.in_sample(question)):
                firsts[question.task] = Part(path, [question.row_index])
        if len(firsts) == len(voters):
            break
    return list(firsts.values())
