"""The reading step: question files in, Parquet blocks of checked questions out, in one streaming pass.

Files are JSONL, a JSON array, Parquet or CSV, on disk or in an object store. A bad row is reported with its line and
never stops the rows after it. Memory does not grow with the files but for 50 to 100 bytes a row, to find what is
there twice.
"""

import difflib
import glob
import hashlib
import itertools
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ensemble.errors import InputError, StoreError
from ensemble.files import ObjectPath, ahead, location, parquet_file, reason
from ensemble.names import unknown
from ensemble.questions import from_table, parse_question, readable_id, to_table
from ensemble.records import TASKS, Question, RowError
from ensemble.rows import iter_rows

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")  # of the question files in a folder
BLOCK_CHARACTERS = 16 << 20  # a block ends early at so much text, so that long rows do not pile up in memory


class Selection(NamedTuple):
    """Which valid rows to take. The filters `task` and `ids` (matched by str(id)) come first, then `limit`.

    limit: N takes the first N; a share 0 < f < 1 takes rows evenly from each task: the k-th (from 0) of a task iff
        floor((k + 1) f) > floor(k f).
    """

    limit: int | float | None = None
    task: str | None = None
    ids: frozenset[str] | None = None


GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly over [0, 1) (Weyl 1916)


class InputSummary(NamedTuple):
    """What was read. `rows` and all that is per task count the selected valid rows.

    characters, longest: total and maximum per task of the characters of text, context and options.
    bad: rows that went to `on_error`, whether or not the selection wanted them; duplicates: those of them whose id
        was there before.
    repeated_content: selected rows with the content of an earlier one under another id (no error).
    files: how many were opened. blocks: paths of the Parquet blocks, in row order. by_block: of each the rows per task.
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
    by_block: list[dict[str, int]]
    with_gold: int
    longest: dict[str, int]
    missing_ids: list[str]


def find_inputs(spec: str) -> list[Path]:
    """The files that a path, a glob or a folder (all question files in it) names, sorted; InputError for none."""
    if not spec.strip():
        raise InputError("the input is empty; name a file, a folder or a glob")
    path = location(spec)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [file for file in _walk(path) if file.suffix.lower() in SUFFIXES]
            if not found:
                kinds = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
                raise InputError(f"the folder {spec!r} holds no question file ({kinds}); name the file itself")
            return sorted(found)
        if files := sorted(_matching(path, spec)):
            return files
        names = _names(path.parent)
    except OSError as error:
        raise InputError(f"{spec!r} cannot be read: {reason(error)}; check the path and its permissions") from error
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    place = "" if isinstance(path, ObjectPath) else f" (from {os.getcwd()})"
    cure = f"did you mean {str(path.parent / near[0])!r}?" if near else f"check the path{place}"
    raise InputError(f"no file or folder matches {spec!r}; {cure}")


def _matching(path: Path, pattern: str) -> set[Path]:
    if not isinstance(path, ObjectPath):
        return {match for name in glob.glob(pattern, recursive=True) if (match := Path(name)).is_file()}
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if len(fixed) in (1, len(path.parts)):  # the bucket's name cannot be a pattern
        return set()
    return set(ObjectPath(*fixed).glob("/".join(path.parts[len(fixed) :])))


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and its folders; hidden ones are skipped. OSError where one is closed to us."""
    if isinstance(folder, ObjectPath):
        yield from folder.glob("**")
        return

    def refuse(error: OSError) -> NoReturn:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _names(folder: Path) -> list[str]:
    if isinstance(folder, ObjectPath):
        return [path.name for path in folder.glob("*")] if len(folder.parts) > 1 else []
    return os.listdir(folder) if folder.is_dir() else []


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
    spec: str,
    out: Path,
    selection: Selection,
    on_error: Callable[[RowError], None],
    block_rows: int = 512,
    distinct: bool = False,
) -> InputSummary:
    """Check every row of the files that `spec` names, in order, and write the selected ones to blocks in `out`.

    `row_index` counts the selected rows from 0 over all files. Each bad row goes to `on_error`; of rows with the
    same id the first counts. A block holds `block_rows` questions, fewer where they are long. distinct: a row whose
    options repeat is bad, because votes over orders of the options could not tell these apart.
    Raises InputError where no row is left, StoreError where `out` cannot be written.
    """
    _check(selection)
    paths = find_inputs(spec)
    _clear(out)
    counts: Counter[str] = Counter()
    by_task: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    longest: Counter[str] = Counter()
    by_block: list[dict[str, int]] = []
    errors: list[RowError] = []  # the first one only
    missing = set(selection.ids or ())

    def refuse(error: RowError) -> None:
        if not errors:
            errors.append(error)
        on_error(error)

    def selected() -> Iterator[tuple[Question, int]]:
        wanted, contents = _chooser(selection), _Seen()
        for question in _valid_rows(paths, counts, missing, refuse, distinct):
            if not wanted(question):
                continue
            counts["rows"] += 1
            size = len(question.text) + len(question.context or "") + sum(map(len, question.choices))
            characters[question.task] += size
            longest[question.task] = max(longest[question.task], size)
            counts["gold"] += question.gold is not None
            counts["repeated"] += contents.first(question.hash, 1)
            yield question, size
            if isinstance(selection.limit, int) and counts["rows"] == selection.limit:
                missing.clear()  # whether they stand further on is not known
                return

    def counted() -> Iterator[list[Question]]:
        for block in _blocks(selected(), block_rows):
            by_block.append(dict(Counter(question.task for question in block)))
            by_task.update(by_block[-1])
            yield block

    blocks = list(ahead(partial(_write, out), enumerate(counted()), out))
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
        by_block=by_block,
        with_gold=counts["gold"],
        longest=dict(longest),
        missing_ids=sorted(missing),
    )


def _blocks(questions: Iterable[tuple[Question, int]], block_rows: int) -> Iterator[list[Question]]:
    """Questions, which come with their characters, by the block."""
    block: list[Question] = []
    characters = 0
    for question, size in questions:
        block.append(question)
        characters += size
        if len(block) >= block_rows or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def iter_blocks(blocks: Iterable[str]) -> Iterator[list[Question]]:
    """The questions of each block (`InputSummary.blocks`); StoreError where one cannot be read."""
    paths = list(map(location, blocks))
    return map(from_table, ahead(_read, paths, paths[0])) if paths else iter(())


def _read(block: Path) -> Any:
    try:
        return parquet_file(block).read()
    except (OSError, ValueError) as error:  # pyarrow's own errors are among ValueError
        raise StoreError(f"{block} cannot be read: {reason(error)}; run the reading step again") from error


def _valid_rows(
    paths: list[Path], counts: Counter[str], missing: set[str], refuse: Callable[[RowError], None], distinct: bool
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
                if distinct:
                    _check_distinct(question.choices)
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


def _check_distinct(choices: tuple[str, ...]) -> None:
    seen: dict[str, int] = {}
    for i, choice in enumerate(choices):
        first = seen.setdefault(choice.strip(), i)
        if first != i:
            raise InputError(
                f"choices[{i}] repeats choices[{first}]: votes over orders of the options cannot tell them apart; "
                "correct one, or ask in one order (orders: identity)"
            )


def _check(selection: Selection) -> None:
    if selection.task not in (None, *TASKS):
        raise InputError(unknown("task", selection.task, TASKS))
    limit = selection.limit
    if limit is not None and not (limit >= 1 if isinstance(limit, int) else 0 < limit < 1):
        raise InputError(f"limit {limit} is no selection; write a number of rows from 1, or a share between 0 and 1")


def _chooser(selection: Selection) -> Callable[[Question], bool]:
    """Whether the selection has a question, asked once for each in input order; an int limit is left to the caller."""
    limit, task, ids = selection
    met: Counter[tuple[str, str | None]] = Counter()
    phases: dict[tuple[str, str | None], float] = {}
    groups: Counter[str] = Counter()

    def wanted(question: Question) -> bool:
        if task not in (None, question.task) or (ids is not None and str(question.id) not in ids):
            return False
        if not isinstance(limit, float):
            return True
        kind = question.task, question.group
        # Groups begin at different phases, so that many small ones together give their share too.
        if kind not in phases:
            phases[kind] = groups[question.task] * GOLDEN % 1
            groups[question.task] += 1
        phase = phases[kind]
        k = met[kind]
        met[kind] += 1
        return math.floor((k + 1) * limit + phase) > math.floor(k * limit + phase)

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
        raise StoreError(f"{out} cannot hold the blocks: {reason(error)}; name another folder") from error


def _write(out: Path, numbered: tuple[int, list[Question]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, block = numbered
    path = out / f"block-{number:05d}.parquet"
    buffer = pa.BufferOutputStream()
    pq.write_table(to_table(block), buffer, compression="zstd")
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {reason(error)}; free space there or name another folder"
        ) from error
    return str(path)
