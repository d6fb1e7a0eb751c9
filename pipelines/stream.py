"""Ray Data streams items of work through the stage actors; their tallies come back."""

import contextlib
import logging
import queue
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError

from ensemble.errors import EngineError, by_name
from ensemble.tally import Tally
from pipelines.progress import Progress
from pipelines.stage import Job, Stage
from pipelines.work import CALLS, Part, calls

STAGE_CPUS = 0.25  # stage actors wait for engines most of the time
GRACE_SECONDS = 1.5  # for stage actors to bring home what they have at the deadline


class Stream:
    """One pass over items of work, in a thread of its own: it may start before the engines are ready.

    total: what the tallies are added to. tried: parts of a preflight, which goes first.
    """

    def __init__(
        self,
        data: Any,
        job: Job,
        items: Sequence[Sequence[Part]],
        total: Tally,
        progress: Progress,
        tried: Sequence[Part] = (),
    ) -> None:
        """data: the module ray.data."""
        self._data, self._job, self._total, self._progress = data, job, total, progress
        self._rows = [_row(tried, preflight=True)] * bool(tried) + [_row(parts) for parts in items]
        self._calls = calls(len(items), job.stages)
        self._tried: queue.SimpleQueue[Tally] = queue.SimpleQueue()
        self._failed: BaseException | None = None
        self._ended = threading.Event()  # Thread.join, once interrupted, takes the thread for ended (Python 3.11)
        threading.Thread(target=self._work, daemon=True).start()

    def tried(self, seconds: float) -> Tally | None:
        """The preflight's next tally; None after so many seconds. Raises what ended the pass."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return self._tried.get(timeout=min(0.2, max(0.0, until - time.monotonic())))
            if self._ended.is_set():
                self.join()
                break
        return None

    def running(self) -> bool:
        return not self._ended.is_set()

    def wait(self, seconds: float) -> None:
        """At most so long for the end of the pass, whatever came of it."""
        self._ended.wait(seconds)

    def join(self) -> None:
        """Until all is done, or the deadline: what is not done then is left, also where actors are still starting.

        Raises what a stage actor calls fatal, and EngineError where passes fail too often.
        """
        until = self._job.until
        self._ended.wait(None if until is None else max(0.0, until - time.time()) + GRACE_SECONDS)
        if self._failed is not None and (until is None or time.time() < until):
            raise self._failed

    def _work(self) -> None:
        try:
            self._pass()
        except BaseException as e:
            self._failed = e
        finally:
            self._ended.set()

    def _pass(self) -> None:
        dataset, config = self._dataset(), self._job.plan.config.ray
        for attempt in range(config.retries + 1):
            try:
                for batch in dataset.iter_batches(
                    batch_size=None,
                    batch_format="pyarrow",
                    prefetch_batches=0,  # else a reply waits for the next one
                ):
                    for text in batch["tally"].to_pylist():
                        self._take(Tally.from_json(text))
                return
            except RayError as e:
                if self._job.until is not None and time.time() > self._job.until:
                    return
                reason = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
                if attempt == config.retries:
                    raise EngineError(f"the run stopped: {reason}; run the same command to go on") from e
                self._progress.warn(f"a stage actor failed, going on from the store: {reason}")

    def _take(self, tally: Tally) -> None:
        if tally.fatal:
            kind, message = tally.fatal
            raise by_name(kind)(message)
        self._total.add(tally)
        if tally.preflight:
            self._tried.put(tally)

    def _dataset(self) -> Any:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a pass is told where it is caught
        context = self._data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Rows are places of questions: the questions themselves are read where they are answered.
        places = self._data.from_items(self._rows, override_num_blocks=len(self._rows))
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")  # the pinned Ray has no other way
        return places.map_batches(
            Stage,
            fn_constructor_args=[self._job],
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=STAGE_CPUS,
            # No fewer calls than tasks that are sent: of tasks that wait in an actor any may be the next, and one that
            # waits for the preflight must not keep the preflight waiting.
            compute=self._data.ActorPoolStrategy(
                size=self._job.stages,
                max_concurrent_calls_per_actor=CALLS,
                max_tasks_in_flight_per_actor=self._calls,
            ),
            # Ray Data would restart actors forever. A dead stage ends the pass instead, and the next one finds in the
            # store what this one did.
            ray_remote_args_fn=lambda: {"max_restarts": 0, "max_task_retries": 0},
        )


def _row(parts: Sequence[Part], preflight: bool = False) -> dict[str, Any]:
    return {"item": {"parts": [part._asdict() for part in parts], "preflight": preflight}}
