"""What an engine needs of memory, before anything is loaded: weights, KV cache and the rest, against the chip's memory.

weights       = parameters * bits / 8, or the size of the files that are here; shared among tensor_parallel_size GPUs
KV cache      = 2 (K and V) * layers * kv_heads * head_dim * bytes for a token; a GPU holds at least one head of them
the rest      = RUNTIME a GPU, a round figure (see there); what vLLM logs when it starts is exact
room for KV   = gpu_memory_utilization * the GPU's memory - weights - the rest

vLLM refuses to start where the room does not hold one input of context_length.
"""

import json
import os
import re
from math import ceil
from pathlib import Path
from typing import NamedTuple

from ensemble import models
from ensemble.config import ModelConfig
from ensemble.errors import ModelError

GIB = 2**30

# GiB that torch reports as a GPU's total; data sheets say 24, 24, 16, 48, 40, 80, 80 and 141 GB, and ECC takes a part.
CHIPS = {
    "L4": 22.0,
    "A10G": 22.1,
    "T4": 14.7,
    "L40S": 44.4,
    "A100-40GB": 39.4,
    "A100-80GB": 79.2,
    "H100": 79.2,
    "H200": 139.8,
}
# GiB of a GPU for CUDA, NCCL, activations and CUDA graphs. Profiles that vLLM logged in public for models of 8 to 32
# billion parameters: 0.1 to 0.4 outside torch, 0.4 to 1.3 for activations, 0.1 to 0.4 for the graphs.
RUNTIME, GRAPHS = 1.2, 0.3
GPTQ_SCALES = 0.25  # bits a weight more, for scales and for what stays in 16 bits
SIZES = (1, 2, 4, 8)  # of tensor parallelism that are tried as a cure


class Needs(NamedTuple):
    """Of one engine: weights in bytes, and what the KV cache depends on."""

    weights: float
    layers: int
    kv_heads: int
    head_dim: int
    kv_bytes: int  # of a number: 2 in 16 bits, 4 in float32

    def kv_token(self, gpus: int = 1) -> int:
        """Bytes of KV cache of a token on each of so many GPUs."""
        return 2 * self.layers * ceil(self.kv_heads / gpus) * self.head_dim * self.kv_bytes


class Fit(NamedTuple):
    """How an engine fits its GPUs: GiB a GPU, and how many tokens of KV cache that leaves."""

    weights: float
    runtime: float
    room: float
    tokens: int


def needs(model: ModelConfig) -> Needs | None:
    """From `shape`, else from the model's files where they are on this machine; None where neither is there."""
    found = _from_shape(model) or _from_files(model)
    if found and model.quantize:
        bits = model.shape.bits if model.shape else 16
        found = found._replace(weights=found.weights * (model.quantize.bits + GPTQ_SCALES) / bits)
    return found


def fit(need: Needs, model: ModelConfig, chip: float, gpus: int | None = None) -> Fit:
    """On so many GPUs (left out: tensor_parallel_size) of `chip` GiB each."""
    gpus = gpus or model.engine.tensor_parallel_size
    runtime = RUNTIME + (0 if model.engine.enforce_eager else GRAPHS)
    weights = need.weights / gpus / GIB
    room = model.engine.gpu_memory_utilization * chip - weights - runtime
    return Fit(weights, runtime, room, max(0, int(room * GIB / need.kv_token(gpus))))


def chip_memory(name: str) -> tuple[str, float] | None:
    """The known chip that a name such as L4 or `cuda:NVIDIA A100-SXM4-80GB` means, and its GiB."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    return next(((chip, gib) for chip, gib in CHIPS.items() if words.issuperset(chip.split("-"))), None)


def lines(model: ModelConfig, device: str) -> list[str]:
    """For people: what a model needs and whether it fits, with a cure. Empty where nothing can be said."""
    if model.engine.fake is not None:
        return []
    need = needs(model)
    if need is None:
        unknown = "memory: unknown until the model is on this machine; for an estimate give shape in the model file"
        return [unknown] if device == "cuda" else []
    length, per_input = model.context_length, need.kv_token() * model.context_length / GIB
    first = (
        f"memory: weights {need.weights / GIB:.1f} GiB, KV cache {need.kv_token():,} bytes a token, "
        f"{per_input:.2f} GiB for {length:,} tokens"
    )
    return [first, _on_gpu(need, model) if device == "cuda" else _on_cpu(need, model)]


def _on_gpu(need: Needs, model: ModelConfig) -> str:
    chip = chip_memory(model.engine.hardware or models.hardware("cuda"))
    if chip is None:
        return f"whether it fits is not known: name the chip, engine.hardware: {' | '.join(CHIPS)}"
    (name, gib), gpus, length = chip, model.engine.tensor_parallel_size, model.context_length
    here = fit(need, model, gib)
    place = (
        f"{gpus} x {name} ({gib} GiB, {model.engine.gpu_memory_utilization:.0%} of it used): "
        f"{here.weights:.1f} weights + {here.runtime:.1f} runtime"
    )
    if here.tokens >= length:
        times = here.tokens / length
        return f"{place} + {here.room:.1f} KV cache a GPU = {here.tokens:,} tokens, {times:.1f} full inputs: fits"
    sizes = [n for n in SIZES if n > gpus and fit(need, model, gib, n).tokens >= length]
    cures = [f"engine.tensor_parallel_size: {n}" for n in sizes[:1]]
    if here.tokens >= 16:
        cures.append(f"context_length: {here.tokens}")
    if model.shape and model.shape.bits > 8 and not model.quantize:
        cures.append("quantize: {bits: 4}")
    lack = "no room for KV cache" if here.room <= 0 else f"room for {here.tokens:,} tokens of KV cache only"
    return f"{place} a GPU leave {lack}: does not fit; try {' or '.join(cures) or 'a larger chip'}"


def _on_cpu(need: Needs, model: ModelConfig) -> str:
    cache = model.engine.kv_cache_gib
    tokens = int(cache * GIB / need.kv_token())
    place = f"CPU: {need.weights / GIB:.1f} weights + {cache:.1f} KV cache = {tokens:,} tokens"
    if tokens < model.context_length:
        wanted = ceil(need.kv_token() * model.context_length / GIB * 10) / 10
        return f"{place}, fewer than an input may have: does not fit; try engine.kv_cache_gib: {wanted}"
    if model.engine.hardware:  # another machine
        return place
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    fits = need.weights / GIB + cache < ram
    return f"{place}, of {ram:.1f} GiB RAM: {'fits' if fits else 'does not fit; try a lower engine.kv_cache_gib'}"


def _from_shape(model: ModelConfig) -> Needs | None:
    shape = model.shape
    if shape is None:
        return None
    weights = shape.parameters * 1e9 * shape.bits / 8
    return Needs(weights, shape.layers, shape.kv_heads, shape.head_dim, _kv_bytes(model))


def _from_files(model: ModelConfig) -> Needs | None:
    folder = _folder(model)
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise ModelError(f"{folder / 'config.json'} is no JSON ({e}): copy or download the model again") from None
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors")) or sum(
        p.stat().st_size for p in folder.glob("*.bin")
    )
    try:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        layers, kv_heads = config["num_hidden_layers"], config.get("num_key_value_heads") or heads
    except KeyError:  # not a plain decoder
        return None
    return Needs(weights, layers, kv_heads, head_dim, _kv_bytes(model)) if weights else None


def _folder(model: ModelConfig) -> Path | None:
    """The model's files on this machine, without asking the network or preparing anything."""
    source = model.source
    if source.path:
        return Path(source.path).expanduser()
    if source.hub:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.hub, "config.json", revision=source.revision)
        return Path(found).parent if isinstance(found, str) else None
    digest = models.fingerprint(model.model_copy(update={"quantize": None}))
    return next((models.home() / "models").glob(f"*-{digest[:12]}"), None)


def _kv_bytes(model: ModelConfig) -> int:
    return 4 if model.dtype == "float32" else 2
