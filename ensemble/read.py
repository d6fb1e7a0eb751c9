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
from io import BufferedReader, FileIO
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn

from ensemble.errors import InputError, StoreError
from ensemble.names import unknown
from ensemble.questions import from_table, parse_question, readable_id, to_table
from ensemble.records import TASKS, Question, RowError

MAX_ROW = 64 << 20  # bytes of a JSONL line, characters of an array's element
CHUNK = 4096  # characters of an array that are decoded at first: most elements fit
MIN_LIMIT = 1 << 20  # characters that an array's element may always have, whatever came before it
TOKEN = 16  # a fault so near the end of what was read may be a token that is cut: \ud83d\ude00 or -Infinity
BLOCK_CHARACTERS = 16 << 20  # a block ends early at so much text, so that long rows do not pile up in memory

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
                raise InputError(
                    f"the folder {spec!r} holds no *.jsonl or *.json file; name the file or another folder"
                )
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
        file: BufferedReader = BufferedReader(FileIO(path), 1 << 20)
        with file:
            for line, row in _rows(file, chunk):
                empty = False
                yield line, row
    except OSError as error:
        yield line, InputError(f"cannot be read: {error.strerror}; check the file and its permissions")
        return
    if empty:
        yield 1, InputError("the file has no rows; write one JSON object per line, or remove the file")


def _rows(file: BufferedReader, chunk: int) -> Iterator[tuple[int, object]]:
    if file.peek(3).startswith(codecs.BOM_UTF8):
        file.read(3)
    head = file.peek()
    if fault := _fault(head):
        yield 1, InputError(fault)
        return
    line = 1
    while head and not head.strip():
        line += file.read(len(head)).count(b"\n")
        head = file.peek()
    yield from _array_rows(_Text(file, line, chunk)) if head.lstrip().startswith(b"[") else _line_rows(file, line)


def _fault(head: bytes) -> str | None:
    """Why a file that starts with `head` holds no rows at all."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return f"the file looks like {name}"
    if b"\0" in head[: 1 << 16]:
        return "the file looks like binary data (it has NUL bytes); questions are JSON Lines or a JSON array, in UTF-8"
    lines = [line.strip() for line in head.split(b"\n", 64)[:64] if line.strip()]
    if len(lines) < 2 or not lines[0].startswith(b"{") or not lines[0].endswith((b"{", b"[", b",")):
        return None
    # A broken first line of JSONL may look the same; then lines that are whole rows follow, without commas.
    rows = sum(isinstance(_parse_line(line), dict) for line in lines)
    listed = [isinstance(_parse_line(line[:-1]), dict) for line in lines if line.endswith(b",")]
    if rows > sum(listed) or (lines[0].endswith(b",") and listed[0]):
        return None
    key = re.search(rb'"([^"\\]+)"\s*:\s*\[', head)
    part = f"its list {key[1].decode(errors='replace')!r}" if key else "its rows"
    return f"the file is one JSON object over several lines; make {part} a file: an array [...] or JSON Lines"


def _line_rows(file: BufferedReader, line: int) -> Iterator[tuple[int, object]]:
    for number in count(line):
        raw = file.readline(MAX_ROW + 1)
        if len(raw) > MAX_ROW and not raw.endswith(b"\n"):
            while (raw := file.readline(1 << 16)) and not raw.endswith(b"\n"):
                pass
            yield number, InputError(f"the line is longer than {MAX_ROW} bytes; write one row per line, or shorten it")
        elif raw.strip():
            yield number, _parse_line(raw)
        elif not raw:
            return


def _parse_line(raw: bytes) -> object | InputError:
    try:
        row: object = _DECODER.decode(raw.rstrip().decode())
        return row
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        return InputError(f"not valid UTF-8 at column {column} (byte {raw[error.start]:#x}); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return _explain(error)


def _explain(error: ValueError | RecursionError, line: int | None = None) -> InputError:
    """What the decoder's error means for a row: of JSONL, or of an array where it starts on `line`."""
    if isinstance(error, json.JSONDecodeError):
        place = f"at column {error.colno}" if line is None else f"on line {line + error.lineno - 1}"
        near = error.doc[max(0, error.pos - 12) : error.pos + 12]
        cure = next((cure for start, cure in CURES.items() if error.msg.startswith(start)), "check commas and brackets")
        return InputError(f"not valid JSON: {error.msg.removesuffix(' at')} {place}, near {near!r}; {cure}")
    if isinstance(error, RecursionError):
        return InputError("the row is nested too deep; questions need three levels")
    return error if isinstance(error, InputError) else InputError("a number is too long; write it as a string")


def _refuse(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON; write null, or a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_SPACE = re.compile(r"[ \t\r\n]*")
_OBJECT = re.compile(r"[,\n][ \t\r]*(\{)")  # where an element may start
_ROW = re.compile(r'\{\s*"(?:id|task|task_type)"\s*:')  # where one surely does: options start otherwise


class _Text:
    """The part of an array that is in memory: `text[pos:]` is not read yet and starts on `line`.

    Invalid bytes become lone surrogates, so that only their own row suffers.
    """

    def __init__(self, file: BufferedReader, line: int, chunk: int) -> None:
        self.file, self.line, self.chunk = file, line, chunk
        self.text, self.pos, self.limit = "", 0, MAX_ROW
        self.utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def more(self, size: int) -> bool:
        """Read `size` bytes or more; False at the end of the file."""
        data = self.file.read(max(size, 16 * self.chunk))
        self.text, self.pos = self.text[self.pos :] + self.utf8.decode(data), 0
        return bool(data)

    def advance(self, pos: int) -> None:
        self.line += self.text.count("\n", self.pos, pos)
        self.pos = pos

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.pos)
            self.advance(space.end() if space else self.pos)
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self.more(0):
                return ""

    def decode(self) -> tuple[object | InputError, int]:
        """The value at `pos` and where it ends; InputError where none can be read."""
        size = self.chunk
        while True:
            while len(self.text) - self.pos < size and self.more(size):
                pass
            # A copy, because an error costs time in proportion to its position in the whole text.
            window = self.text[self.pos : self.pos + size]
            whole = len(window) < size  # the file ends here
            try:
                value, end = _DECODER.raw_decode(window)
            except json.JSONDecodeError as error:
                unfinished = error.pos > len(window) - TOKEN or error.msg.startswith("Unterminated string")
                if whole or not unfinished:
                    self._lower_limit(size if whole else 0)
                    raise _explain(error, self.line) from None
            except (ValueError, RecursionError) as error:
                raise _explain(error) from None
            else:
                # A number may go on: the decoder takes -1 from "-1.", which may become -1.5.
                if whole or end < len(window) - TOKEN:
                    return _checked(value, window[:end]), self.pos + end
            if size >= self.limit:
                self._lower_limit(size)
                raise InputError(f"the row does not end within {size} characters; close its brackets and quotes")
            size = min(4 * size, self.limit)

    def _lower_limit(self, size: int) -> None:
        """After a row of `size` characters that has no end: many such rows must not cost that much each."""
        if size > MIN_LIMIT:
            self.limit = max(min(size, self.limit) // 4, MIN_LIMIT)

    def resync(self) -> Generator[tuple[int, object], None, bool]:
        """Go on to the next element that is a row, reporting the broken ones before it; False where there is none."""
        while True:
            found = _OBJECT.search(self.text, self.pos)
            if not found:
                # A comma or line end with nothing but blanks behind it may be the start of a match.
                self.advance(max(self.pos, len(self.text.rstrip(" \t\r")) - 1))
                if not self.more(0):
                    return False
                continue
            self.advance(found.start(1))
            try:
                value, end = self.decode()
            except InputError as error:
                if _ROW.match(self.text, self.pos):
                    yield self.line, error
                self.advance(self.pos + 1)
                continue
            # The options of the broken row have a text too.
            if not isinstance(value, dict) or ("choice_id" not in value and ("id" in value or "text" in value)):
                return True
            self.advance(end)


def _checked(value: object, source: str) -> object | InputError:
    """`value`, or InputError where the text that it was decoded from had invalid bytes."""
    try:
        source.encode()
    except UnicodeEncodeError as error:
        byte = ord(source[error.start]) & 0xFF
        return InputError(f"not valid UTF-8, {error.start} characters into the row (byte {byte:#x}); save it as UTF-8")
    return value


def _array_rows(text: _Text) -> Iterator[tuple[int, object]]:
    """The elements of the array that `text` starts with. A comma before the closing bracket does no harm."""
    text.peek()
    text.advance(text.pos + 1)
    after_row = False
    while True:
        last = text.line
        char = text.peek()
        if not char:
            yield last, InputError("the array is not closed; add ] at the end, or look whether rows are lost there")
            return
        if char == "]":
            text.advance(text.pos + 1)
            if not text.peek():
                return
            fault = InputError("text follows the end of the array; write one array, or JSON Lines")
        elif char == "," and after_row:
            text.advance(text.pos + 1)
            after_row = False
            continue
        elif after_row:
            fault = InputError("a comma is missing before this row; write one between any two rows")
            if char == "{":  # nothing is wrong with the row itself
                yield text.line, fault
                after_row = False
                continue
        elif char == "[":  # not decoded, because it may hold all rows that follow
            fault = InputError("a row must be an object, this is a list; take its brackets away")
        else:
            try:
                value, end = text.decode()
            except InputError as error:
                fault = error
            else:
                yield text.line, value
                text.advance(end)
                after_row = True
                continue
        yield text.line, fault
        after_row = False
        if not (yield from text.resync()):
            return


class _Seen:
    """64-bit hash -> place of its first row, by linear probing in two arrays: 24 to 48 bytes a row, a dict takes 150.

    Among a million ids two share a hash once in 40 million files.
    """

    def __init__(self) -> None:
        self.count = 0
        self.hashes, self.places = array("Q", bytes(1 << 13)), array("Q", bytes(1 << 13))

    def first(self, key: bytes, place: int) -> int:
        """The place (over 0) that `key` came with before, else 0; the first 8 bytes of `key` are used."""
        if 3 * self.count >= 2 * len(self.places):
            old = self.hashes, self.places
            self.hashes, self.places = (array("Q", bytes(16 * len(old[0]))) for _ in old)
            for known, at in zip(*old, strict=True):
                if at:
                    self._put(known, at)
        earlier = self._put(int.from_bytes(key[:8], "little"), place)
        self.count += not earlier
        return earlier

    def _put(self, key: int, place: int) -> int:
        mask = len(self.places) - 1
        slot = key & mask
        while (earlier := self.places[slot]) and self.hashes[slot] != key:
            slot = (slot + 1) & mask
        if not earlier:
            self.hashes[slot], self.places[slot] = key, place
        return earlier


def read_questions(
    spec: str, out: Path, selection: Selection, on_error: Callable[[RowError], None], block_rows: int = 512
) -> InputSummary:
    """Check every row of the files that `spec` names, in order, and write the selected ones to blocks in `out`.

    `row_index` counts the selected rows from 0 over all files. Each bad row goes to `on_error`; of rows with the
    same id the first counts. A block holds `block_rows` questions, fewer where they are long.
    Raises InputError where no row is left, StoreError where `out` cannot be written.
    """
    _check(selection)
    paths = find_inputs(spec)
    _clear(out)
    counts: Counter[str] = Counter()
    by_task: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    longest: Counter[str] = Counter()
    errors: list[RowError] = []  # the first one only
    missing = set(selection.ids or ())
    wanted, contents = _chooser(selection), _Seen()
    blocks: list[str] = []
    block: list[Question] = []
    block_size = 0

    def refuse(error: RowError) -> None:
        if not errors:
            errors.append(error)
        on_error(error)

    for question in _valid_rows(paths, counts, missing, refuse):
        if not wanted(question):
            continue
        counts["rows"] += 1
        size = len(question.text) + len(question.context or "") + sum(map(len, question.choices))
        by_task[question.task] += 1
        characters[question.task] += size
        longest[question.task] = max(longest[question.task], size)
        counts["gold"] += question.gold is not None
        counts["repeated"] += contents.first(question.hash, 1)
        block.append(question)
        block_size += size
        if len(block) >= block_rows or block_size >= BLOCK_CHARACTERS:
            blocks.append(_write(block, out, len(blocks)))
            block, block_size = [], 0
        if isinstance(selection.limit, int) and counts["rows"] == selection.limit:
            missing.clear()  # whether they stand further on is not known
            break
    if block:
        blocks.append(_write(block, out, len(blocks)))
    if not counts["valid"]:
        first = errors[0]
        raise InputError(f"no usable row in {spec!r}; first error, {first.file} line {first.line}: {first.message}")
    if not blocks:
        raise InputError(f"none of the {counts['valid']} valid rows in {spec!r} is selected; {_tell(selection)}")
    return InputSummary(
        rows=counts["rows"],
        by_task=dict(by_task),
        characters=dict(characters),
        bad=counts["bad"],
        duplicates=counts["duplicates"],
        repeated_content=counts["repeated"],
        files=counts["files"],
        blocks=blocks,
        with_gold=counts["gold"],
        longest=dict(longest),
        missing_ids=sorted(missing),
    )


def iter_blocks(blocks: Iterable[str]) -> Iterator[list[Question]]:
    """The questions of each block (`InputSummary.blocks`); StoreError where one cannot be read."""
    import pyarrow.parquet as pq

    for block in blocks:
        try:
            table = pq.ParquetFile(block).read()
        except (OSError, ValueError) as error:  # pyarrow's own errors are among ValueError
            reason = " ".join(str(error).split())
            raise StoreError(f"{block} cannot be read: {reason}; run the reading step again") from error
        yield from_table(table)


def _valid_rows(
    paths: list[Path], counts: Counter[str], missing: set[str], refuse: Callable[[RowError], None]
) -> Iterator[Question]:
    """The valid rows of all files, with `counts["rows"]` as row_index; the ids that are met leave `missing`."""
    ids = _Seen()
    # A name that is not UTF-8 could be written into no record.
    names = [str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for path in paths]
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        counts["files"] += 1
        for line, row in iter_rows(path):
            try:
                if isinstance(row, InputError):
                    raise row
                question = parse_question(row, counts["rows"], name, line)
                key = hashlib.blake2b(repr(question.id).encode(), digest_size=8).digest()
                if earlier := ids.first(key, number << 40 | line):
                    counts["duplicates"] += 1
                    place = f"line {earlier & (1 << 40) - 1}"
                    if earlier >> 40 != number:
                        place += f" of {names[earlier >> 40]}"
                    raise InputError(f"id {question.id!r} is there already on {place}; give every row its own id")
            except InputError as error:
                counts["bad"] += 1
                row_id = readable_id(row)
                if row_id is not None:
                    missing.discard(str(row_id))
                refuse(RowError(name, line, row_id, "InputError", str(error)))
                continue
            counts["valid"] += 1
            missing.discard(str(question.id))
            yield question


def _check(selection: Selection) -> None:
    if selection.task not in (None, *TASKS):
        raise InputError(unknown("task", selection.task, TASKS))
    limit = selection.limit
    if limit is not None and not (limit >= 1 if isinstance(limit, int) else 0 < limit < 1):
        raise InputError(f"limit {limit} is no selection; write a number of rows from 1, or a share between 0 and 1")


def _chooser(selection: Selection) -> Callable[[Question], bool]:
    """Whether the selection has a question, asked once for each in input order; an int limit is left to the caller."""
    limit, task, ids = selection
    met: Counter[str] = Counter()

    def wanted(question: Question) -> bool:
        if task not in (None, question.task) or (ids is not None and str(question.id) not in ids):
            return False
        if not isinstance(limit, float):
            return True
        k = met[question.task]
        met[question.task] += 1
        return math.floor((k + 1) * limit) > math.floor(k * limit)

    return wanted


def _tell(selection: Selection) -> str:
    ids = ", ".join(sorted(selection.ids or ())[:5])
    asked = {"limit": selection.limit, "task": selection.task, "ids": ids}
    return "widen " + ", ".join(f"{name} ({value})" for name, value in asked.items() if value is not None)


def _clear(out: Path) -> None:
    """Make the folder `out`, without the blocks of an earlier run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob("block-*.parquet"):
            stale.unlink()
    except OSError as error:
        raise StoreError(f"{out} cannot hold the blocks: {error.strerror}; name another folder") from error


def _write(block: list[Question], out: Path, number: int) -> str:
    import pyarrow.parquet as pq

    path = str(out / f"block-{number:05d}.parquet")
    try:
        pq.write_table(to_table(block), path, compression="zstd")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}; free space there or name another folder") from error
    return path
