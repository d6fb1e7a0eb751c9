"""API keys out of a file, which may change while the endpoint runs.

A line is `NAME KEY`; `#` begins a comment. Keys are kept and compared as digests, all of them each time, so that the
time of an answer says nothing about them.
"""

import hmac
import logging
import os
import time
from hashlib import sha256
from pathlib import Path

from ensemble.errors import ConfigError

LOG = logging.getLogger("ray.serve")
LOOK_SECONDS = 1.0  # between two looks at whether the file has changed
SHORTEST = 16  # characters of a key


class Keys:
    """The keys of a file; `name_of` says whose one is."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError where the file cannot be used."""
        self._path, self._looked = Path(path), time.monotonic()
        self._state = _state(self._path)
        self._digests = _read(self._path)

    def name_of(self, key: str) -> str | None:
        """The name that the key stands for, None where it is none."""
        self._look()
        digest, found = _digest(key), None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _look(self) -> None:
        """Takes over a changed file. One that cannot be read, or is wrong, closes the endpoint rather than leave
        revoked keys at work."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        state = _state(self._path)
        if state == self._state:
            return
        try:
            self._digests, self._state = _read(self._path), state
        except ConfigError as e:  # looked at again the next time
            if self._digests:
                LOG.warning("nobody is answered: %s", e)
            self._digests = []


def _state(path: Path) -> tuple[int, ...]:
    """Changes with the file and its permissions, also where a secret's link is pointed elsewhere."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path) -> list[tuple[str, bytes]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as e:
        raise ConfigError(f"keys file {path}: {e.__class__.__name__}: write lines `NAME KEY` into it") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) < SHORTEST:
            raise ConfigError(f"{path}:{number}: a line is `NAME KEY`, with a key of at least {SHORTEST} characters")
        keys.append((words[0], _digest(words[1])))
    if not keys:
        raise ConfigError(f"{path}: no keys: write lines `NAME KEY` into it")
    return keys


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
