"""What a person sees while a run goes on: one live view on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ensemble.vitals import Vitals

LINE_SECONDS = 10.0
POLLS = 10  # over which the engines' speed is taken
ENGINES = 8  # shown one by one; of more, models


class _Bars(Bars):
    """Bars, and lines of text below them."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.lines:
            yield Text("\n".join(self.lines), no_wrap=True, overflow="ellipsis")


class Progress:
    """Loading and answering, per model and per task. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._bars = _Bars(
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
        self._polls: deque[dict[tuple[str, int, int], Vitals]] = deque(maxlen=POLLS)

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

    def engines(self, vitals: Sequence[Vitals]) -> None:
        """What the engines are doing; of several lives of one the youngest counts. Call it about once a second."""
        lives = {(v.model, v.replica): v for v in sorted(vitals, key=lambda v: v.created)}
        self._polls.append({(v.model, v.replica, v.pid): v for v in lives.values()})
        groups: dict[str, list[Vitals]] = defaultdict(list)
        for (model, replica), one in sorted(lives.items()):
            name = f"{model}/{replica}" if len(lives) <= ENGINES else model
            groups[name].append(one)
        self._bars.lines = [
            f"{name if len(found) == 1 else f'{name}, {_engines(found)}'}: {self._doing(found, True)}"
            for name, found in groups.items()
        ]

    def _doing(self, lives: Sequence[Vitals], at_length: bool = False) -> str:
        """Such as `12,345 tokens/s, 78% cached, 40 running, 3 waiting`."""
        if all(v.ready is None for v in lives):
            return ", ".join(sorted({v.status for v in lives}))
        prompts, cached = sum(v.prompt_tokens for v in lives), sum(v.cached_tokens for v in lives)
        parts = [f"{sum(map(self._speed, lives)):,.0f} tokens/s"]
        if prompts:
            parts.append(f"{cached / prompts:.0%} cached")
        parts += [f"{sum(v.running for v in lives)} running", f"{sum(v.waiting for v in lives)} waiting"]
        if at_length:
            parts.append(f"KV {max(v.kv_usage for v in lives):.0%}")
            memory = [v.memory_gib for v in lives if v.memory_gib is not None]
            parts += [f"{sum(memory):.1f} GiB"] if memory else []
        return ", ".join(parts)

    def _speed(self, vitals: Vitals) -> float:
        """Tokens of prompts and outputs a second, since the first of the last polls that had this process."""
        key = (vitals.model, vitals.replica, vitals.pid)
        before = next(poll[key] for poll in self._polls if key in poll)
        tokens = vitals.prompt_tokens + vitals.output_tokens - before.prompt_tokens - before.output_tokens
        return tokens / (vitals.at - before.at) if vitals.at > before.at else 0.0

    def _summary(self, counts: Mapping[str, int], failed: int, seconds: float) -> str:
        answered, total = sum(counts.values()), sum(self._totals.values())
        left = f"{(total - answered) * seconds / answered:.0f} s left" if answered else "time left unknown"
        if self._until is not None:
            left += f", {max(0, self._until - time.time()):.0f} s to the deadline"
        parts = ", ".join(f"{task} {n}/{self._totals[task]}" for task, n in counts.items())
        line = f"{answered}/{total} questions, {answered / seconds:.1f}/s, {left} ({parts}; {failed} failed)"
        if self._polls and (lives := list(self._polls[-1].values())):
            line += f"; {_engines(lives)}: {self._doing(lives)}"
        return line

    def _every(self, text: Callable[[], str]) -> None:
        if not self._live and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.note(text())
            sys.stderr.flush()


def _engines(lives: Sequence[Vitals]) -> str:
    return f"{len(lives)} engine{'' if len(lives) == 1 else 's'}"
