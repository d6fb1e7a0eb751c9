"""The inference phase: engines start, one question per task is tried, then Ray Data streams all that is missing."""

import contextlib
import importlib
import logging
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from ensemble.errors import EngineError, ModelError, QuorumError
from ensemble.files import location
from ensemble.known import calibrated, calibrated_tasks
from ensemble.plan import Plan
from ensemble.tally import Tally
from pipelines.cluster import EngineSpec, connect, start_engines, wait_for
from pipelines.deadline import Deadline, by_promise
from pipelines.progress import Progress
from pipelines.sample import first_questions, sample_work
from pipelines.stage import Job, Stage, preflight
from pipelines.work import Part

STAGE_CPUS = 0.25  # stage actors wait for engines most of the time
GRACE_SECONDS = 1.5  # for stage actors to bring home what they have at the deadline
FATAL = ("ModelError", "ConfigError", "PromptError")


class Board:
    """Counts finished questions for the live view, between two of the driver's looks."""

    def __init__(self) -> None:
        self._done: Counter[tuple[str, bool]] = Counter()

    def add(self, done: Counter[tuple[str, bool]]) -> None:
        self._done.update(done)

    def read(self) -> Counter[tuple[str, bool]]:
        """(task, failed) -> questions."""
        return self._done


def infer(
    plan: Plan,
    store: str,
    blocks: Sequence[str],
    missing: Counter[str],
    progress: Progress,
    tally: Tally,
    deadline: Deadline | None = None,
) -> None:
    """Answers what the store lacks; `tally` gets what was done, question errors included.

    Raises QuorumError where nothing can go on. With a deadline each question is first answered once, then the rest
    of the plan follows where it is expected to change most.
    """
    config = plan.config
    plan = calibrated(plan, location(store), blocks, partly=deadline is not None)
    until = deadline.until if deadline else None
    clock = time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        tally.seconds[name] = round(time.monotonic() - clock + tally.seconds.get(name, 0), 3)
        clock = time.monotonic()

    if until is not None and time.time() >= until:
        progress.warn("the deadline leaves no time to ask")
        return
    progress.note("starting Ray")
    connect(config.ray)
    try:
        lap("connect")
        specs = [EngineSpec(m, config.models[m], plan.devices[m], os.getcwd()) for m in plan.models(list(missing))]
        engines = start_engines(specs)
        board = ray.remote(num_cpus=0)(Board)
        # Nobody there draws samples: their populations would be most of what is sent.
        job = Job(
            plan._replace(populations={}), store, engines, board.remote(), os.getcwd(), deadline is not None, until
        )
        # Sent before the engines are ready: its imports and tokenizers load meanwhile.
        tried = ray.remote(num_cpus=STAGE_CPUS)(preflight).remote(job, first_questions(plan, blocks, list(missing)))
        data = importlib.import_module("ray.data")  # takes seconds, spent while the engines load

        longest = config.ray.engine_start_seconds
        if not _await_engines(engines, longest, until, progress):
            return
        lap("engines")
        progress.note("preflight: one question per task")
        try:
            _take_tried(tally, wait_for(tried, longest if until is None else max(0.0, until - time.time())), progress)
        except GetTimeoutError:
            if until is None:
                raise ModelError(f"the preflight took over {longest:g} s: raise ray.engine_start_seconds") from None
            return
        lap("preflight")
        everything = [[Part(block)] for block in blocks]
        if sampled := len(plan.calibrations) < len(calibrated_tasks(plan)):
            job, missing = _calibrate(data, plan, job, blocks, missing, tally, progress, board)
            lap("calibrate")
        with _watching(job.board, missing, progress, until):
            _stream_until(data, job, everything, tally, progress)
        if sampled:
            again = calibrated(plan, location(store), blocks, partly=True, failed=tally.errors)
            if not _same(again, job.plan):  # a question of the sample failed at first: the rest is held to the new gate
                _stream(data, job._replace(plan=again._replace(populations={})), everything, tally, progress)
        lap("solve")
        if deadline is not None and time.time() < deadline.until:
            items = by_promise(plan, location(store), blocks)
            job = job._replace(first=False, board=board.remote(), until=deadline.until)
            if items and time.time() < deadline.until:
                with _watching(job.board, sum((item.tasks for item in items), Counter()), progress, job.until):
                    _stream_until(data, job, [item.parts for item in items], tally, progress)
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


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans of the same questions are calibrated alike."""

    def told(plan: Plan) -> dict[str, object]:
        return {
            task: (found.gate, {key: prior.tolist() for key, prior in found.priors.items()})
            for task, found in plan.calibrations.items()
        }

    return told(one) == told(other)


def _calibrate(
    data: Any,
    plan: Plan,
    job: Job,
    blocks: Sequence[str],
    missing: Counter[str],
    tally: Tally,
    progress: Progress,
    board: Any,
) -> tuple[Job, Counter[str]]:
    """The first phase: the sample is asked, and the plan calibrated on what came of it; with what is then left."""
    store = location(job.store)
    work = sample_work(plan, store, blocks)
    if work.parts:
        progress.note("calibrating the votes on a sample")
        with _watching(job.board, work.tasks, progress, job.until):
            _stream_until(data, job, [[part] for part in work.parts], tally, progress)
    plan = calibrated(plan, store, blocks, partly=True, failed=tally.errors)
    for task, calibration in plan.calibrations.items():
        if calibration.certificate is not None:
            progress.note(f"{task}: {calibration.certificate.sentence()}")
    return job._replace(plan=plan._replace(populations={}), board=board.remote()), missing - work.tasks


def _await_engines(engines: dict[str, list[Any]], seconds: float, until: float | None, progress: Progress) -> bool:
    """Until every engine is ready, showing what each is doing; False where the deadline comes first."""
    waiting = {(model, i): a.start.remote() for model, actors in engines.items() for i, a in enumerate(actors)}
    patience = time.time() + seconds
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
            if until is not None and time.time() > until:
                progress.warn(f"model {model} was not ready before the deadline")
                return False
            if time.time() > patience:
                raise ModelError(f"model {model} was not ready after {seconds:g} s: raise ray.engine_start_seconds")
    return True


def _status(actor: Any) -> str | None:
    try:
        status: str = ray.get(actor.status.remote(), timeout=0.3)
        return status
    except RayError:
        return None


def _take_tried(total: Tally, tried: dict[str, Tally], progress: Progress) -> None:
    """Ends the run where a member cannot answer at all, say because its template does not fit its model."""
    for task, tally in tried.items():
        for kind, message in tally.errors.values():
            if kind in FATAL:
                raise _by_name(kind)(f"preflight, task {task}: {message}")
        mass = tally.letter_mass.get(task, 1.0)
        if mass < 0.1:
            progress.warn(
                f"task {task}: the option letters hold only {mass:.1%} of the "
                "probability: the template probably does not lead the model to answer by letter"
            )
        total.add(tally)


def _by_name(name: str) -> Callable[[str], QuorumError]:
    import ensemble.errors

    kind: Callable[[str], QuorumError] = getattr(ensemble.errors, name, EngineError)
    return kind


def _stream_until(data: Any, job: Job, items: Sequence[list[Part]], total: Tally, progress: Progress) -> None:
    """As `_stream`; at the deadline what is not done is left, also where actors are still starting."""
    if job.until is None:
        _stream(data, job, items, total, progress)
        return
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _stream(data, job, items, total, progress)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(0.0, job.until - time.time()) + GRACE_SECONDS)
    if failed and time.time() < job.until:
        raise failed[0]


def _stream(data: Any, job: Job, items: Sequence[list[Part]], total: Tally, progress: Progress) -> None:
    config = job.plan.config.ray
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Rows are places of questions: the questions themselves are read where they are answered.
    rows = [{"item": [part._asdict() for part in item]} for item in items]
    places = data.from_items(rows, override_num_blocks=len(rows))
    warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")  # the pinned Ray has no other way
    dataset = places.map_batches(
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
                for text in batch["tally"].to_pylist():
                    tally = Tally.from_json(text)
                    if tally.fatal:
                        kind, message = tally.fatal
                        raise _by_name(kind)(message)
                    total.add(tally)
            return
        except RayError as e:
            if job.until is not None and time.time() > job.until:
                return
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            if attempt == config.retries:
                raise EngineError(f"the run stopped: {reason}; run the same command to go on") from e
            progress.warn(f"a stage actor failed, going on from the store: {reason}")


class _watching:
    """While open, a thread brings the board's counts to the live view."""

    def __init__(self, board: Any, totals: Counter[str], progress: Progress, until: float | None) -> None:
        self._board, self._totals, self._progress, self._until = board, totals, progress, until
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._progress.start(self._totals, self._until)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            ended = self._end.wait(0.5)
            with contextlib.suppress(RayError):
                self._progress.update(ray.get(self._board.read.remote(), timeout=5))
            if ended:
                return
