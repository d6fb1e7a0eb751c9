"""A run's folder, its clock, and the store it uses: what every pipeline holds before it starts."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensemble.errors import ConfigError, StoreError
from ensemble.files import lock_file, output_error
from ensemble.store import open_store


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
