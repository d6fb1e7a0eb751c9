"""The reading step: question files in, Parquet blocks of checked questions out, in one streaming pass.

Files are JSONL or one JSON array, told apart by their content. A bad row is reported with its line and never stops
the rows after it. Memory does not grow with the files but for 50 to 100 bytes a row, to find what is there twice.
"""

import codecs
import difflib
import glob
import hashlib
import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn

from ensemble.errors import InputError, StoreError
from ensemble.questions import from_table, parse_question, readable_id, to_table
from ensemble.records import Question, RowError

MAX_ROW = 64 << 20  # bytes of a JSONL line, characters of an array's element
CHUNK = 4096  # characters of an array that are decoded at first: most elements fit
BLOCK_CHARACTERS = 16 << 20  # a block ends early at so much text, so that long rows do not pile up in memory

Rows = Generator[tuple[int, object], None, bool]

# First bytes of what people mistake for a question file.
MAGIC = {
    b"\x1f\x8b": "gzip: decompress it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "zstd: decompress it first (unzstd)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PAR1": "Parquet, which is not read: convert to JSONL, in pandas to_json(..., orient='records', lines=True)",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}
# What to do about the messages of Python's JSON decoder.
CURES = {
    "Extra data": "write one JSON object per line and nothing behind it, no comma either",
    "Expecting value": "quote strings, write null for nothing, leave no comma before a bracket",
    "Expecting property name": "put keys in double quotes, leave no comma before }",
    "Illegal trailing comma": "remove that comma",
    "Unterminated string": 'close the string with "',
    "Invalid control character": "write line breaks and tabs inside strings as \\n and \\t",
    "Invalid \\": "double the backslash, or write one of JSON's escapes",
}


class Selection(NamedTuple):
    """Which valid rows to take. The filters `task` and `ids` (matched by str(id)) come first, then `limit`.

    limit: N takes the first N; a share 0 < f < 1 takes rows evenly from each task: the k-th (from 0) of a task iff
        floor((k + 1) f) > floor(k f).
    """

    limit: int | float | None = None
    task: str | None = None
    ids: frozenset[str] | None = None


class InputSummary(NamedTuple):
    """What was read. `rows` and all that is per task count the selected valid rows.

    characters, longest: total and maximum per task of the characters of text, context and options.
    bad: rows that went to `on_error`, whether or not the selection wanted them; duplicates: those of them whose id
        was there before.
    repeated_content: selected rows with the content of an earlier one under another id (no error).
    files: how many were opened. blocks: paths of the Parquet blocks, in row order.
    missing_ids: ids of the selection that no row has; empty where an int limit ended the reading before the end.
    """

    rows: int
    by_task: dict[str, int]
    characters: dict[str, int]
    bad: int
    duplicates: int
    repeated_content: int
    files: int
    blocks: list[str]
    with_gold: int
    longest: dict[str, int]
    missing_ids: list[str]


def find_inputs(spec: str) -> list[Path]:
    """The files that a path, a glob or a folder (all its *.jsonl and *.json) names, sorted; InputError for none."""
    path = Path(spec)
    try:
        if not spec.strip():
            raise InputError("the input is empty; name a file, a folder or a glob")
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [Path(folder, name) for folder, names in _walk(path) for name in names]
            if not found:
                raise InputError(f"the folder {spec!r} holds no *.jsonl or *.json file; name the file or another folder")
            return sorted(found)
        matched = sorted({Path(name) for name in glob.glob(spec, recursive=True)})
        if files := [match for match in matched if match.is_file()]:
            return files
        names = os.listdir(path.parent) if path.parent.is_dir() else []
    except OSError as error:
        raise InputError(f"{spec!r} cannot be read: {error.strerror}; check the path and its permissions") from error
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    cure = f"did you mean {str(path.parent / near[0])!r}?" if near else f"check the path (from {os.getcwd()})"
    raise InputError(f"no file or folder matches {spec!r}; {cure}")


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder under `path` with its question files; hidden ones are skipped. OSError where one is closed to us."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    for folder, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, [n for n in names if n.lower().endswith((".jsonl", ".json")) and not n.startswith(".")]


def iter_rows(path: Path, chunk: int = CHUNK) -> Iterator[tuple[int, object | InputError]]:
    """(line from 1, parsed JSON value or what is wrong there) for each row of a file; an array's row counts from
    the line where it starts. A file that cannot be used at all gives one error."""
    line, empty = 1, True
    try:
        with path.open("rb", buffering=1 << 20) as file:
            for line, row in _rows(file, chunk):
                empty = False
                yield line, row
    except OSError as error:
        yield line, InputError(f"cannot be read: {error.strerror}; check the file and its permissions")
        return
    if empty:
        yield 1, InputError("the file has no rows; write one JSON object per line, or remove the file")
