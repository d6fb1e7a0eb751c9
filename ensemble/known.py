"""What the store knows about questions, and the decisions that follow from it. Needs no model."""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.calibrate import calibrate
from ensemble.calibration import needs_sample
from ensemble.config import fingerprint
from ensemble.evidence import Evidence
from ensemble.plan import Plan, sample_seed, store_hash
from ensemble.prior import StoredPrior, prior_key, save_prior
from ensemble.read import iter_blocks
from ensemble.records import Decision, Question, Task
from ensemble.store import StoreReader
from ensemble.votes import Known, Voter


class Evidences:
    """What the store knows about questions: per question one Score, Sample or None for each member of its task."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan = plan
        self._readers = {
            member.key: StoreReader(root, "scores" if member.scored else "samples", member.key)
            for members in plan.tasks.values()
            for member in members
            if member.samples is None
        }

    def __len__(self) -> int:
        """Rows of all members."""
        return sum(len(reader) for reader in self._readers.values())

    def __call__(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Evidence]]]:
        """In the order of the questions."""
        known: dict[int, list[Evidence]] = {q.row_index: [] for q in questions}
        for task, members in self._plan.tasks.items():
            asked = [q for q in questions if q.task == task]
            for member in members:
                if member.samples is not None:
                    for question, score in zip(asked, member.samples.scores(asked), strict=True):
                        known[question.row_index].append(score)
                    continue
                reader = self._readers[member.key]
                hashes = [store_hash(q, member) for q in asked]
                seed = sample_seed(member.member, self._plan.config.seed)
                found: Sequence[Evidence] = reader.scores(hashes) if member.scored else reader.samples(hashes, seed)
                for question, evidence in zip(asked, found, strict=True):
                    known[question.row_index].append(evidence)
        return ((q, known[q.row_index]) for q in questions)


def known(plan: Plan, root: Path, blocks: Sequence[str]) -> Iterator[tuple[Question, Voter, list[Evidence]]]:
    """Each question that the plan answers, with its task's voter and what the store knows of it."""
    evidences = Evidences(plan, root)
    voters = {task: plan.voter(task) for task in plan.tasks}
    for block in iter_blocks(blocks):
        found = list(evidences([question for question in block if question.task in voters]))
        for task, voter in voters.items():
            voter.walk_ahead([(question, evidence) for question, evidence in found if question.task == task])
        for question, evidence in found:
            yield question, voters[question.task], evidence


def replay(
    plan: Plan, root: Path, blocks: Sequence[str], partial: bool = False
) -> Iterator[tuple[Question, Decision | None]]:
    """Each question with its decision, or None where the store lacks something. Needs no model.

    partial: also decide, and say so, where the store has only a part of what the plan wants.
    """
    for question, voter, evidence in known(plan, root, blocks):
        whole = voter.calibrated and not voter.missing(question, evidence)
        decision = voter.best(question, evidence) if whole or partial else None
        yield question, decision if decision is None or whole else replace(decision, partial=True)


def calibrated_tasks(plan: Plan) -> list[Task]:
    """The tasks whose votes depend on a sample."""
    return [task for task in plan.drawn if needs_sample(plan.config.tasks[task])]


def calibrated(
    plan: Plan, root: Path, blocks: Sequence[str], partly: bool = False, failed: Container[int] = ()
) -> Plan:
    """The plan with the calibrations that the store has the sample for.

    partly: what the sample lacks is left out of it, because it could not be had. failed: rows that nobody can answer;
    where others are lacking the sample is no random one (the easy questions are done first) and certifies nothing.
    """
    tasks = calibrated_tasks(plan)
    if not tasks:
        return plan
    plan = plan._replace(calibrations={})
    voters = {task: plan.voter(task) for task in tasks}
    known: dict[Task, list[Known]] = {task: [] for task in tasks}
    lacking: Counter[Task] = Counter()
    unanswered: Counter[Task] = Counter()
    evidences = Evidences(plan, root)
    for block in iter_blocks(blocks):
        drawn = [q for q in block if q.task in voters and voters[q.task].in_sample(q)]
        for question, evidence in evidences(drawn):
            if voters[question.task].missing(question, evidence):
                lacking[question.task] += 1
                unanswered[question.task] += question.row_index not in failed
            else:
                known[question.task].append((question, evidence))
    seed = plan.config.seed
    done = {
        task: calibrate(
            plan.config.tasks[task], voters[task], plan.drawn[task], plan.populations[task], known[task],
            plan.priors[task], seed,
        )
        for task in tasks
        if partly or not lacking[task]
    }  # fmt: skip
    for task, calibration in done.items():
        if unanswered[task] and calibration.certificate is not None:
            reason = f"{unanswered[task]} questions of the sample were not answered"
            told = calibration.certificate._replace(guarantee=False, reason=reason)
            done[task] = calibration._replace(certificate=told)
    return plan._replace(calibrations=done)


def keep_priors(plan: Plan, root: Path) -> None:
    """Writes the priors that were estimated to STORE/priors, a file for each member, where `prior: FILE` finds them."""
    for task, calibration in plan.calibrations.items():
        for i, planned in enumerate(plan.tasks[task]):
            own = {n: prior.tolist() for (member, n), prior in calibration.priors.items() if member == i}
            if own and (task, i) not in {(task, m) for m, _ in plan.priors.get(task, {})}:
                key = prior_key(plan.description(planned))
                # A name for each content: what a config names as its prior never changes.
                name = f"{planned.key[:16]}-{fingerprint(own)[:8]}.json"
                save_prior(root / "priors" / name, StoredPrior(planned.name, key, own))
