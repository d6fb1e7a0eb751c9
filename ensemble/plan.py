"""Who answers what, under which key it is stored, and what the store already knows. No Ray, no torch, no model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from ensemble import models
from ensemble.config import Member, ModelConfig, RunConfig, Template, fingerprint, is_chat
from ensemble.records import Decision, Question, Task
from ensemble.render import labels, uses_group
from ensemble.shots import shots_fingerprint
from ensemble.store import StoreReader, describe_member
from ensemble.votes import Evidence, Voter


class PlannedMember(NamedTuple):
    """A member with its name for people and its key in the store."""

    name: str
    key: str
    member: Member
    scored: bool  # option scores, else generated text
    by_group: bool = False  # whether its prompts depend on the question's group


class Plan(NamedTuple):
    config: RunConfig
    tasks: Mapping[Task, tuple[PlannedMember, ...]]
    devices: Mapping[str, str]  # per model: cpu or cuda

    def models(self, tasks: Sequence[str]) -> list[str]:
        """The models that these tasks need, each once, in the config's order."""
        return list(dict.fromkeys(m.member.model for t in self.tasks if t in tasks for m in self.tasks[t]))

    def voter(self, task: Task) -> Voter:
        plan = self.config.tasks[task]
        shown = labels(self.config.templates[plan.members[0].template])
        return Voter(plan, [m.name for m in self.tasks[task]], self.config.near_tie, shown)


def make_plan(
    config: RunConfig, tasks: Sequence[str], files: Callable[[ModelConfig], str] = models.fingerprint
) -> Plan:
    """The plan for the tasks that the input has; files: what stands for a model's files in the store's keys.

    Raises ConfigError, ModelError or PromptError.
    """
    wanted: dict[Task, tuple[PlannedMember, ...]] = {}
    devices: dict[str, str] = {}
    for task, plan in config.tasks.items():
        if task not in tasks:
            continue
        planned = []
        for member in plan.members:
            model = config.models[member.model]
            device = devices.setdefault(member.model, models.device(model.engine.device))
            description = member_description(member, model, config.templates[member.template], device, files(model))
            scored = member.scoring is not None and member.scoring.method != "generate"
            by_group = uses_group(config.templates[member.template])
            planned.append(PlannedMember(member_name(member), fingerprint(description), member, scored, by_group))
        wanted[task] = tuple(planned)
    return Plan(config, wanted, devices)


def member_name(member: Member) -> str:
    """Such as `smollm2/cloze`: the model and how it is asked."""
    return f"{Path(member.model).stem}/{Path(member.template).stem}"


def member_description(
    member: Member, model: ModelConfig, template: Template, device: str, files: str
) -> dict[str, object]:
    """All that changes what a member says about a question, and nothing else: its digest is the store's key.

    The normalisation of cloze scores, weights and seeds are left out: they are applied to what is stored,
    or stand beside it.
    """
    scoring = member.scoring
    scored = scoring is not None and scoring.method != "generate"
    return {
        "model": files,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "context_length": model.context_length,
        "chat": is_chat(model, template),
        "hardware": f"{device}:{model.engine.hardware}" if model.engine.hardware else models.hardware(device),
        "engine": "vllm, logits in float32" if model.engine.fake is None else "fake",
        "template": template.model_dump(mode="json", exclude={"description", "format", "shots"}),
        "shots": shots_fingerprint(template),
        "cut": member.cut if member.cut != "middle" else f"middle {member.cut_centre}",
        "asks": scoring.method if scored and scoring else member.sampling.model_dump(mode="json", exclude={"samples"}),
    }


class Evidences:
    """What the store knows about questions: per question one Score, Sample or None for each member of its task."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan = plan
        self._readers = {
            member.key: StoreReader(root, "scores" if member.scored else "samples", member.key)
            for members in plan.tasks.values()
            for member in members
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
                reader = self._readers[member.key]
                hashes = [store_hash(q, member) for q in asked]
                seed = sample_seed(member.member, self._plan.config.seed)
                found: Sequence[Evidence] = reader.scores(hashes) if member.scored else reader.samples(hashes, seed)
                for question, evidence in zip(asked, found, strict=True):
                    known[question.row_index].append(evidence)
        return ((q, known[q.row_index]) for q in questions)


def store_hash(question: Question, member: PlannedMember) -> bytes:
    """The question's 16 bytes in the member's rows of the store: all of it that the member's prompts depend on."""
    if not member.by_group:
        return question.hash
    group = b"" if question.group is None else b"=" + question.group.encode()  # no group is not the empty one
    return blake2b(question.hash + group, digest_size=16).digest()


def sample_seed(member: Member, seed: int) -> int:
    """Greedy text does not depend on the run's seed: it is kept under seed 0."""
    return seed if member.sampling.temperature > 0 else 0


def known(plan: Plan, root: Path, blocks: Iterable[list[Question]]) -> Iterator[tuple[Question, Voter, list[Evidence]]]:
    """Each question with its task's voter and what the store knows of it."""
    evidences = Evidences(plan, root)
    voters = {task: plan.voter(task) for task in plan.tasks}
    for block in blocks:
        for question, evidence in evidences(block):
            yield question, voters[question.task], evidence


def replay(
    plan: Plan, root: Path, blocks: Iterable[list[Question]], partial: bool = False
) -> Iterator[tuple[Question, Decision | None]]:
    """Each question with its decision, or None where the store lacks something. Needs no model.

    partial: also decide, and say so, where the store has only a part of what the plan wants.
    """
    for question, voter, evidence in known(plan, root, blocks):
        whole = not voter.missing(question, evidence)
        decision = voter.best(question, evidence) if whole or partial else None
        yield question, decision if decision is None or whole else replace(decision, partial=True)


def describe_members(plan: Plan, root: Path) -> None:
    """Writes beside the store what its keys stand for."""
    config = plan.config
    for members in plan.tasks.values():
        for m in members:
            model, template = config.models[m.member.model], config.templates[m.member.template]
            description = member_description(
                m.member, model, template, plan.devices[m.member.model], models.fingerprint(model)
            )
            describe_member(root, m.key, {"name": m.name, **description})
