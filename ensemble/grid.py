"""An ablation's config: grids of variants per task, and what each variant is as the plan of a task."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from ensemble.config import (
    Adaptive,
    Cloze,
    Generate,
    Letter,
    Member,
    ModelConfig,
    RayConfig,
    Record,
    Sampling,
    Shots,
    Store,
    TaskPlan,
    Template,
    check_plan,
    fingerprint,
)
from ensemble.errors import ConfigError
from ensemble.names import unknown
from ensemble.orders import parse_orders
from ensemble.records import Task

Axis = Field(min_length=1)


class Grid(Record):
    """Every combination of the axes is a variant; those that do not apply to a scoring are left aside."""

    task: Task = Field("multiple_choice", description="The task that the variants answer.")
    model: tuple[str, ...] = Field((), description="Axis: models, as in a run config.")
    template: tuple[str, ...] = Field((), description="Axis: templates.")
    samples: tuple[str, ...] = Field((), description="Axis, instead of models: files of lm-evaluation-harness.")
    members: tuple[Member, ...] = Field((), description="Instead of model, template and scoring: one ensemble.")
    scoring: tuple[Literal["letter", "cloze", "generate"], ...] = Field(
        ("letter",), min_length=1, description="Axis, multiple choice."
    )
    normalisation: tuple[Literal["sum", "token", "char", "pmi"], ...] = Field(
        ("char",), min_length=1, description="Axis, cloze."
    )
    orders: tuple[str, ...] = Field(("identity",), min_length=1, description="Axis, letter.")
    debias: tuple[Literal["none", "pride"], ...] = Field(("none",), min_length=1, description="Axis, letter.")
    combine: tuple[Literal["mean_logprob", "mean_prob", "majority"], ...] = Field(
        ("mean_logprob",), min_length=1, description="Axis: how orders and members are combined."
    )
    weights: tuple[tuple[float, ...], ...] = Field((), description="Axis, with members: a weight for each of them.")
    shots: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="Axis: worked examples; left out: as the template says."
    )
    shots_file: str | None = Field(None, description="Where they come from; left out: the template's own file.")
    temperature: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="Axis: of sampling where text is generated, else what log-probabilities are divided by."
    )
    n_samples: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="Axis: texts per question."
    )
    sampling: Sampling = Field(Sampling(), description="The rest of how text is generated.")
    max_disagreement: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.01,), min_length=1, description="Axis, orders: adaptive."
    )
    cut: Literal["tail", "head", "middle", "forbid"] = Field("tail", description="As in a run config.")

    @model_validator(mode="after")
    def one_kind(self) -> "Grid":
        named = [bool(self.model or self.template), bool(self.samples), bool(self.members)]
        if sum(named) != 1 or bool(self.model) != bool(self.template):
            raise ValueError("an empty grid: give model and template, or samples, or members")
        for text in self.orders:
            for part in text.split("+"):
                parse_orders(part)
        if self.weights and not self.members:
            raise ValueError("weights are of members: name these instead of model and template")
        for weights in self.weights:
            if len(weights) != len(self.members) or min(weights) <= 0:
                raise ValueError(f"weights {list(weights)}: give one above 0 for each of {len(self.members)} members")
        own = ("scoring", "normalisation", "shots", "shots_file", "cut", "sampling")
        if self.members and (ignored := [name for name in own if name in self.model_fields_set]):
            raise ValueError(f"{', '.join(ignored)}: members say this themselves; set it there")
        if self.samples and (self.orders, self.debias) != (("identity",), ("none",)):
            raise ValueError("samples have one order: leave orders and debias out")
        if self.task != "multiple_choice" and self.samples:
            raise ValueError("samples hold option scores: their task is multiple_choice")
        return self


class AblationConfig(Record):
    """An ablation: input, grids and where results go."""

    input: str | None = Field(None, description="Question file, glob or folder; a path, s3:// or gs://.")
    output: str = Field("runs/ablation", description="Folder of the leaderboard; a path, s3:// or gs://.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of orders, sampling, halves and resamples.")
    near_tie: Annotated[float, Field(ge=0)] = Field(0.1, description="As in a run config.")
    grids: tuple[Grid, ...] = Field(min_length=1, description="Variants; of equal ones the first counts.")
    reference: dict[Task, str] = Field(
        {}, description="Per task the name of the variant that others are compared with; left out: the first one."
    )
    metric: dict[Task, str] = Field({}, description="Per task what is compared; left out: its first usual metric.")
    rouge_words: Literal["english", "characters", "sudachi"] = Field("english", description="As in a run config.")
    budget: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Most prompts that may be asked; a grid that needs more is refused before a model loads."
    )
    models: dict[str, ModelConfig] = Field({}, description="Resolved from configs/models; overrides go here.")
    templates: dict[str, Template] = Field({}, description="Resolved from configs/templates; overrides go here.")
    store: Store = Field(Store(), description="Where scores are kept.")
    ray: RayConfig = Field(RayConfig(), description="The cluster.")


class Variant(NamedTuple):
    """axes: what tells it from others, by name. plan: the task's plan, with templates of their own for shots."""

    id: str
    task: Task
    name: str
    axes: dict[str, Any]
    plan: TaskPlan


class Expanded(NamedTuple):
    """templates: those of the config and those with other numbers of worked examples, by the names that members use."""

    variants: list[Variant]
    templates: dict[str, Template]


def expand(config: AblationConfig) -> Expanded:
    """All variants, each plan once. Raises ConfigError where a grid yields none, or a reference is none of them."""
    templates = dict(config.templates)
    found: dict[tuple[Task, str], tuple[dict[str, Any], TaskPlan]] = {}
    for number, grid in enumerate(config.grids):
        try:
            plans = list(_plans(grid, templates))
            for _, plan in plans:
                check_plan(grid.task, plan)
        except ValidationError as e:
            raise ConfigError(f"grids.{number}: {e.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        except ValueError as e:
            raise ConfigError(f"grids.{number}: {e}") from None
        if not plans:
            raise ConfigError(
                f"grids.{number} is empty: orders: adaptive needs combine: mean_prob or majority, several texts need a "
                "temperature above 0"
            )
        measured: dict[str, Any] = {"rouge_words": config.rouge_words}
        if grid.task in config.metric:  # by which texts are elected, too
            measured["metrics"] = (config.metric[grid.task],)
        for axes, asked in plans:
            plan = asked.model_copy(update=measured)
            found.setdefault((grid.task, fingerprint(plan)), (axes, plan))
    counts: dict[Task, int] = {}
    variants = []
    for (task, _), (axes, plan) in found.items():
        counts[task] = counts.get(task, 0) + 1
        variants.append(Variant(f"{_SHORT[task]}-{counts[task]:03d}", task, _name(axes), axes, plan))
    variants = _distinct_names(variants)
    for task, name in config.reference.items():
        names = [v.name for v in variants if v.task == task]
        if name not in names and name not in {v.id for v in variants if v.task == task}:
            raise ConfigError(f"reference.{task}: {unknown('variant', name, names)}")
    return Expanded(variants, templates)


_SHORT: dict[Task, str] = {"multiple_choice": "mc", "summarization": "sum", "generation": "gen", "math": "math"}


def _plans(grid: Grid, templates: dict[str, Template]) -> Iterator[tuple[dict[str, Any], TaskPlan]]:
    members = [(_of_members(grid), grid.members)] if grid.members else list(_singles(grid, templates))
    weights: Sequence[tuple[float, ...] | None] = grid.weights or (None,)
    temperatures: Sequence[float | None] = grid.temperature or (None,)
    for (axes, base), orders, debias, temperature, samples, chosen, combine, most in product(
        members, grid.orders, grid.debias, temperatures, grid.n_samples, weights, grid.combine, grid.max_disagreement
    ):
        changed = [
            _changed(member, None if grid.members and orders == "identity" else orders, debias, temperature, samples)
            for member in base
        ]
        if None in changed:
            continue
        asked = [member for member in changed if member is not None]
        if chosen is not None:
            asked = [m.model_copy(update={"weight": w}) for m, w in zip(asked, chosen, strict=True)]
        letters = [m.scoring for m in asked if isinstance(m.scoring, Letter)]
        adaptive = any(scoring.orders == "adaptive" for scoring in letters)
        if adaptive and combine == "mean_logprob":
            continue
        scored = any(isinstance(m.scoring, Letter | Cloze) for m in asked)
        several = scored and (len(asked) > 1 or any((s.orders, s.debias) != ("identity", "none") for s in letters))
        plan = TaskPlan(
            members=tuple(asked),
            combine=combine if several else "mean_logprob",
            adaptive=Adaptive(max_disagreement=most) if adaptive else Adaptive(),
        )
        yield axes | _axes(plan, scored, several, chosen), plan


def _singles(grid: Grid, templates: dict[str, Template]) -> Iterator[tuple[dict[str, Any], tuple[Member]]]:
    scorings: list[Letter | Cloze | Generate | None] = [None]
    if grid.task == "multiple_choice":
        scorings = []
        for method in grid.scoring:
            if method == "cloze":
                scorings += [Cloze(method="cloze", normalisation=name) for name in grid.normalisation]
            else:
                scorings.append(Letter(method="letter") if method == "letter" else Generate(method="generate"))
    if grid.samples:
        for file, scoring in product(grid.samples, scorings):
            yield {"model": Path(file).name}, (Member(samples=file, scoring=scoring),)
        return
    numbers: Sequence[int | None] = grid.shots or (None,)
    for model, template, shots, scoring in product(grid.model, grid.template, numbers, scorings):
        name = template if shots is None else _with_shots(grid, template, shots, templates)
        member = Member(model=model, template=name, scoring=scoring, sampling=grid.sampling, cut=grid.cut)
        yield {"model": model, "template": template} | ({} if shots is None else {"shots": shots}), (member,)


def _with_shots(grid: Grid, name: str, n: int, templates: dict[str, Template]) -> str:
    """The name of the template with n worked examples, which is added to the templates."""
    base = templates[name]
    derived = f"{name}@{n}"
    file = grid.shots_file or (base.shots and base.shots.file)
    if n and not file:
        raise ConfigError(f"shots: {n} for template {name}, which names no file of examples: give shots_file")
    shots = Shots(file=file, n=n, by_group=bool(base.shots and base.shots.by_group)) if n and file else None
    templates[derived] = base.model_copy(update={"shots": shots})
    return derived


def _changed(
    member: Member, orders: str | None, debias: Literal["none", "pride"], temperature: float | None, samples: int
) -> Member | None:
    """The member at a point of the axes; None where it makes no sense there."""
    scoring = member.scoring
    if isinstance(scoring, Letter):
        update: dict[str, Any] = {} if orders is None else {"orders": orders}
        if debias == "pride" and update.get("orders", scoring.orders) != "adaptive":
            update["debias"] = debias
        if temperature:
            update["temperature"] = temperature
        if member.samples is not None and update.keys() - {"temperature"} and (orders, debias) != ("identity", "none"):
            return None
        return member.model_copy(update={"scoring": Letter(**(scoring.model_dump() | update))})
    if isinstance(scoring, Cloze):
        changed = scoring if not temperature else scoring.model_copy(update={"temperature": temperature})
        return member.model_copy(update={"scoring": changed})
    chosen = member.sampling.temperature if temperature is None else temperature
    if samples > 1 and chosen == 0:
        return None
    update = {"temperature": chosen, "samples": samples if samples > 1 else member.sampling.samples}
    return member.model_copy(update={"sampling": Sampling(**(member.sampling.model_dump() | update))})


def _of_members(grid: Grid) -> dict[str, Any]:
    return {
        "model": " + ".join(dict.fromkeys(m.model or Path(str(m.samples)).name for m in grid.members)),
        "template": " + ".join(dict.fromkeys(m.template for m in grid.members if m.template)),
    }


def _axes(plan: TaskPlan, scored: bool, several: bool, weights: tuple[float, ...] | None) -> dict[str, Any]:
    """What a table shows of a variant, apart from model, template and shots."""
    methods, orders, debias, temperatures, samples = [], [], [], [], []
    for member in plan.members:
        scoring = member.scoring
        if isinstance(scoring, Letter):
            methods.append("letter")
            orders.append(scoring.orders)
            debias.append(scoring.debias)
            temperatures.append(scoring.temperature)
        elif isinstance(scoring, Cloze):
            methods.append(f"cloze {scoring.normalisation}")
            temperatures.append(scoring.temperature)
        else:
            methods.append("generate")
            temperatures.append(member.sampling.temperature)
            samples.append(member.sampling.samples)
    adaptive = "adaptive" in orders
    found = {
        "scoring": _joined(methods),
        "orders": _joined(orders),
        "debias": _joined(debias),
        "combine": plan.combine if several else None,
        "temperature": temperatures[0] if len(set(temperatures)) == 1 else _joined(temperatures),
        "samples": _joined(samples),
        "weights": None if weights is None else ":".join(f"{w:g}" for w in weights),
        "max_disagreement": plan.adaptive.max_disagreement if adaptive else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _joined(values: Sequence[Any]) -> str | None:
    return " + ".join(dict.fromkeys(map(str, values))) or None


def _name(axes: Mapping[str, Any]) -> str:
    """Such as `smollm2/letters cyclic mean_prob pride`: what is usual is left unsaid."""
    where = "/".join(str(axes[key]) for key in ("model", "template") if axes.get(key))
    words = [str(axes[key]) for key in ("scoring", "orders", "combine") if key in axes]
    if axes.get("scoring") == "letter":  # its orders say it
        words = words[1:]
    words += [str(axes["debias"])] if axes.get("debias", "none") != "none" else []
    marks = {"temperature": "T", "samples": "n", "weights": "w", "shots": "shots", "max_disagreement": "eps"}
    words += [
        f"{mark}={axes[key]}"
        for key, mark in marks.items()
        if key in axes and not (key in ("temperature", "samples") and axes[key] in (1.0, "1", 0.0))
    ]
    return " ".join([where, *words])


def _distinct_names(variants: list[Variant]) -> list[Variant]:
    """A name that two variants share gets their ids."""
    names = [(v.task, v.name) for v in variants]
    return [v._replace(name=f"{v.name} ({v.id})") if names.count((v.task, v.name)) > 1 else v for v in variants]
