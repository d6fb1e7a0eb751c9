"""Rows of Parquet and CSV files, with the fields that a JSON row has.

A table's columns are named as the fields (id, task or task_type, text, context, choices, answer or summary, group).
What a cell cannot hold is read from its text: `choices` may be a JSON list, a multiple-choice `answer` of digits is an
index or choice_id, and an `answer` that is a JSON list of strings is a list of references. A CSV file may give options
one to a column (`choices.0`, `choices.1`, ...); its ids that are whole numbers are numbers, and an empty cell is null.
"""

import csv
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from ensemble.errors import InputError
from ensemble.files import parquet_file, reason

FIELDS = ("id", "task", "task_type", "text", "context", "choices", "answer", "summary", "group", "solution")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
MAX_ROW = 64 << 20  # characters of a CSV row
MIN_LIMIT = 1 << 20  # characters that a row may always have, whatever came before it
BATCH_BYTES, BATCH_ROWS = 8 << 20, 4096  # of Parquet that are decoded at a time

# What to do about the messages of Python's CSV reader.
CURES = {
    "unexpected end of data": 'a quoted cell is not closed; close it with "',
    "expected after": 'text follows the end of a quoted cell; double the quotes inside it ("")',
    "new-line character": "a bare carriage return; save the file with line feeds, or quote the cell",
}
_WHOLE = re.compile(r"-?[1-9]\d{0,17}|0")
_OPTION = re.compile(r"choices\.(\d+)")


def parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    """(row number from 1, row or what is wrong there). Memory is bounded by a batch, and a broken row group costs
    its own rows only."""
    try:
        file = parquet_file(path, streamed=True)
        columns = [name for name in file.schema_arrow.names if name in FIELDS]
        _check_names(file.schema_arrow.names)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    except InputError as error:
        yield 1, error
        return
    except Exception as error:  # whatever pyarrow makes of the bytes
        yield 1, InputError(f"the file looks like Parquet and cannot be read ({reason(error)}); write it again")
        return
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * file.metadata.num_rows // max(size, 1)))
    end = 0
    for group in range(file.num_row_groups):
        number, end = end, end + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                for row in _plain_rows(batch):
                    number += 1
                    yield number, row
        except Exception as error:
            number += 1
            yield number, InputError(f"rows {number} to {end} cannot be read: {reason(error)}; write them again")


def _plain_rows(batch: Any) -> Iterator[object]:
    try:
        rows = batch.to_pylist()
    except ValueError:  # text that is not UTF-8: only its own row suffers
        for i in range(len(batch)):
            try:
                yield _plain(batch.slice(i, 1).to_pylist()[0])
            except ValueError as error:
                yield InputError(f"a value cannot be read: {reason(error)}; write it as UTF-8 text or a plain number")
        return
    yield from map(_plain, rows)


def _plain(row: dict[str, Any]) -> object:
    """The row as JSON would have it: pandas turns whole numbers into floats where one is missing."""
    for name in ("id", "answer", "group"):
        value = row.get(name)
        if isinstance(value, float):
            row[name] = None if math.isnan(value) else int(value) if value.is_integer() else value
    return _from_text(row)


def csv_delimiter(head: bytes, path: Path) -> str | None:
    """The delimiter of a CSV file that starts with `head`; None where it is none, by name or first line."""
    first = head.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if first.startswith(("{", "[")):
        return None
    for delimiter in DELIMITERS:
        if {"id", "text"} <= set(_names(first.split(delimiter))):
            return delimiter
    suffix = path.suffix.lower()
    return {".csv": ",", ".tsv": "\t"}.get(suffix)


def csv_rows(file: BufferedReader, line: int, delimiter: str) -> Iterator[tuple[int, object]]:
    """(first line of the row, row or what is wrong with it); the first row is the header."""
    csv.field_size_limit(MAX_ROW)
    records = _records(file, line, delimiter)
    names: list[str] = []
    for number, cells in records:
        if isinstance(cells, InputError):
            yield number, cells
        elif not any(cell.strip() for cell in cells):
            continue
        elif not names:
            names = _names(cells)
            try:
                _check_names(names)
            except InputError as error:
                yield number, error
                return
        else:
            yield number, _csv_row(names, cells, delimiter)


def _records(file: BufferedReader, line: int, delimiter: str) -> Iterator[tuple[int, list[str] | InputError]]:
    """(first line, cells) of each row. After a broken one reading goes on with the line behind its first: a quote
    that is never closed must not take the rows after it along."""
    waiting: deque[str] = deque()
    taken: list[str] = []
    limit = MAX_ROW

    def lines() -> Iterator[str]:
        size = 0
        while text := waiting.popleft() if waiting else file.readline(MAX_ROW).decode("utf-8", "surrogateescape"):
            taken.append(text)
            size += len(text)
            if size > limit:
                raise csv.Error("unexpected end of data")
            yield text

    while True:
        taken.clear()
        try:
            cells = next(csv.reader(lines(), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            message = next((cure for sign, cure in CURES.items() if sign in str(error)), str(error))
            yield line, InputError(f"not valid CSV: {message}")
            waiting.extendleft(reversed(taken[1:]))
            limit = max(min(limit, sum(map(len, taken))) // 4, MIN_LIMIT)
            line += 1
            continue
        if cells is None:
            return
        yield line, cells
        line += len(taken)


def _csv_row(names: Sequence[str], cells: Sequence[str], delimiter: str) -> object:
    if len(cells) != len(names):
        cure = f"quote cells that hold a {DELIMITERS[delimiter]}, and leave empty cells for what is missing"
        return InputError(f"the row has {len(cells)} cells and the header {len(names)}; {cure}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return InputError("not valid UTF-8; save the file as UTF-8 (Excel: CSV UTF-8)")
    row: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    if row["id"] and _WHOLE.fullmatch(row["id"]):
        row["id"] = int(row["id"])
    numbers = sorted(int(found[1]) for name in names if (found := _OPTION.fullmatch(name)))
    options = [row[f"choices.{i}"] for i in numbers]
    while options and options[-1] is None:  # a question with fewer options than others
        options.pop()
    if options and row.get("choices") is None:
        row["choices"] = options
    return _from_text(row)


def _from_text(row: dict[str, Any]) -> object:
    """The row with lists and indices that stand there as text."""
    choices, answer = row.get("choices"), row.get("answer")
    if isinstance(choices, str):
        row["choices"] = _list(choices)
        if row["choices"] is None:
            return InputError('choices is no JSON list; write ["ice", "iron"], or a column for each option: choices.0')
    if isinstance(answer, str):
        if (row.get("task") or row.get("task_type")) == "multiple_choice":
            row["answer"] = int(answer) if _WHOLE.fullmatch(answer) else answer
        elif (references := _list(answer)) and all(isinstance(reference, str) for reference in references):
            row["answer"] = references
    return row


def _list(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def _check_names(names: Sequence[str]) -> None:
    """Raises InputError where the columns cannot be questions, so that not every row says so."""
    twice = [name for name in FIELDS if list(names).count(name) > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} is there twice; rename one")
    if "id" not in names:
        shown = ", ".join(map(repr, names[:8]))
        raise InputError(f"no column is named id (the first are {shown}); name them id, task, text, choices, answer")
