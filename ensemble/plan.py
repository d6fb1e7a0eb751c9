"""Who answers what, under which key it is stored, and what the store already knows. No Ray, no torch, no model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensemble import models
from ensemble.calibrate import Priors
from ensemble.calibration import NOBODY, Calibration, Drawn, Population, draw, rank
from ensemble.combine import Floats
from ensemble.config import Letter, Member, ModelConfig, RunConfig, Template, fingerprint, is_adaptive, is_chat
from ensemble.errors import ConfigError
from ensemble.orders import check_orders
from ensemble.prior import load_prior, prior_key
from ensemble.read import iter_blocks
from ensemble.records import Question, Task
from ensemble.render import LETTERS, labels, uses_group
from ensemble.samples import SamplesFile
from ensemble.shots import shots_fingerprint
from ensemble.store import describe_member
from ensemble.votes import Voter

files_of = models.fingerprint


class PlannedMember(NamedTuple):
    """A member with its name for people and its key in the store."""

    name: str
    key: str
    member: Member
    scored: bool  # option scores, else generated text
    by_group: bool = False  # whether its prompts depend on the question's group
    samples: SamplesFile | None = None  # what it says, in place of a model


class Plan(NamedTuple):
    """devices: per model cpu or cuda. populations, drawn, priors: of tasks whose votes are calibrated, their
    questions, the sample, and priors out of files. calibrations: once the sample is known, see `calibrated`. here:
    the models that have engines now, where not all of them fit at once."""

    config: RunConfig
    tasks: Mapping[Task, tuple[PlannedMember, ...]]
    devices: Mapping[str, str]
    populations: Mapping[Task, Population] = {}
    drawn: Mapping[Task, Drawn] = {}
    priors: Mapping[Task, Priors] = {}
    calibrations: Mapping[Task, Calibration] = {}
    here: frozenset[str] | None = None

    def models(self, tasks: Sequence[str]) -> list[str]:
        """The models that these tasks need, each once, in the config's order."""
        asked = (m for t in self.tasks if t in tasks for m in self.tasks[t] if m.samples is None)
        return list(dict.fromkeys(m.member.model for m in asked))

    def description(self, planned: PlannedMember, files: Callable[[ModelConfig], str] = files_of) -> dict[str, object]:
        """See `member_description`."""
        member, config = planned.member, self.config
        model = config.models[member.model]
        template, device = config.templates[member.template], self.devices[member.model]
        return member_description(member, model, template, device, files(model))

    def voter(self, task: Task) -> Voter:
        plan = self.config.tasks[task]
        first = plan.members[0]
        shown = LETTERS if first.samples else labels(self.config.templates[first.template])
        names = [m.name for m in self.tasks[task]]
        drawn, calibration = self.drawn.get(task, NOBODY), self.calibrations.get(task)
        here = None if self.here is None else [i for i, m in enumerate(plan.members) if m.model in self.here]
        return Voter(plan, names, self.config.near_tie, shown, self.config.seed, drawn, calibration, here)

    def whole(self, task: Task) -> bool:
        """Whether all of the task's models have engines now."""
        return self.here is None or self.here.issuperset(self.models([task]))


def make_plan(
    config: RunConfig,
    tasks: Sequence[str],
    files: Callable[[ModelConfig], str] = files_of,
    blocks: Sequence[str] = (),
    certify: bool = True,
) -> Plan:
    """The plan for the tasks that the input has.

    files: what stands for a model's files in the store's keys. blocks: of the input, which is looked through where the
    votes depend on it. certify: whether adaptive voting may take the time to certify itself.
    Raises ConfigError, ModelError or PromptError.
    """
    wanted: dict[Task, tuple[PlannedMember, ...]] = {}
    devices: dict[str, str] = {}
    for task, plan in config.tasks.items():
        if task not in tasks:
            continue
        planned = []
        for member in plan.members:
            if member.samples is not None:
                planned.append(_of_samples(member))
                continue
            model = config.models[member.model]
            # Where this process runs may have no GPU though the cluster has: a head on Kubernetes.
            wished = "cuda" if model.engine.device == "auto" and config.ray.gpus else model.engine.device
            device = devices.setdefault(member.model, models.device(wished))
            description = member_description(member, model, config.templates[member.template], device, files(model))
            scored = member.scoring is not None and member.scoring.method != "generate"
            by_group = uses_group(config.templates[member.template])
            planned.append(PlannedMember(member_name(member), fingerprint(description), member, scored, by_group))
        wanted[task] = tuple(planned)
    planned_all = Plan(config, wanted, devices)
    _check_samples(planned_all, blocks)
    looked = _looked_through(planned_all, blocks)
    for task, population in looked.items():
        for member in config.tasks[task].members:
            if isinstance(member.scoring, Letter):
                adaptive = config.tasks[task].adaptive.reference if is_adaptive(member) else member.scoring.orders
                check_orders(adaptive, population.options)
    return planned_all._replace(
        populations=looked,
        drawn={task: draw(config.tasks[task], population, certify) for task, population in looked.items()},
        priors={task: stored_priors(planned_all, task, population, files) for task, population in looked.items()},
    )


def _looked_through(plan: Plan, blocks: Sequence[str]) -> dict[Task, Population]:
    """The questions of the tasks whose votes depend on how many options there are, or on a sample."""
    tasks = [task for task in plan.tasks if any(map(_depends_on_input, plan.config.tasks[task].members))]
    ranks: dict[Task, dict[int, list[int]]] = {task: {} for task in tasks}
    for question in (q for block in iter_blocks(blocks) for q in block) if tasks else ():
        if question.task in ranks:
            of_size = ranks[question.task].setdefault(len(question.choices), [])
            of_size.append(rank(question, plan.config.seed))
    return {
        task: Population({n: np.array(of_size, dtype=np.uint64) for n, of_size in found.items()})
        for task, found in ranks.items()
        if found
    }


def _of_samples(member: Member) -> PlannedMember:
    assert member.samples is not None
    found = SamplesFile(member.samples)
    return PlannedMember(member_name(member), found.fingerprint, member, True, samples=found)


def _check_samples(plan: Plan, blocks: Sequence[str]) -> None:
    """Raises ConfigError where a member's samples lack a question: nobody can be asked for it."""
    asked = {
        task: found for task, members in plan.tasks.items() if (found := [m for m in members if m.samples is not None])
    }
    lacking: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for block in iter_blocks(blocks) if asked else ():
        for task, members in asked.items():
            questions = [q for q in block if q.task == task]
            for member in members:
                assert member.samples is not None
                total[member.key] += len(questions)
                lacking[member.key] += member.samples.scores(questions).count(None)
    names = {member.key: member.name for members in asked.values() for member in members}
    for key, n in lacking.items():
        if n:
            raise ConfigError(
                f"{names[key]} has no row for {n} of {total[key]} questions: run the harness on the same questions, "
                "or take those that it has (--ids, --limit)"
            )


def _depends_on_input(member: Member) -> bool:
    scoring = member.scoring
    if not isinstance(scoring, Letter):
        return False
    return scoring.debias == "pride" or bool({"full", "adaptive"} & set(scoring.orders.split("+")))


def stored_priors(
    plan: Plan, task: Task, population: Population, files: Callable[[ModelConfig], str]
) -> dict[tuple[int, int], Floats]:
    """Those that members name as files. Raises ConfigError where one is of another model or template."""
    found: dict[tuple[int, int], Floats] = {}
    for i, planned in enumerate(plan.tasks[task]):
        scoring = planned.member.scoring
        if isinstance(scoring, Letter) and scoring.prior is not None:
            key = prior_key(plan.description(planned, files))
            priors = load_prior(scoring.prior, planned.name, key, population.options)
            found |= {(i, n): prior for n, prior in priors.items()}
    return found


def member_name(member: Member) -> str:
    """Such as `smollm2/cloze`: the model and how it is asked."""
    if member.samples is not None:
        return f"samples/{Path(member.samples).name}"
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
    kv_cache = model.engine.kv_cache_dtype
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
        **({} if kv_cache == "auto" else {"kv_cache": kv_cache}),  # keys of before stay as they are
    }


def store_hash(question: Question, member: PlannedMember) -> bytes:
    """The question's 16 bytes in the member's rows of the store: all of it that the member's prompts depend on."""
    if not member.by_group:
        return question.hash
    group = b"" if question.group is None else b"=" + question.group.encode()  # no group is not the empty one
    return blake2b(question.hash + group, digest_size=16).digest()


def sample_seed(member: Member, seed: int) -> int:
    """Greedy text does not depend on the run's seed: it is kept under seed 0."""
    return seed if member.sampling.temperature > 0 else 0


def describe_members(plan: Plan, root: Path) -> None:
    """Writes beside the store what its keys stand for."""
    for members in plan.tasks.values():
        for member in (m for m in members if m.samples is None):
            describe_member(root, member.key, {"name": member.name, **plan.description(member)})
