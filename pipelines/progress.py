"""What a person sees while a run goes on: one live view on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_SECONDS = 10.0


class Progress:
    """Loading and answering, per model and per task. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._rows: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._until: float | None = None
        self._started = self._line = time.monotonic()
        self._begun = self._started  # of answering
        self._status: dict[str, str] = {}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(f"[{time.monotonic() - self._started:6.1f} s] {text}", markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def loading(self, model: str, status: str | None, done: bool = False) -> None:
        """A model's state; None where it does not answer because it is busy loading its weights."""
        status = status or "loading"
        if status != self._status.get(model):
            self.note(f"model {model}: {status}")
        self._status[model] = status
        if self._live:
            if model not in self._rows:
                self._rows[model] = self._bars.add_task(f"model {model}", total=None, rate="")
            self._bars.update(self._rows[model], rate=status)
            if done:
                self._bars.update(self._rows[model], total=1, completed=1)
        self._every(lambda: f"model {model}: {status}")

    def start(self, totals: Mapping[str, int], until: float | None = None) -> None:
        """Answering begins: questions to compute per task; until: epoch seconds at which it stops all the same."""
        self._totals, self._until = dict(totals), until
        self._begun = self._line = time.monotonic()
        for task, total in totals.items():
            if task in self._rows:
                self._bars.remove_task(self._rows[task])
            self._rows[task] = self._bars.add_task(task, total=total, rate="")
        self.note("answering " + ", ".join(f"{n} {task}" for task, n in totals.items()))

    def update(self, done: Mapping[tuple[str, bool], int]) -> None:
        """done: questions finished per (task, whether it failed)."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        finished = {task: sum(n for (t, _), n in done.items() if t == task) for task in self._totals}
        counts = {task: min(finished[task], total) for task, total in self._totals.items()}
        failed = sum(n for (_, lost), n in done.items() if lost)
        for task, count in counts.items():
            self._bars.update(self._rows[task], completed=count, rate=f"{count / seconds:.1f}/s")
        self._every(lambda: self._summary(counts, failed, seconds))

    def _summary(self, counts: Mapping[str, int], failed: int, seconds: float) -> str:
        answered, total = sum(counts.values()), sum(self._totals.values())
        left = f"{(total - answered) * seconds / answered:.0f} s left" if answered else "time left unknown"
        if self._until is not None:
            left += f", {max(0, self._until - time.time()):.0f} s to the deadline"
        parts = ", ".join(f"{task} {n}/{self._totals[task]}" for task, n in counts.items())
        return f"{answered}/{total} questions, {answered / seconds:.1f}/s, {left} ({parts}; {failed} failed)"

    def _every(self, text: Callable[[], str]) -> None:
        if not self._live and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.note(text())
            sys.stderr.flush()
