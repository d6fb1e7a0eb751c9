"""Ray Data streams items of work through the stage actors; their tallies come back."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayError

import ensemble.errors
from ensemble.errors import EngineError, QuorumError
from ensemble.tally import Tally
from pipelines.progress import Progress
from pipelines.stage import Job, Stage
from pipelines.work import Part

STAGE_CPUS = 0.25  # stage actors wait for engines most of the time
GRACE_SECONDS = 1.5  # for stage actors to bring home what they have at the deadline


def stream_until(data: Any, job: Job, items: Sequence[list[Part]], total: Tally, progress: Progress) -> None:
    """As `stream`; at the deadline what is not done is left, also where actors are still starting."""
    if job.until is None:
        stream(data, job, items, total, progress)
        return
    failed: list[BaseException] = []

    def work() -> None:
        try:
            stream(data, job, items, total, progress)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(0.0, job.until - time.time()) + GRACE_SECONDS)
    if failed and time.time() < job.until:
        raise failed[0]


def stream(data: Any, job: Job, items: Sequence[list[Part]], total: Tally, progress: Progress) -> None:
    """data: the module ray.data. Raises what a stage actor calls fatal, and EngineError where passes fail too often."""
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
        compute=data.ActorPoolStrategy(size=job.stages, max_concurrent_calls_per_actor=2),
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
                        raise by_name(kind)(message)
                    total.add(tally)
            return
        except RayError as e:
            if job.until is not None and time.time() > job.until:
                return
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            if attempt == config.retries:
                raise EngineError(f"the run stopped: {reason}; run the same command to go on") from e
            progress.warn(f"a stage actor failed, going on from the store: {reason}")


def by_name(kind: str) -> Callable[[str], QuorumError]:
    """The project's error of that name, else EngineError."""
    found: Callable[[str], QuorumError] = getattr(ensemble.errors, kind, EngineError)
    return found
