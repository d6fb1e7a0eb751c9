"""What an engine needs of memory, before anything is loaded: weights, KV cache and the rest, against the chip's memory.

weights       = parameters * bits / 8, or the size of the files that are here; shared among tensor_parallel_size GPUs
KV cache      = 2 (K and V) * layers * kv_heads * head_dim * bytes for a token; a GPU holds at least one head of them
activations   = 2 bytes * (WHOLE + SHARED / GPUs) * hidden for a token of the largest batch (max_num_batched_tokens)
sampling      = SAMPLING bytes for an entry of the vocabulary and a sequence of the batch (max_num_seqs)
runtime       = the larger of these two (they do not overlap), and OUTSIDE and GRAPHS
room for KV   = gpu_memory_utilization * the GPU's memory - weights - runtime

hidden is sqrt(parameters / (12 layers)), from N = 12 layers hidden^2 (Kaplan et al. 2020): 4% off at Llama-2-70B.
WHOLE, SHARED and SAMPLING are set by what vLLM logged for Llama-3-8B with batches of 8,192 tokens: 1.10 GiB with one
or 128 sequences (its pull request 9003), and 1.26 GiB with 256 sequences on one GPU as on two (10511), so that the
logits are whole on each. An estimate: what vLLM logs when it starts is exact. It refuses to start where the room does
not hold one input of context_length.
"""

import json
import os
from math import ceil, sqrt
from pathlib import Path
from typing import NamedTuple

from ensemble import models
from ensemble.config import EngineConfig, ModelConfig
from ensemble.errors import ModelError
from ensemble.presets import CHIPS, chip_name, with_preset

GIB = 2**30

OUTSIDE = 0.4  # GiB a GPU for CUDA and NCCL; 0.1 to 0.4 in public logs of models of 8 to 32 billion parameters
GRAPHS = 0.3  # GiB a GPU for CUDA graphs; 0.1 to 0.4 there
WHOLE, SHARED = 4, 12  # numbers a token in a layer at its peak, in units of hidden; the second kind is split over GPUs
SAMPLING = 40  # bytes: logits in float32, sorted with their places, and probabilities
VOCABULARY = 128_000  # where the files are not here; smaller ones leave room
GPTQ_SCALES = 0.25  # bits a weight more, for scales and for what stays in 16 bits
SIZES = (1, 2, 4, 8)  # of tensor parallelism that are tried as a cure
SMALL_BATCH = 2048  # tokens, tried as a cure too: enough to keep a GPU that is full of weights busy


class Needs(NamedTuple):
    """Of one engine: weights in bytes, and what KV cache and activations depend on."""

    weights: float
    parameters: float
    layers: int
    kv_heads: int
    head_dim: int
    kv_bytes: int  # of a number: 2 in 16 bits, 4 in float32, 1 in fp8
    vocabulary: int = VOCABULARY

    def kv_token(self, gpus: int = 1) -> int:
        """Bytes of KV cache of a token on each of so many GPUs."""
        return 2 * self.layers * ceil(self.kv_heads / gpus) * self.head_dim * self.kv_bytes

    def runtime(self, engine: EngineConfig, gpus: int) -> float:
        """GiB on each of so many GPUs beside weights and KV cache, for an engine whose batch is set."""
        assert engine.max_num_batched_tokens
        assert engine.max_num_seqs
        hidden = sqrt(self.parameters / (12 * self.layers))
        activations = 2 * (WHOLE + SHARED / gpus) * hidden * engine.max_num_batched_tokens
        sampling = SAMPLING * self.vocabulary * engine.max_num_seqs
        return max(activations, sampling) / GIB + OUTSIDE + (0 if engine.enforce_eager else GRAPHS)


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


def fit(need: Needs, engine: EngineConfig, gib: float, gpus: int | None = None) -> Fit:
    """On so many GPUs (left out: tensor_parallel_size) of `gib` each, for an engine with its preset."""
    assert engine.gpu_memory_utilization
    gpus = gpus or engine.tensor_parallel_size
    weights, runtime = need.weights / gpus / GIB, need.runtime(engine, gpus)
    room = engine.gpu_memory_utilization * gib - weights - runtime
    return Fit(weights, runtime, room, max(0, int(room * GIB / need.kv_token(gpus))))


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
    hardware = model.engine.hardware or models.hardware("cuda")
    name, engine = chip_name(hardware), with_preset(model.engine, hardware)
    if name is None:
        return f"whether it fits is not known: name the chip, engine.hardware: {' | '.join(CHIPS)}"
    gib, gpus, length = CHIPS[name].gib, engine.tensor_parallel_size, model.context_length
    here = fit(need, engine, gib)
    place = (
        f"{gpus} x {name} ({gib} GiB, {engine.gpu_memory_utilization:.0%} of it used; batches of "
        f"{engine.max_num_batched_tokens:,} tokens, {engine.max_num_seqs:,} sequences): "
        f"{here.weights:.1f} weights + {here.runtime:.1f} runtime"
    )
    if here.tokens >= length:
        times = here.tokens / length
        return f"{place} + {here.room:.1f} KV cache a GPU = {here.tokens:,} tokens, {times:.1f} full inputs: fits"
    sizes = [n for n in SIZES if n > gpus and fit(need, engine, gib, n).tokens >= length]
    cures = [f"engine.tensor_parallel_size: {n}" for n in sizes[:1]]
    small = engine.model_copy(update={"max_num_batched_tokens": SMALL_BATCH, "max_num_seqs": 64})
    if fit(need, small, gib).tokens >= length:
        cures.append(f"engine: {{max_num_batched_tokens: {SMALL_BATCH}, max_num_seqs: 64}}")
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
    parameters = shape.parameters * 1e9
    weights = parameters * shape.bits / 8
    return Needs(weights, parameters, shape.layers, shape.kv_heads, shape.head_dim, _kv_bytes(model))


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
    quantized = config.get("quantization_config", {}).get("bits")
    parameters = weights * 8 / (quantized + GPTQ_SCALES if quantized else 16)
    vocabulary = config.get("vocab_size") or VOCABULARY
    return Needs(weights, parameters, layers, kv_heads, head_dim, _kv_bytes(model), vocabulary) if weights else None


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
    if model.engine.kv_cache_dtype == "fp8":
        return 1
    return 4 if model.dtype == "float32" else 2
