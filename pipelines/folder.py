"""A run's folder, its clock, its input and its store: what every pipeline holds before it starts."""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensemble.errors import ConfigError, InputError, StoreError
from ensemble.files import lock_file, output_error
from ensemble.outputs import write_errors
from ensemble.read import InputSummary, read_questions
from ensemble.records import RowError
from ensemble.store import open_store
from pipelines import cli
from pipelines.progress import Progress


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, Any] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def writable(folder: Path) -> Path:
    """The folder, made where it is new. Raises ConfigError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as e:
        raise ConfigError(str(output_error(folder, e))) from None
    return folder


def lock(folder: Path, held: ExitStack) -> None:
    """Until `held` closes no other run writes to the folder. Raises ConfigError where one does."""
    try:
        held.enter_context(FileLock(lock_file(folder), timeout=0))
    except Timeout:
        raise ConfigError(f"another run is writing to {folder}: wait for it, or give another --output") from None


def usable_store(path: Path) -> Path:
    """The store; before anything is computed an unusable one counts as unusable config. Raises ConfigError."""
    try:
        return open_store(path).resolve()
    except StoreError as e:
        raise ConfigError(str(e)) from None


def read_input(
    spec: str,
    options: argparse.Namespace,
    distinct: bool,
    scratch: Path,
    folder: Path,
    errors: list[RowError],
    progress: Progress,
) -> InputSummary:
    """Checks the input into blocks in `scratch` and tells of bad rows, which are added to `errors`.

    distinct: see `ensemble.read.read_questions`. folder: of the results, where people find errors.jsonl.
    """
    try:
        read = read_questions(spec, scratch / "questions", cli.selection(options), errors.append, distinct=distinct)
    except InputError:
        write_errors(scratch / "errors.jsonl", errors)
        raise
    except StoreError as e:  # nothing was started yet
        raise ConfigError(str(e)) from None
    for error in errors[:5]:
        progress.warn(f"{error.file}:{error.line}: {error.message}")
    if len(errors) > 5:
        progress.warn(f"{len(errors) - 5} more bad rows are in {folder / 'errors.jsonl'}")
    if read.missing_ids:
        progress.warn(f"--ids: no row has id {', '.join(read.missing_ids[:5])}")
    return read
