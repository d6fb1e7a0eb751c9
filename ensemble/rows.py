"""Rows of a question file with their lines, streaming: JSONL, a JSON array, Parquet or CSV, told apart by content."""

import codecs
import json
import re
from collections.abc import Generator, Iterator
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import NoReturn

from ensemble import tabular
from ensemble.errors import InputError
from ensemble.files import reason

MAX_ROW = 64 << 20  # bytes of a JSONL line, characters of an array's element
CHUNK = 4096  # characters of an array that are decoded at first: most elements fit
MIN_LIMIT = 1 << 20  # characters that an array's element may always have, whatever came before it
TOKEN = 16  # a fault so near the end of what was read may be a token that is cut: \ud83d\ude00 or -Infinity

# First bytes of what people mistake for a question file.
MAGIC = {
    b"\x1f\x8b": "gzip: decompress it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "zstd: decompress it first (unzstd)",
    b"PK\x03\x04": "a zip archive: unpack it first",
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


def iter_rows(path: Path, chunk: int = CHUNK) -> Iterator[tuple[int, object | InputError]]:
    """(line from 1, parsed JSON value or what is wrong there) for each row of a file; a row over several lines counts
    from the first, one of Parquet by its number. A file that cannot be used at all gives one error."""
    line, empty = 1, True
    try:
        file: BufferedReader = path.open("rb", 1 << 20)  # type: ignore[assignment]
        with file:
            for line, row in _rows(file, path, chunk):
                empty = False
                yield line, row
    except OSError as error:
        yield line, InputError(f"cannot be read: {reason(error)}; check the file and its permissions")
        return
    if empty:
        yield 1, InputError("the file has no rows; write one JSON object per line, or remove the file")


def _rows(file: BufferedReader, path: Path, chunk: int) -> Iterator[tuple[int, object]]:
    if file.peek(4).startswith(b"PAR1"):
        yield from tabular.parquet_rows(path)
        return
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
    if delimiter := tabular.csv_delimiter(head, path):
        yield from tabular.csv_rows(file, line, delimiter)
    else:
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
