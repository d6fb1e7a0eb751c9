"""Which engines run on which GPUs: all models at once where they fit, else in waves, each model loaded once.

An engine has its GPUs alone, and they are of one node. A further wave costs the start of engines, about a minute, so
there are as few waves as the GPUs allow; of the ways to form these the one is taken that ends first, with the GPUs
that are left given to more engines of the models that take longest. Pure: nothing here asks Ray or a GPU.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import combinations, pairwise
from math import floor
from typing import Literal, NamedTuple

from ensemble import models
from ensemble.config import RayConfig, is_adaptive
from ensemble.errors import ConfigError
from ensemble.plan import Plan
from ensemble.records import Task

CPUS = 0.5  # of Ray's for an engine without a GPU or a gateway, at most: vLLM takes its cores itself
MOST = 10  # models among which all ways to form waves are looked at, 3^n steps


class Need(NamedTuple):
    """gpus: of one engine, 0 for one on the CPU. work: in any unit, to compare models by."""

    model: str
    gpus: int
    replicas: int | Literal["auto"]
    work: float


class Wave(NamedTuple):
    """Engines of each model that run at the same time."""

    engines: dict[str, int]


def nodes_of(config: RayConfig, found: Sequence[int] = ()) -> list[int]:
    """GPUs of each node: as `ray.gpus` and `ray.gpus_per_node` say, else as found."""
    if config.gpus is None:
        return list(found)
    per_node = config.gpus_per_node or config.gpus
    full, rest = divmod(config.gpus, per_node)
    return [per_node] * full + [rest] * (rest > 0)


def gpus_here() -> int:
    """GPUs of this machine that CUDA_VISIBLE_DEVICES does not hide; 0 also where they cannot be counted."""
    found = len(list(models.DEV.glob("nvidia[0-9]*")))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return found
    return min(found, len([gpu for gpu in shown.split(",") if gpu.strip() not in ("", "-1")]))


def place(plan: Plan, needs: Sequence[Need], nodes: Sequence[int]) -> list[Wave]:
    """The waves of a run, see `waves`. Raises ConfigError where a model, or an adaptive vote, finds no place."""
    formed = waves(needs, nodes, together(plan).values())
    check_adaptive(plan, formed)
    return formed


def check_adaptive(plan: Plan, formed: Sequence[Wave]) -> None:
    """Raises ConfigError with the cure where models that vote adaptively together are in different waves."""
    for task, names in together(plan).items():
        if sum(any(name in wave.engines for name in names) for wave in formed) > 1:
            sizes = ", ".join(f"{name} {plan.config.models[name].engine.tensor_parallel_size}" for name in names)
            raise ConfigError(
                f"tasks.{task}: orders: adaptive needs its models at the same time, and the GPUs that one engine of "
                f"each needs ({sizes}) are not there: set orders: latin:2, let one model alone vote adaptively, take "
                "smaller models (quantize: {bits: 4} and a lower engine.tensor_parallel_size), or more GPUs"
            )


def waves(needs: Sequence[Need], nodes: Sequence[int], together: Collection[Collection[str]] = ()) -> list[Wave]:
    """As few waves as possible, and of these the fastest, in the order of `needs`. Engines on CPUs are in the first.

    nodes: GPUs of each. together: models that should be in one wave, even if there are more waves for it. The number
    of waves is the smallest for up to MOST models, and where engine sizes divide each other, as 1, 2, 4 and 8 do.
    Raises ConfigError where a model cannot run even alone.
    """
    on_gpu = [need for need in needs if need.gpus]
    for need in on_gpu:
        _check_alone(need, nodes)
    large_first = sorted(on_gpu, key=lambda need: -need.gpus)
    some = [large_first[i : i + MOST] for i in range(0, len(large_first), MOST)]
    formed = [wave for part in some for wave in _best(part, nodes, together)]
    places = {need.model: i for i, need in enumerate(needs)}
    formed.sort(key=lambda wave: min(map(places.__getitem__, wave)))
    if on_cpu := {need.model: 1 if need.replicas == "auto" else need.replicas for need in needs if not need.gpus}:
        formed[:1] = [(formed[0] if formed else {}) | on_cpu]
    return [Wave(dict(sorted(wave.items(), key=lambda item: places[item[0]]))) for wave in formed]


def pack(sizes: Sequence[int], nodes: Sequence[int]) -> list[int] | None:
    """The node of each engine, of so many GPUs each; None where they do not fit.

    Large ones first, each to the fullest node that has room. That fits them whenever it is possible, if sizes divide
    each other: an engine then takes the same number of smaller ones' places on whatever node.
    """
    free, placed = list(nodes), [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        node = _fullest(sizes[i], free)
        if node is None:
            return None
        placed[i] = node
        free[node] -= sizes[i]
    return placed


def together(plan: Plan) -> dict[Task, list[str]]:
    """Per task that votes adaptively, the models whose answers to a question are needed side by side."""
    asked = {task: plan.models([task]) for task in plan.tasks if any(map(is_adaptive, plan.config.tasks[task].members))}
    return {task: names for task, names in asked.items() if len(names) > 1}


def _check_alone(need: Need, nodes: Sequence[int]) -> None:
    largest, engines = max(nodes, default=0), _least(need)
    if largest == 0:
        raise ConfigError(
            f"model {need.model} needs a GPU and there is none: set models.{need.model}.engine.device: cpu, or run "
            "where there are GPUs"
        )
    if need.gpus > largest:
        raise ConfigError(
            f"model {need.model}: an engine's {need.gpus} GPUs must be of one node, and the largest node has "
            f"{largest}: lower engine.tensor_parallel_size (weights of 4 bits need a quarter of those of 16), or "
            "use nodes with more GPUs"
        )
    if pack([need.gpus] * engines, nodes) is None:
        most = sum(gpus // need.gpus for gpus in nodes)
        raise ConfigError(
            f"model {need.model}: engine.replicas: {engines} of {need.gpus} GPUs each need {engines * need.gpus}, and "
            f"there is room for {most} (GPUs of each node: {', '.join(map(str, nodes))}): set it to {most}, or auto"
        )


def _least(need: Need) -> int:
    return 1 if need.replicas == "auto" else need.replicas


class _Formed(NamedTuple):
    """Waves, and how good they are: the smaller, the better."""

    torn: int  # models that should be together and are not, by groups and waves
    waves: int
    time: float
    engines: tuple[dict[str, int], ...]

    def rank(self) -> tuple[int, int, float]:
        return self.torn, self.waves, self.time

    def and_then(self, rest: "_Formed") -> "_Formed":
        both = (self.torn + rest.torn, self.waves + rest.waves, self.time + rest.time)
        return _Formed(*both, self.engines + rest.engines)


def _best(
    needs: Sequence[Need], nodes: Sequence[int], together: Collection[Collection[str]]
) -> tuple[dict[str, int], ...]:
    """The best partition of the models into waves that fit, by dynamic programming over sets of models."""
    groups = [frozenset(group) & {need.model for need in needs} for group in together]

    @cache
    def wave(members: frozenset[int]) -> _Formed | None:
        chosen = [needs[i] for i in sorted(members)]
        engines = _filled(chosen, nodes)
        if engines is None:
            return None
        names = set(engines)
        torn = sum(bool(names & group) and not names >= group for group in groups)
        return _Formed(torn, 1, max(_time(need, engines[need.model]) for need in chosen), (engines,))

    @cache
    def best(left: frozenset[int]) -> _Formed:
        if not left:
            return _Formed(0, 0, 0.0, ())
        first, *others = sorted(left)  # some wave holds the first: that one is chosen now
        options = []
        for n in range(len(others), -1, -1):  # of equals, the one whose first waves hold most
            for more in combinations(others, n):
                members = frozenset((first, *more))
                if (now := wave(members)) is not None:
                    rest = best(left - members)
                    options.append(now.and_then(rest))
        return min(options, key=_Formed.rank)

    return best(frozenset(range(len(needs)))).engines


def _filled(needs: Sequence[Need], nodes: Sequence[int]) -> dict[str, int] | None:
    """Engines of models that run at the same time, on all GPUs that they can use; None where they do not fit."""
    engines = {need.model: _least(need) for need in needs}
    free = _free(needs, engines, nodes)
    if free is None:
        return None
    growing = [need for need in needs if need.replicas == "auto"]
    sizes = sorted({need.gpus for need in needs})
    even = all(large % small == 0 for small, large in pairwise(sizes))  # then any node with room will do, see `pack`
    while growing:
        slowest = max(growing, key=lambda need: (_time(need, engines[need.model]), -engines[need.model]))
        engines[slowest.model] += 1
        if even and (node := _fullest(slowest.gpus, free)) is not None:
            free[node] -= slowest.gpus
        elif (moved := _free(needs, engines, nodes)) is not None:
            free = moved
        else:
            engines[slowest.model] -= 1
            growing.remove(slowest)
    return engines


def cpu_share(engines: int, cpus: float) -> float:
    """Of Ray's so many CPUs for each of so many engines without a GPU, or gateways: half of them stay for others."""
    return floor(1e4 * min(CPUS, cpus / 2 / max(1, engines))) / 1e4  # Ray counts no finer


def _free(needs: Sequence[Need], engines: Mapping[str, int], nodes: Sequence[int]) -> list[int] | None:
    """GPUs of each node that these engines leave, placed anew; None where they do not fit."""
    sizes = [need.gpus for need in needs for _ in range(engines[need.model])]
    placed = pack(sizes, nodes)
    if placed is None:
        return None
    free = list(nodes)
    for node, size in zip(placed, sizes, strict=True):
        free[node] -= size
    return free


def _fullest(size: int, free: Sequence[int]) -> int | None:
    """The node with the fewest free GPUs that has `size`."""
    return min((node for node, gpus in enumerate(free) if gpus >= size), key=free.__getitem__, default=None)


def _time(need: Need, engines: int) -> float:
    """Of a model's work, as if an engine were faster by its number of GPUs."""
    return need.work / (engines * need.gpus)
