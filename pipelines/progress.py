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

    def start(self, totals: Mapping[str, int]) -> None:
        """Answering begins: questions to compute per task."""
        self._totals = dict(totals)
        self._begun = self._line = time.monotonic()
        for task, total in totals.items():
            self._rows[task] = self._bars.add_task(task, total=total, rate="")
        self.note("answering " + ", ".join(f"{n} {task}" for task, n in totals.items()))

    def update(self, done: Mapping[str, list[float]]) -> None:
        """done: per task questions finished, their summed seconds, and how many failed."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        counts = {task: min(int(done.get(task, [0])[0]), total) for task, total in self._totals.items()}
        for task, count in counts.items():
            self._bars.update(self._rows[task], completed=count, rate=f"{count / seconds:.1f}/s")
        self._every(lambda: self._summary(counts, done, seconds))

    def _summary(self, counts: Mapping[str, int], done: Mapping[str, list[float]], seconds: float) -> str:
        answered, total = sum(counts.values()), sum(self._totals.values())
        failed = sum(int(v[2]) for v in done.values())
        left = f"{(total - answered) * seconds / answered:.0f} s left" if answered else "time left unknown"
        parts = ", ".join(f"{task} {n}/{self._totals[task]}" for task, n in counts.items())
        return f"{answered}/{total} questions, {answered / seconds:.1f}/s, {left} ({parts}; {failed} failed)"

    def _every(self, text: Callable[[], str]) -> None:
        if not self._live and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.note(text())
            sys.stderr.flush()
