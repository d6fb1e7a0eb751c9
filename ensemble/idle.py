"""Where the device seconds of a run's inference went: at work, or idle, and why.

A device is a GPU; an engine on CPU counts as one device of its own.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ensemble.vitals import Vitals

CAUSES = {
    "loading": "the engine was loading its model",
    "restart": "the engine had died and was not ready again",
    "before work": "the engine was ready and nothing had come yet",
    "starved": "nothing was under way, though more came later",
    "tail": "the engine had done its last work, others had not",
    "unused": "no engine had the device",
    "between": "engines were starting, or one wave made room for the next",
}
SLACK = 0.1  # seconds by which the clocks of two nodes may differ
Span = tuple[float, float]


class Life(NamedTuple):
    """A life's seconds by what they went to, on each of its devices.

    window: from the end of the engine's life before, where there was one (again), to its own.
    """

    vitals: Vitals
    again: bool
    window: Span
    seconds: dict[str, float]

    @property
    def devices(self) -> int:
        return self.vitals.gpus or 1


def account(lives: Sequence[Vitals], gpus: int, span: Span, waves: Sequence[Span] = ()) -> dict[str, float]:
    """Device seconds `busy` and by CAUSES; they add up to all devices' over the span.

    lives: the last record of each process of an engine. gpus: of the cluster, which count where an engine has one;
    there are at least as many devices as the engines of a wave hold. span, waves: (start, end) of the inference and
    of each set of models, epoch seconds.
    """
    waves, gpus = waves or [span], gpus if any(v.gpus for v in lives) else 0
    told = histories(lives, span, waves)
    held = [_held(told, wave) for wave in waves]
    on_cpu = [_held([life for life in told if not life.vitals.gpus], wave) for wave in waves]
    devices = max([gpus + max(on_cpu), *held])
    found = {"busy": 0.0, **dict.fromkeys(CAUSES, 0.0)}
    for life in told:
        for what, seconds in life.seconds.items():
            found[what] += seconds * life.devices
    found["unused"] = sum((devices - n) * _overlap(wave, span) for n, wave in zip(held, waves, strict=True))
    found["between"] = devices * (span[1] - span[0]) - sum(found.values())
    return found


def facts(lives: Sequence[Vitals], gpus: int, span: Span, waves: Sequence[Span] = ()) -> dict[str, Any]:
    """`engines` and `idle` of the manifest; arguments as of `account`."""
    spent = account(lives, gpus, span, waves)
    total = sum(spent.values())
    kinds = {"GPU" if v.gpus else "engine" for v in lives}
    idle = {
        "of": kinds.pop() if len(kinds) == 1 else "device",
        "devices": round(total / (span[1] - span[0])) if span[1] > span[0] else 0,
        "span": round(span[1] - span[0], 3),
        "seconds": {what: round(seconds, 3) for what, seconds in spent.items()},
    }
    return {"engines": manifest_engines(lives, span, waves), "idle": idle}


def manifest_engines(lives: Sequence[Vitals], span: Span, waves: Sequence[Span] = ()) -> list[dict[str, Any]]:
    """Each life of each engine. seconds are its own, not times its devices; memory is as it was seen last."""
    return [_entry(life) for life in histories(lives, span, waves)]


def sentence(idle: Mapping[str, Any]) -> str:
    """Such as `GPUs busy 87% of 312 s x 4; idle: loading 9%, tail 3%`; what is under half a percent is left out."""
    seconds, total = idle["seconds"], sum(idle["seconds"].values()) or 1.0
    causes = sorted((cause for cause in CAUSES if seconds[cause] >= 0.005 * total), key=lambda cause: -seconds[cause])
    lost = ", ".join(f"{cause} {seconds[cause] / total:.0%}" for cause in causes)
    span = f"{idle['span']:.3g}" if idle["span"] < 100 else f"{idle['span']:,.0f}"
    kind = idle["of"][0].upper() + idle["of"][1:]
    busy = f"{kind}s busy {seconds['busy'] / total:.0%} of {span} s x {idle['devices']}"
    return f"{busy}; idle: {lost}" if lost else busy


def histories(lives: Iterable[Vitals], span: Span, waves: Sequence[Span] = ()) -> list[Life]:
    """Each life within the span, an engine's in their order; `unused` and `between` belong to none."""
    engines: dict[tuple[str, int], list[Vitals]] = defaultdict(list)
    for vitals in sorted(lives, key=lambda v: (v.model, v.replica, v.created)):
        engines[vitals.model, vitals.replica].append(vitals)
    found = []
    for mine in engines.values():
        end = _end(mine[-1], waves or [span])
        # What an engine did after its last record, before the next life's first, is not known: it counts as down.
        borders = [mine[0].created, *(v.at for v in mine[:-1]), end]
        for i, (vitals, (start, stop)) in enumerate(zip(mine, pairwise(borders), strict=True)):
            window = _within(start, span), _within(max(start, stop), span)
            found.append(Life(vitals, i > 0, window, _seconds(vitals, window, i > 0, vitals is mine[-1])))
    return found


def _end(last: Vitals, waves: Sequence[Span]) -> float:
    """Of the last wave that the engine was seen in: until then it holds its devices."""
    seen = max(last.at - SLACK, last.created + SLACK)
    return [end for i, (start, end) in enumerate(waves) if i == 0 or start < seen][-1]


def _seconds(vitals: Vitals, window: Span, again: bool, ends: bool) -> dict[str, float]:
    start, stop = window
    gone = _within(vitals.at, window) if vitals.status == "dead" else stop
    ready = gone if vitals.ready is None else _within(vitals.ready, (start, gone))
    first = gone if vitals.first is None else _within(vitals.first, (ready, gone))
    last = first if vitals.last is None else _within(vitals.last, (first, gone))
    busy = min(vitals.busy, last - first)
    found = {
        "busy": busy,
        "restart" if again else "loading": ready - start,
        "before work": first - ready,
        "starved": last - first - busy,
    }
    found["tail" if ends else "starved"] = found.get("tail" if ends else "starved", 0.0) + gone - last
    found["restart"] = found.get("restart", 0.0) + stop - gone
    return {what: seconds for what, seconds in found.items() if seconds > 0}


def _entry(life: Life) -> dict[str, Any]:
    v = life.vitals
    return {
        "model": v.model,
        "replica": v.replica,
        "node": v.node,
        "gpus": v.gpus,
        "restarted": life.again,
        "seconds": {what: round(seconds, 3) for what, seconds in life.seconds.items()},
        "requests": v.requests,
        "prompt_tokens": v.prompt_tokens,
        "cached_tokens": v.cached_tokens,
        "output_tokens": v.output_tokens,
        "errors": v.errors,
        "cached_share": round(v.cached_tokens / v.prompt_tokens, 4) if v.prompt_tokens else None,
        "tokens_per_second": round((v.prompt_tokens + v.output_tokens) / v.busy, 1) if v.busy else None,
        "memory_gib": None if v.memory_gib is None else round(v.memory_gib, 2),
    }


def _held(lives: Iterable[Life], wave: Span) -> int:
    """Devices that engines had in the wave; the lives of an engine are one after another on the same."""
    there = [life for life in lives if _overlap(life.window, wave) > min(SLACK, _overlap(life.window, life.window) / 2)]
    return sum({(life.vitals.model, life.vitals.replica): life.devices for life in there}.values())


def _within(moment: float, span: Span) -> float:
    return min(max(moment, span[0]), span[1])


def _overlap(one: Span, other: Span) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
