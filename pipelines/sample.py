"""The first phase of a run whose votes are calibrated: which questions of the sample still have to be asked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ensemble.known import known
from ensemble.plan import Plan
from ensemble.read import iter_blocks
from ensemble.records import Question
from pipelines.work import Part


class SampleWork(NamedTuple):
    """Parts of blocks, and how many questions of each task they are."""

    parts: list[Part]
    tasks: Counter[str]


def sample_work(plan: Plan, store: Path, blocks: Sequence[str]) -> SampleWork:
    """What the sample lacks, of tasks that are not calibrated yet."""
    rows: dict[int, list[int]] = {}
    tasks: Counter[str] = Counter()
    places = (number for number, block in enumerate(iter_blocks(blocks)) for _ in block)
    for number, (question, voter, evidence) in zip(places, known(plan, store, blocks), strict=True):
        if not voter.calibrated and voter.in_sample(question) and voter.missing(question, evidence):
            rows.setdefault(number, []).append(question.row_index)
            tasks[question.task] += 1
    return SampleWork([Part(blocks[number], found) for number, found in rows.items()], tasks)


def first_questions(plan: Plan, blocks: Sequence[str], tasks: Sequence[str]) -> list[Question]:
    """One question of each task, of its sample where votes are not calibrated yet."""
    firsts: dict[str, Question] = {}
    voters = {task: plan.voter(task) for task in plan.tasks if task in tasks}
    for question in (q for block in iter_blocks(blocks) for q in block):
        voter = voters.get(question.task)
        if voter is not None and question.task not in firsts and (voter.calibrated or voter.in_sample(question)):
            firsts[question.task] = question
            if len(firsts) == len(voters):
                break
    return list(firsts.values())
