"""The inference phase: engines start, one question per task is tried, then Ray Data streams all that is missing."""

import contextlib
import importlib
import json
import logging
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from ensemble.errors import EngineError, ModelError, QuorumError
from ensemble.plan import Plan
from ensemble.read import iter_blocks
from ensemble.records import Question
from pipelines.cluster import EngineSpec, connect, start_engines, wait_for
from pipelines.progress import Progress
from pipelines.stage import FATAL_ROW, Job, Stage, preflight

STAGE_CPUS = 0.25  # stage actors wait for engines most of the time
FATAL = ("ModelError", "ConfigError", "PromptError")


@dataclass
class Inference:
    """What the inference phase did."""

    errors: dict[int, tuple[str, str]] = field(default_factory=dict)  # row_index -> type, message
    computed: int = 0
    usage: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)  # task -> member -> requests and tokens
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)  # task -> first start, last end (epoch seconds)
    drift: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # connect, engines, preflight, solve

    def take(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self.computed += bool(row["computed"]) and not row["error_type"]
            if row["error_type"]:
                self.errors[int(row["row_index"])] = (row["error_type"], row["error_message"])
            if row["drift"] == row["drift"]:  # not NaN
                self.drift.append(float(row["drift"]))
            if row["computed"] and row["started"] == row["started"]:
                first, last = self.spans.get(row["task"], (row["started"], row["ended"]))
                self.spans[row["task"]] = min(first, row["started"]), max(last, row["ended"])
            for task, members in json.loads(row["usage"] or "{}").items():
                for member, counts in members.items():
                    self.usage.setdefault(task, {}).setdefault(member, Counter()).update(counts)


class Board:
    """Counts finished questions for the live view, between two of the driver's looks."""

    def __init__(self) -> None:
        self._done: dict[str, list[float]] = {}

    def add(self, task: str, seconds: float, failed: bool) -> None:
        counts = self._done.setdefault(task, [0, 0.0, 0])
        counts[0] += 1
        counts[1] += seconds
        counts[2] += failed

    def read(self) -> dict[str, list[float]]:
        return self._done


def infer(plan: Plan, store: str, blocks: Sequence[str], missing: Counter[str], progress: Progress) -> Inference:
    """Answers what the store lacks. Raises QuorumError where nothing can go on; question errors are in the result."""
    config = plan.config
    result = Inference()
    clock = time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        result.seconds[name] = round(time.monotonic() - clock, 3)
        clock = time.monotonic()

    progress.note("starting Ray")
    connect(config.ray)
    try:
        lap("connect")
        specs = [EngineSpec(m, config.models[m], plan.devices[m], os.getcwd()) for m in plan.models(list(missing))]
        engines = start_engines(specs)
        job = Job(plan, store, engines, ray.remote(num_cpus=0)(Board).remote(), os.getcwd())
        # Sent before the engines are ready: its imports and tokenizers load meanwhile.
        tried = ray.remote(num_cpus=STAGE_CPUS)(preflight).remote(job, _first_questions(blocks, missing))
        data = importlib.import_module("ray.data")  # takes seconds, spent while the engines load

        _await_engines(engines, config.ray.engine_start_seconds, progress)
        lap("engines")
        progress.note("preflight: one question per task")
        result.take(_checked(wait_for(tried, config.ray.engine_start_seconds), progress))
        lap("preflight")
        with _watching(job, missing, progress):
            _stream(data, job, blocks, result, progress)
        lap("solve")
        for actors in engines.values():
            for actor in actors:
                actor.close.remote()
    except RayError as e:
        raise EngineError(
            f"Ray: {type(e).__name__}: {' '.join(str(e).split())[:300]}; run the same command to go on"
        ) from e
    finally:
        ray.shutdown()
    return result


def _await_engines(engines: dict[str, list[Any]], seconds: float, progress: Progress) -> None:
    """Until every engine is ready, showing what each is doing."""
    waiting = {(model, i): a.start.remote() for model, actors in engines.items() for i, a in enumerate(actors)}
    deadline = time.monotonic() + seconds
    while waiting:
        for (model, i), ref in list(waiting.items()):
            try:
                wait_for(ref, 0.3)
                del waiting[model, i]
                progress.loading(model, "ready", done=True)
            except GetTimeoutError:
                progress.loading(model, _status(engines[model][i]))
            except QuorumError as e:
                raise type(e)(f"model {model}: {e}") from None
            if time.monotonic() > deadline:
                raise ModelError(f"model {model} was not ready after {seconds:g} s: raise ray.engine_start_seconds")


def _status(actor: Any) -> str | None:
    try:
        status: str = ray.get(actor.status.remote(), timeout=0.3)
        return status
    except RayError:
        return None


def _first_questions(blocks: Sequence[str], missing: Counter[str]) -> list[Question]:
    """One question of each task."""
    firsts: dict[str, Question] = {}
    for block in iter_blocks(blocks):
        for question in block:
            if question.task in missing:
                firsts.setdefault(question.task, question)
        if len(firsts) == len(missing):
            break
    return list(firsts.values())


def _checked(outcomes: list[dict[str, Any]], progress: Progress) -> list[dict[str, Any]]:
    """Ends the run where a member cannot answer at all, say because its template does not fit its model."""
    for outcome in outcomes:
        if outcome["error_type"] in FATAL:
            raise _by_name(outcome["error_type"])(f"preflight, task {outcome['task']}: {outcome['error_message']}")
        if outcome["letter_mass"] < 0.1:
            progress.warn(
                f"task {outcome['task']}: the option letters hold only {outcome['letter_mass']:.1%} of the "
                "probability: the template probably does not lead the model to answer by letter"
            )
    return outcomes


def _by_name(name: str) -> Callable[[str], QuorumError]:
    import ensemble.errors

    kind: Callable[[str], QuorumError] = getattr(ensemble.errors, name, EngineError)
    return kind


def _stream(data: Any, job: Job, blocks: Sequence[str], result: Inference, progress: Progress) -> None:
    config = job.plan.config.ray
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Rows are paths of blocks: the questions themselves are read where they are answered.
    paths = data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
    warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")  # the pinned Ray has no other way
    dataset = paths.map_batches(
        Stage,
        fn_constructor_args=[job],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=STAGE_CPUS,
        compute=data.ActorPoolStrategy(size=config.stage_actors, max_concurrent_calls_per_actor=2),
        # Ray Data would restart actors forever. A dead stage ends the pass instead, and the next one finds in the
        # store what this one did.
        ray_remote_args_fn=lambda: {"max_restarts": 0, "max_task_retries": 0},
    )
    for attempt in range(config.retries + 1):
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                rows = batch.to_pylist()
                for row in rows:
                    if row["row_index"] == FATAL_ROW:
                        raise _by_name(row["error_type"])(row["error_message"])
                result.take(rows)
            return
        except RayError as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            if attempt == config.retries:
                raise EngineError(f"the run stopped: {reason}; run the same command to go on") from e
            progress.warn(f"a stage actor failed, going on from the store: {reason}")


class _watching:
    """While open, a thread brings the board's counts to the live view."""

    def __init__(self, job: Job, missing: Counter[str], progress: Progress) -> None:
        self._job, self._missing, self._progress = job, missing, progress
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._progress.start(self._missing)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            ended = self._end.wait(0.5)
            with contextlib.suppress(RayError):
                self._progress.update(ray.get(self._job.board.read.remote(), timeout=5))
            if ended:
                return
