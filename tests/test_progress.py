"""The live view of engines: the lines of a log, and of a terminal."""

import re
from io import StringIO

import pytest
from rich.console import Console

from pipelines import progress as progress_module
from pipelines.progress import Progress
from tests.lives import at_work, life


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch, terminal: bool = False) -> tuple[Progress, StringIO]:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    out = Terminal() if terminal else StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, soft_wrap=not terminal)
    return Progress(console), out


def test_lines_of_a_log_end_with_what_the_engines_do(monkeypatch: pytest.MonkeyPatch):
    progress, out = watched(monkeypatch)
    progress.start({"math": 10})
    progress.engines([life("m", 0, None, 5, status="loading"), life("m", 0, None, 5, replica=1, status="loading")])
    progress.update({("math", False): 0})
    assert out.getvalue().rstrip().endswith("; 2 engines: loading")
    progress.engines([at_work(20, 1000), at_work(20, 0, replica=1)])
    more = [at_work(22, 21_000, running=40, waiting=3), at_work(22, 4690, replica=1, running=2, pid=1)]
    progress.engines(more)
    progress.update({("math", False): 5})
    # From the first poll on: 21,000 tokens in 17 s and 4,690 in 17 s.
    assert out.getvalue().rstrip().endswith("; 2 engines: 1,511 tokens/s, 75% cached, 42 running, 3 waiting")


def test_speed_is_of_the_last_polls_and_of_the_engines_last_life(monkeypatch: pytest.MonkeyPatch):
    progress, out = watched(monkeypatch)
    progress.start({"math": 10})
    for second in range(20, 120):
        progress.engines([at_work(second, 100 * second if second < 100 else 10_000)])
    progress.update({("math", False): 0})
    assert "; 1 engine: 0 tokens/s" in out.getvalue()  # long ago it did more
    reborn = [at_work(130, 50, pid=2, created=125.0), at_work(131, 350, pid=2, created=125.0)]
    for now in reborn:
        progress.engines([at_work(119, 10_000), now])
    progress.update({("math", False): 0})
    assert out.getvalue().rstrip().endswith("1 engine: 300 tokens/s, 75% cached, 0 running, 0 waiting")


@pytest.mark.parametrize(
    ("engines", "lines"),
    [
        (2, ["m/0: 500 tokens/s, 75% cached, 4 running, 1 waiting, KV 25%, 20.5 GiB", "m/1: 500 tokens/s"]),
        (9, ["m, 9 engines: 4,500 tokens/s, 75% cached, 36 running, 9 waiting, KV 25%, 184.5 GiB"]),
    ],
)
def test_a_terminal_has_a_line_for_each_engine_or_of_many_for_each_model(
    monkeypatch: pytest.MonkeyPatch, engines: int, lines: list[str]
):
    progress, out = watched(monkeypatch, terminal=True)
    with progress:
        progress.start({"math": 10})
        for second, tokens in [(20, 1000), (22, 2000)]:
            now = {"running": 4, "waiting": 1, "kv_usage": 0.25, "memory_gib": 20.5}
            progress.engines([at_work(second, tokens, replica=i, **now) for i in range(engines)])
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert all(line in shown for line in lines)
    assert ("m/0" in shown) == (engines == 2)
