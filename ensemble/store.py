"""The score store: what a model once said is never computed again.

    STORE/schema.json                            {"schema": 2}
    STORE/members/<key>.json                     what the key stands for, for people
    STORE/scores/<key>/<segment>.parquet         one row per question: orders x options log-probabilities
    STORE/samples/<key>/<segment>.parquet        one row per generated text

A member's key is semantic (`ensemble.plan.member_key`), a row's is its question's content hash. Segments are
written by one writer per stage actor under a unique, time-ordered name, in one step; of duplicate rows the first
by (segment name, row) counts, so a replay gives the same values whatever ran at the same time.
"""

import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ensemble.errors import StoreError
from ensemble.files import write_atomically
from ensemble.records import PromptFacts, Sample, Score
from ensemble.votes import merge

SCHEMA = 2
GROUP_ROWS = 4096  # rows that a look-up decodes at once
CACHED_GROUPS = 64

Kind = Literal["scores", "samples"]
KINDS: tuple[Kind, ...] = ("scores", "samples")


def open_store(path: str | Path) -> Path:
    """The store's folder, made where it is new. Raises StoreError where it cannot be used."""
    root = Path(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        marker = root / "schema.json"
        if not marker.exists():
            write_atomically(marker, json.dumps({"schema": SCHEMA}).encode())
        found = json.loads(marker.read_text())["schema"]
    except OSError as e:
        raise StoreError(f"store {root}: {e.strerror or e}; give a writable folder with --set store.path=DIR") from None
    except (ValueError, KeyError):
        raise StoreError(f'store {root}: schema.json is damaged; restore it as {{"schema": {SCHEMA}}}') from None
    if found != SCHEMA:
        raise StoreError(f"store {root} has schema {found}, this version reads {SCHEMA}: give another store.path")
    return root


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

    The index takes 24 bytes a row; decoded rows live in a bounded cache, so memory does not grow with the store.
    """

    def __init__(self, root: Path, kind: Kind, key: str) -> None:
        self._kind = kind
        self.segments = segments(root, kind, key)
        hashes, places = [], []
        for s, path in enumerate(self.segments):
            column = _read(path, columns=["hash"])["hash"].combine_chunks()
            n = len(column)
            hashes.append(np.frombuffer(column.buffers()[1], dtype="S16", count=n, offset=column.offset * 16))
            places.append(np.stack([np.full(n, s, dtype=np.int32), np.arange(n, dtype=np.int32)], axis=1))
        keys = np.concatenate(hashes) if hashes else np.empty(0, dtype="S16")
        order = np.argsort(keys, kind="stable")  # stable: the first segment's row stays first
        self._keys = keys[order]
        self._places = np.concatenate(places)[order] if places else np.empty((0, 2), dtype=np.int32)
        self._groups: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def scores(self, hashes: Sequence[bytes]) -> list[Score | None]:
        """Per question all its stored orders merged, or None."""
        found: list[Score | None] = []
        for rows in self._rows(hashes):
            score: Score | None = None
            for row in rows:
                score = merge(score, _score(row))
            found.append(score)
        return found

    def samples(self, hashes: Sequence[bytes], seed: int, index: int = 0) -> list[Sample | None]:
        """Per question the generated text of that seed and index, or None."""
        return [
            next((_sample(row) for row in rows if row["seed"] == seed and row["index"] == index), None)
            for rows in self._rows(hashes)
        ]

    def _rows(self, hashes: Sequence[bytes]) -> Iterable[list[dict[str, Any]]]:
        wanted = np.array(hashes, dtype="S16")
        left = np.searchsorted(self._keys, wanted, "left")
        right = np.searchsorted(self._keys, wanted, "right")
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            yield [self._row(int(s), int(r)) for s, r in self._places[a:b]]

    def _row(self, segment: int, row: int) -> dict[str, Any]:
        group = (segment, row // GROUP_ROWS)
        if group not in self._groups:
            if len(self._groups) >= CACHED_GROUPS:
                self._groups.popitem(last=False)
            self._groups[group] = self._decode(*group)
        self._groups.move_to_end(group)
        return self._groups[group][row % GROUP_ROWS]

    def _decode(self, segment: int, group: int) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.ParquetFile(self.segments[segment]).read_row_group(group).to_pylist()
        except Exception as e:
            raise _damaged(self.segments[segment], e) from None
        return rows


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
    temporary = old[-1].with_name(f".{name}.compacting")
    try:
        rows = export(root, kind, key, temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, old[-1].with_name(name))
        folder = os.open(temporary.parent, os.O_RDONLY)
        os.fsync(folder)  # the new segment must be there before the old ones go
        os.close(folder)
        for path in old:
            path.unlink()
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"store {root}: {e.strerror or e}; free space or permissions, and run gc again") from None
    return rows


def export(root: Path, kind: Kind, key: str, file: Path) -> int:
    """Writes a member's rows, in the order in which they count, to one Parquet file; returns the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    waiting = schema(kind).empty_table()
    with pq.ParquetWriter(file, schema(kind), compression="zstd") as writer:
        for path in segments(root, kind, key):
            waiting = pa.concat_tables([waiting, _read(path)])
            whole = len(waiting) - len(waiting) % GROUP_ROWS  # look-ups rely on full row groups
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=GROUP_ROWS)
                waiting = waiting.slice(whole)
                rows += whole
        if len(waiting):
            writer.write_table(waiting)
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

    numbers = (name for name in PromptFacts._fields if name != "hash")
    common = [("prompt_hash", pa.string()), *((f"prompt_{name}", pa.int32()) for name in numbers)]
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
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema(kind))
    pq.write_table(table, buffer, compression="zstd", row_group_size=GROUP_ROWS)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as e:
        raise StoreError(
            f"store {path.parent}: {e.strerror or e}; free space or permissions, then run the same command again: "
            "what is stored is not computed again"
        ) from None


def _read(path: Path, columns: list[str] | None = None) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except Exception as e:
        raise _damaged(path, e) from None


def _damaged(path: Path, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())[:200]
    return StoreError(f"{path} cannot be read ({reason}); delete it: only its rows are computed again")


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


def _prompt(row: dict[str, Any]) -> PromptFacts:
    return PromptFacts(*(row[f"prompt_{name}"] for name in PromptFacts._fields))


def _score(row: dict[str, Any]) -> Score:
    n = len(row["tokens"])
    flat = row["orders"]
    unconditional = row["unconditional"]
    return Score(
        orders=tuple(tuple(flat[i : i + n]) for i in range(0, len(flat), n)),
        logprobs=np.array(row["logprobs"], dtype=np.float32).reshape(-1, n),
        tokens=np.array(row["tokens"], dtype=np.int32),
        unconditional=None if unconditional is None else np.array(unconditional, dtype=np.float32),
        prompt=_prompt(row),
    )


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(row["text"], row["tokens"], row["finish"], row["seed"], row["index"], _prompt(row))
