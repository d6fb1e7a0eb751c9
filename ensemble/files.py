"""Files that appear whole or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any, TextIO

from ensemble.errors import StoreError


class replacing:
    """A text file that takes its place when the block ends without an error. Raises StoreError on a full disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> TextIO:
        try:
            self._file = open(self._temporary, "w", encoding="utf-8")
        except OSError as e:
            raise output_error(self._path.parent, e) from None
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            self._file.close()
            if error is None:
                os.replace(self._temporary, self._path)
        except OSError as e:
            raise output_error(self._path.parent, e) from None
        finally:
            self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise output_error(self._path.parent, error) from None


def output_error(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"output folder {folder}: {error.strerror or error}; free space, or give another with --output. "
        "Scores are in the store: the same command goes on from there"
    )


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole and durable, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
