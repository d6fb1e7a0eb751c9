"""Files and folders, local or in an object store (s3://, gs://): what is written appears whole or not at all.

`location` makes a path of what a config or a command line names, and everything after it is a `Path`: an `ObjectPath`
is one too. Object stores know neither folders nor renaming: a file is sent under its final name in one step, after it
was complete on this machine. Keys, region and endpoint come from AWS_* and GOOGLE_* variables or the providers' files.
"""

import errno
import functools
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, Literal, TextIO, TypeVar

from ensemble.errors import ConfigError, StoreError

A = TypeVar("A")
B = TypeVar("B")

SCHEMES = ("s3", "gs")
ENDPOINTS = {"s3:": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs:": ("STORAGE_EMULATOR_HOST",)}
CONNECT_SECONDS, REQUEST_SECONDS = 3, 30
ATTEMPTS = 4  # of a request to S3: about 7 s where nobody answers
GOOGLE_SECONDS = 10  # for all attempts of a request to Google
REQUESTS = 8  # to an object store at a time
STREAM_BYTES = 8 << 20  # of a stream from an object store: one request each

# What in a provider's error says what is wrong, and that in plain words with the cure.
FAULTS = {
    "NO_SUCH_BUCKET": "the bucket does not exist: create it, or check its name",
    "ACCESS_DENIED": "access denied: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
    "INVALID_ACCESS_KEY_ID": "the key is not known there: check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SIGNATURE_DOES_NOT_MATCH": "the secret is wrong: check AWS_SECRET_ACCESS_KEY",
    "EXPIRED_TOKEN": "the session has ended: log in again (AWS_SESSION_TOKEN)",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "NETWORK_CONNECTION": "no connection: check the network, AWS_ENDPOINT_URL and AWS_REGION",
    "OAuth2 access token": "no Google credentials: set GOOGLE_APPLICATION_CREDENTIALS; a pod's account needs a role",
    "PERMISSION_DENIED": "access denied: check GOOGLE_APPLICATION_CREDENTIALS, in a pod its account's role",
    "UNAUTHENTICATED": "access denied: check GOOGLE_APPLICATION_CREDENTIALS",
    "Bucket '": "the bucket does not exist: create it, or check its name",
}


def location(name: str | Path) -> Path:
    """The path of a local file or folder, s3://bucket/key or gs://bucket/key. Raises ConfigError for other schemes."""
    text = str(name)
    scheme, slashes = found.groups() if (found := re.match(r"(\w[\w+.-]+):(/+)", text)) else ("", "")
    if scheme in SCHEMES:  # a Path has swallowed one of the slashes
        path = ObjectPath(text)
        if len(path.parts) < 2:
            raise ConfigError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER")
        return path
    if slashes == "//":
        raise ConfigError(f"{text}: {scheme}:// is not known here; give a local path, s3://... or gs://...")
    return Path(text)


class ObjectPath(PosixPath):
    """An object, or the folder that its name's beginning stands for. OSError's `strerror` is one plain line.

    The part of `Path` that Quorum uses; `open` only reads, and names are taken literally (no %20).
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def key(self) -> str:
        """The name that Arrow's file system wants: bucket/key."""
        return "/".join(self.parts[1:])

    @property
    def filesystem(self) -> Any:
        scheme, bucket = self.parts[:2]
        endpoint = next((os.environ[name] for name in ENDPOINTS[scheme] if os.environ.get(name)), "")
        return _filesystem(scheme, bucket, endpoint)

    def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *_: object) -> Any:
        assert mode in ("r", "rb"), "object stores take whole files: see whole_file"
        with _plainly(self):
            stream = self.filesystem.open_input_stream(self.key, buffer_size=STREAM_BYTES)
        file = io.BufferedReader(stream, buffering if buffering > 1 else 1 << 20)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding=encoding)

    def read_bytes(self) -> bytes:
        with _plainly(self), self.filesystem.open_input_file(self.key) as file:
            data: bytes = file.read()
        return data

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        with _plainly(self, FAULTS["NO_SUCH_BUCKET"]), self.filesystem.open_output_stream(self.key) as file:
            file.write(data)  # nothing is visible before the end
        return len(data)

    def exists(self) -> bool:
        return self._kind() != "NotFound"

    def is_file(self) -> bool:
        return self._kind() == "File"

    def is_dir(self) -> bool:
        return self._kind() == "Directory"

    def _kind(self) -> str:
        with _plainly(self):
            kind: str = self.filesystem.get_file_info(self.key).type.name
        return kind

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as it holds an object."""

    def resolve(self, strict: bool = False) -> "ObjectPath":
        return self

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _plainly(self):
                self.filesystem.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:  # type: ignore[override]
        """The objects under this folder (no folders) whose name fits; `*` and `**` pass over names that start with ."""
        from pyarrow.fs import FileSelector, FileType

        wanted = pattern.split("/")
        selector = FileSelector(self.key, allow_not_found=True, recursive=len(wanted) > 1 or "**" in wanted)
        with _plainly(self):
            found = self.filesystem.get_file_info(selector)
        for info in found:
            name = info.path.removeprefix(self.key + "/")
            if info.type == FileType.File and _fits(name.split("/"), wanted):
                yield self / name


def _fits(parts: list[str], pattern: list[str]) -> bool:
    if not pattern or not parts:
        return parts == pattern or pattern == ["**"]
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (not hidden and _fits(parts[1:], pattern))
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


@functools.cache
def _filesystem(scheme: str, bucket: str, endpoint: str) -> Any:
    from pyarrow import fs

    protocol, _, host = endpoint.rpartition("://")
    if scheme == "gs:":
        limit = timedelta(seconds=GOOGLE_SECONDS)
        emulator = {"anonymous": True, "scheme": protocol or "http", "endpoint_override": host} if host else {}
        return fs.GcsFileSystem(retry_time_limit=limit, **emulator)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        endpoint_override=host or None,
        scheme=protocol or None,
        region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket)),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # small files go in one request
    )


@contextmanager
def _plainly(path: ObjectPath, absent: str = "there is no such object") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, absent, str(path)) from None
    except OSError as e:
        raise OSError(e.errno or errno.EIO, reason(e), str(path)) from e


def fault(error: Exception) -> str | None:
    """What an object store's client says, in one line with the cure where it is known; None for other errors."""
    text = " ".join(str(error).split())
    known = next((plain for sign, plain in FAULTS.items() if sign in text), None)
    return known or (text[:300] if "AWS Error" in text or "google::cloud" in text else None)


def reason(error: Exception) -> str:
    """What is wrong, in one line, of an error of the system, of Arrow or of an object store's client."""
    return fault(error) or getattr(error, "strerror", None) or " ".join(str(error).split())[:300]


def parquet_file(path: Path, streamed: bool = False) -> Any:
    """A pyarrow.parquet.ParquetFile. Of an object it fetches a row group's columns in one request.

    streamed: for `iter_batches` over row groups of any size, a part of a column at a time.
    """
    import pyarrow.parquet as pq

    size = STREAM_BYTES if streamed else 0
    if isinstance(path, ObjectPath):
        return pq.ParquetFile(path.key, filesystem=path.filesystem, pre_buffer=not streamed, buffer_size=size)
    return pq.ParquetFile(path, buffer_size=size)


def ahead(function: Callable[[A], B], items: Iterable[A], place: Path) -> Iterator[B]:
    """`map` over items that are read from or written to `place`: several at a time where that is an object store,
    which takes tens of ms for each answer."""
    if not isinstance(place, ObjectPath):
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(REQUESTS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= REQUESTS:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def remove_tree(folder: Path) -> None:
    """Removes a folder and all in it, where it is there."""
    if not isinstance(folder, ObjectPath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with _plainly(folder):
        folder.filesystem.delete_dir_contents(folder.key, missing_dir_ok=True)


def lock_file(folder: Path) -> Path:
    """Where runs that write to `folder` lock each other out; for an object store only runs of this machine and user."""
    if not isinstance(folder, ObjectPath):
        return folder / ".lock"
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"quorum-{os.getuid()}-{digest}.lock")


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"]) -> Iterator[Any]:
    """A file that takes its place at `path`, durable, when the block ends without an error. Raises OSError."""
    encoding = "utf-8" if mode == "w" else None
    if isinstance(path, ObjectPath):
        with tempfile.NamedTemporaryFile(mode, encoding=encoding) as file:
            yield file
            file.flush()
            _send(Path(file.name), path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the name is durable too
    os.close(folder)


def _send(local: Path, path: ObjectPath) -> None:
    with open(local, "rb") as file:
        if local.stat().st_size == 0:  # cannot be mapped
            path.write_bytes(b"")
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                path.write_bytes(data)


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole and durable, or not at all. Raises OSError."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    with whole_file(path, "wb") as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file of the run folder that takes its place when the block ends without an error. Raises StoreError."""
    try:
        with whole_file(path, "w") as file:
            yield file
    except StoreError:
        raise
    except OSError as e:
        raise output_error(path.parent, e) from None


def output_error(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"output folder {folder}: {reason(error)}; free space, or give another with --output. "
        "Scores are in the store: the same command goes on from there"
    )


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")
