"""The reading step: question files in, Parquet blocks of checked questions out, in one streaming pass.

Files are JSONL or one JSON array, told apart by their content. A bad row is reported with its line and never stops
the rows after it. Memory does not grow with the files but for 50 to 100 bytes a row, to find what is there twice.
"""

import difflib
import glob
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from ensemble.errors import InputError

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
        with path.open("rb", buffering=1 << 20) as file:
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
    first, second = [*(line.strip() for line in head.split(b"\n") if line.strip()), b"", b""][:2]
    if first.startswith(b"{") and first.endswith((b"{", b"[", b",")) and second:
        # A complete first line is a row, and so is the second where only the first is broken.
        if all(isinstance(_parse_line(line), InputError) for line in (first.rstrip(b","), first, second)):
            key = re.search(rb'"([^"\\]+)"\s*:\s*\[', head)
            where = f"its list {key[1].decode(errors='replace')!r}" if key else "the rows"
            return f"the file is one JSON object over several lines; put {where} in a file as an array [...] or JSON Lines"
    return None


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
        return _DECODER.decode(raw.decode())
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
        self.text, self.pos = self.text[self.pos :] + self.utf8.decode(data, final=not data), 0
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
                unfinished = error.pos > len(window) - 16 or error.msg.startswith("Unterminated string")
                if whole or not unfinished:
                    raise _explain(error, self.line) from None
            except (ValueError, RecursionError) as error:
                raise _explain(error) from None
            else:
                if whole or end < len(window):  # else it may be the first half of a number
                    return _checked(value, window[:end]), self.pos + end
            if size >= self.limit:
                self.limit = max(self.limit // 4, 1 << 20)  # rows without an end must not cost so much each time
                raise InputError(f"the row does not end within {size} characters; close its brackets and quotes")
            size = min(4 * size, self.limit)
