"""The score store: what a model once said is never computed again.

    STORE/schema.json                            {"schema": 2}
    STORE/members/<key>.json                     what the key stands for, for people
    STORE/scores/<key>/<segment>.parquet         one row per question: orders x options log-probabilities
    STORE/samples/<key>/<segment>.parquet        one row per generated text

A member's key is semantic (`ensemble.plan.member_description`), a row's is its question's content hash. Segments are
written by one writer per stage actor under a unique, time-ordered name, in one step; of duplicate rows the first
by (segment name, row) counts, so a replay gives the same values whatever ran at the same time. STORE is a folder or
s3://bucket/folder, gs://bucket/folder.
"""

import functools
import io
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ensemble.errors import StoreError
from ensemble.evidence import merge_scores
from ensemble.files import ahead, fault, location, parquet_file, reason, whole_file, write_atomically
from ensemble.records import Order, PromptFacts, Sample, Score

SCHEMA = 2
GROUP_ROWS = 4096  # rows that a look-up decodes at once
CACHED_BYTES = 128 << 20  # of decoded row groups; four options in four orders take 170 bytes

Kind = Literal["scores", "samples"]
KINDS: tuple[Kind, ...] = ("scores", "samples")
HASH = PromptFacts._fields.index("hash")
NUMBERS = tuple(name for name in PromptFacts._fields if name != "hash")


def open_store(path: str | Path) -> Path:
    """The store's folder, made where it is new. Raises StoreError where it cannot be used."""
    root = location(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        marker = root / "schema.json"
        if not marker.exists():
            write_atomically(marker, json.dumps({"schema": SCHEMA}).encode())
        found = json.loads(marker.read_text())["schema"]
    except OSError as e:
        raise StoreError(f"store {root}: {reason(e)}; give a writable folder with --set store.path=DIR") from None
    except (ValueError, KeyError):
        raise StoreError(f'store {root}: schema.json is damaged; restore it as {{"schema": {SCHEMA}}}') from None
    if found != SCHEMA:
        raise StoreError(f"store {root} has schema {found}, this version reads {SCHEMA}: give another store.path")
    return root


def is_store(path: str | Path) -> bool:
    """Whether a store is there already. Raises StoreError where that cannot be known."""
    try:
        return (location(path) / "schema.json").is_file()
    except OSError as e:
        raise StoreError(f"store {path}: {reason(e)}") from None


class StoreWriter:
    """Collects rows and writes a segment per member when `flush` is called or `flush_seconds` have passed."""

    def __init__(self, root: Path, flush_seconds: float) -> None:
        self._root, self._flush_seconds = root, flush_seconds
        self._rows: dict[tuple[Kind, str], list[dict[str, Any]]] = {}
        self._last = time.monotonic()

    def add(self, key: str, question_hash: bytes, value: Score | Sample) -> None:
        kind: Kind = "scores" if isinstance(value, Score) else "samples"
        row = _score_row(value) if isinstance(value, Score) else _sample_row(value)
        self._rows.setdefault((kind, key), []).append({"hash": question_hash} | row)

    def flush_if_due(self) -> None:
        if time.monotonic() - self._last >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Everything added so far is durable when this returns. Raises StoreError; the rows are kept for a retry."""
        for kind, key in list(self._rows):
            folder = self._root / kind / key
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
            write_segment(folder / name, kind, self._rows[kind, key])
            del self._rows[kind, key]
        self._last = time.monotonic()


class StoreReader:
    """Look-ups in one member's rows by question hash, over a sorted index of 16-byte keys.

    The index takes 24 bytes a row; decoded row groups live in a bounded cache, so memory does not grow with the store.
    """

    def __init__(self, root: Path, kind: Kind, key: str) -> None:
        self._kind = kind
        self.segments = segments(root, kind, key)
        hashes, places = [], []
        for s, keys in enumerate(ahead(_hashes, self.segments, root)):
            hashes.append(keys)
            n = len(keys)
            places.append(np.stack([np.full(n, s, dtype=np.int32), np.arange(n, dtype=np.int32)], axis=1))
        keys = np.concatenate(hashes) if hashes else np.empty(0, dtype="S16")
        order = np.argsort(keys, kind="stable")  # stable: the first segment's row stays first
        self._keys = keys[order]
        self._places = np.concatenate(places)[order] if places else np.empty((0, 2), dtype=np.int32)
        self._groups: OrderedDict[tuple[int, int], tuple[int, _Scores | _Samples]] = OrderedDict()  # with its bytes
        self._cached = 0
        self._opened: tuple[int, Any] = (-1, None)  # the segment that was read last

    def __len__(self) -> int:
        return len(self._keys)

    def scores(self, hashes: Sequence[bytes]) -> list[Score | None]:
        """Per question all its stored orders merged, or None."""
        found: list[Score | None] = []
        for rows in self._rows(hashes):
            score: Score | None = None
            for row in rows:
                score = merge_scores(score, row)
            found.append(score)
        return found

    def samples(self, hashes: Sequence[bytes], seed: int) -> list[tuple[Sample, ...]]:
        """Per question the texts that were generated under that seed, by index; of duplicates the first counts."""
        found = []
        for rows in self._rows(hashes):
            by_index = {row.index: row for row in reversed(rows) if row.seed == seed}
            found.append(tuple(by_index[index] for index in sorted(by_index)))
        return found

    def _rows(self, hashes: Sequence[bytes]) -> Iterator[list[Any]]:
        wanted = np.array(hashes, dtype="S16")
        left = np.searchsorted(self._keys, wanted, "left")
        right = np.searchsorted(self._keys, wanted, "right")
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            yield [self._group(s, r // GROUP_ROWS)[r % GROUP_ROWS] for s, r in self._places[a:b].tolist()]

    def _group(self, segment: int, number: int) -> "_Scores | _Samples":
        if (segment, number) not in self._groups:
            table = self._read(segment, number)
            self._cached += table.nbytes
            group = _Scores(table) if self._kind == "scores" else _Samples(table)
            self._groups[segment, number] = table.nbytes, group
            while self._cached > CACHED_BYTES and len(self._groups) > 1:
                self._cached -= self._groups.popitem(last=False)[1][0]
        self._groups.move_to_end((segment, number))
        return self._groups[segment, number][1]

    def _read(self, segment: int, number: int) -> Any:
        try:
            if self._opened[0] != segment:
                self._opened = segment, parquet_file(self.segments[segment])
            return self._opened[1].read_row_group(number)
        except Exception as e:
            raise _damaged(self.segments[segment], e) from None


class Verified(NamedTuple):
    """rows: of the segments that can be read. damaged: one line for each segment that cannot."""

    rows: int
    damaged: list[str]


def verify(root: Path, kind: Kind, key: str) -> Verified:
    """Reads every row of a member."""
    rows, damaged = 0, []
    for path in segments(root, kind, key):
        try:
            rows += len(_read(path))
        except StoreError as e:
            damaged.append(str(e))
    return Verified(rows, damaged)


def compact(root: Path, kind: Kind, key: str) -> int:
    """Makes one segment of all, in the order in which rows count; returns the rows. Not while a run uses the store.

    The new segment takes the last one's time, so that it still comes before any later one; a crash between
    writing it and removing the old ones leaves duplicates, which never change what is read.
    """
    old = segments(root, kind, key)
    if len(old) < 2:
        return sum(len(_read(path)) for path in old)
    name = f"{old[-1].name.split('-')[0]}-{uuid.uuid4().hex[:8]}.parquet"
    rows = export(root, kind, key, old[-1].with_name(name))
    try:
        for path in old:
            path.unlink()
    except OSError as e:
        raise StoreError(f"store {root}: {reason(e)}; check its permissions, and run gc again") from None
    return rows


def export(root: Path, kind: Kind, key: str, file: Path) -> int:
    """Writes a member's rows, in the order in which they count, to one Parquet file; returns the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    waiting = schema(kind).empty_table()
    try:
        with whole_file(file, "wb") as out, pq.ParquetWriter(out, schema(kind), compression="zstd") as writer:
            for table in ahead(_read, segments(root, kind, key), root):
                waiting = pa.concat_tables([waiting, table])
                whole = len(waiting) - len(waiting) % GROUP_ROWS  # look-ups rely on full row groups
                if whole:
                    writer.write_table(waiting.slice(0, whole), row_group_size=GROUP_ROWS)
                    waiting = waiting.slice(whole)
                    rows += whole
            if len(waiting):
                writer.write_table(waiting)
    except StoreError:
        raise
    except OSError as e:
        raise StoreError(f"{file} cannot be written: {reason(e)}; free space or permissions, and try again") from None
    return rows + len(waiting)


def segments(root: Path, kind: Kind, key: str) -> list[Path]:
    """A member's segments in the order in which their rows count."""
    return sorted((root / kind / key).glob("*.parquet"))


def describe_member(root: Path, key: str, description: dict[str, Any]) -> None:
    """Keeps what a key stands for, for `store ls` and for people."""
    path = root / "members" / f"{key}.json"
    if not path.exists():
        write_atomically(path, json.dumps(description, indent=1, ensure_ascii=False, sort_keys=True).encode())


def schema(kind: Kind) -> Any:
    """The Arrow schema of a segment."""
    import pyarrow as pa

    common = [("prompt_hash", pa.string()), *((f"prompt_{name}", pa.int32()) for name in NUMBERS)]
    if kind == "scores":
        columns = [
            ("hash", pa.binary(16)),
            ("orders", pa.list_(pa.int8())),  # [orders * options], position by position
            ("logprobs", pa.list_(pa.float32())),  # [orders * options], option by option
            ("tokens", pa.list_(pa.int32())),  # [options]
            ("unconditional", pa.list_(pa.float32())),  # [options] or null
        ]
    else:
        columns = [
            ("hash", pa.binary(16)),
            ("seed", pa.int64()),
            ("index", pa.int32()),
            ("text", pa.string()),
            ("tokens", pa.int32()),
            ("finish", pa.string()),
        ]
    return pa.schema(columns + common)


def write_segment(path: Path, kind: Kind, rows: Sequence[dict[str, Any]]) -> None:
    """One Parquet file, complete or absent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema(kind))
    pq.write_table(table, buffer, compression="zstd", row_group_size=GROUP_ROWS)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as e:
        raise StoreError(
            f"store {path.parent}: {reason(e)}; free space or permissions, then run the same command again: "
            "what is stored is not computed again"
        ) from None


def _hashes(path: Path) -> Any:
    column = _read(path, columns=["hash"])["hash"].combine_chunks()
    return np.frombuffer(column.buffers()[1], dtype="S16", count=len(column), offset=column.offset * 16)


def _read(path: Path, columns: list[str] | None = None) -> Any:
    try:
        return parquet_file(path).read(columns)
    except Exception as e:
        raise _damaged(path, e) from None


def _damaged(path: Path, error: Exception) -> StoreError:
    if unreachable := fault(error):  # nothing is wrong with the segment
        return StoreError(f"{path} cannot be read: {unreachable}; then run the same command again")
    return StoreError(f"{path} cannot be read ({reason(error)}); delete it: only its rows are computed again")


def _score_row(score: Score) -> dict[str, Any]:
    return {
        "orders": [p for order in score.orders for p in order],
        "logprobs": score.logprobs.ravel().tolist(),
        "tokens": score.tokens.tolist(),
        "unconditional": None if score.unconditional is None else score.unconditional.tolist(),
    } | _prompt_columns(score)


def _sample_row(sample: Sample) -> dict[str, Any]:
    return {
        "seed": sample.seed,
        "index": sample.index,
        "text": sample.text,
        "tokens": sample.tokens,
        "finish": sample.finish,
    } | _prompt_columns(sample)


def _prompt_columns(value: Score | Sample) -> dict[str, Any]:
    return {f"prompt_{name}": fact for name, fact in value.prompt._asdict().items()}


class _Lists:
    """A column of lists; null is an empty one."""

    def __init__(self, column: Any) -> None:
        array = column.combine_chunks()
        self._offsets, self._values = array.offsets.to_numpy(), array.values.to_numpy()

    def __getitem__(self, row: int) -> Any:
        return self._values[self._offsets[row] : self._offsets[row + 1]].copy()


class _Prompts:
    """The prompt's columns of a row group."""

    def __init__(self, table: Any) -> None:
        self._hashes = np.array(table["prompt_hash"].to_pylist(), dtype="S")
        self._numbers = np.stack([table[f"prompt_{name}"].to_numpy() for name in NUMBERS], axis=1)

    def __getitem__(self, row: int) -> PromptFacts:
        facts = self._numbers[row].tolist()
        facts.insert(HASH, self._hashes[row].decode())
        return PromptFacts(*facts)


class _Scores:
    """A row group's columns as arrays; a Score is made of them when it is asked for."""

    def __init__(self, table: Any) -> None:
        names = ("orders", "logprobs", "tokens", "unconditional")
        self._orders, self._logprobs, self._tokens, self._unconditional = (_Lists(table[name]) for name in names)
        self._prompts = _Prompts(table)

    def __getitem__(self, row: int) -> Score:
        tokens, unconditional = self._tokens[row], self._unconditional[row]
        return Score(
            orders=_orders(self._orders[row].tobytes(), len(tokens)),
            logprobs=self._logprobs[row].reshape(-1, len(tokens)),
            tokens=tokens,
            unconditional=unconditional if len(unconditional) else None,
            prompt=self._prompts[row],
        )


@functools.lru_cache(4096)  # few differ
def _orders(flat: bytes, n: int) -> tuple[Order, ...]:
    return tuple(tuple(flat[i : i + n]) for i in range(0, len(flat), n))


class _Samples:
    """A row group's columns; a Sample is made of them when it is asked for."""

    def __init__(self, table: Any) -> None:
        self._columns = [table[name].combine_chunks() for name in ("text", "tokens", "finish", "seed", "index")]
        self._prompts = _Prompts(table)

    def __getitem__(self, row: int) -> Sample:
        text, tokens, finish, seed, index = (column[row].as_py() for column in self._columns)
        return Sample(text, tokens, finish, seed, index, self._prompts[row])
