"""Perplexity of a model's folder on a text, GPTQ checkpoints included, with torch and transformers alone.

A GPTQ checkpoint is evaluated with its weights unpacked into the type it computes in, so that neither a kernel nor
GPTQModel is needed and the same code runs on CPU and GPU.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ensemble.errors import InputError


class Perplexity(NamedTuple):
    """value: exp of the mean negative log-probability of `tokens` predicted tokens; dtype: of the weights."""

    value: float
    tokens: int
    dtype: str


def perplexity(
    folder: Path,
    texts: Sequence[str],
    *,
    device: str,
    window: int = 512,
    most: int = 16384,
    trust_remote_code: bool = False,
) -> Perplexity:
    """Of the texts, joined by blank lines and cut into windows of `window` tokens that share no context.

    The first token of a window is not predicted. `most`: tokens that are read. Raises InputError for too short a text.
    """
    import torch

    from ensemble.tokens import load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code)
    ids = tokenizer("\n\n".join(texts), verbose=False)["input_ids"][:most]
    if len(ids) < 2:
        raise InputError("the text to measure perplexity on has fewer than 2 tokens: give a longer one")
    model = load(folder, trust_remote_code).to(device).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, window):
            row = torch.tensor(ids[start : start + window], device=device)
            if len(row) < 2:
                break
            logits = model(row[None]).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
            total, count = total + losses.double().sum().item(), count + len(losses)
    return Perplexity(math.exp(total / count), count, str(model.dtype).removeprefix("torch."))


def load(folder: Path, trust_remote_code: bool = False) -> Any:
    """The model in transformers, in the type of its config.json; a GPTQ checkpoint dequantized."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    recipe = getattr(config, "quantization_config", None)
    if recipe is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype, trust_remote_code=trust_remote_code)
    missing, unexpected = model.load_state_dict(_dense(_tensors(folder), recipe), strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    assert not unexpected, unexpected
    assert set(missing) <= tied, missing
    return model


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}


def _dense(tensors: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors with each layer's qweight, qzeros, scales and g_idx replaced by its weight."""
    dense = {}
    for name in list(tensors):
        layer, _, kind = name.rpartition(".")
        if kind == "qweight":
            qweight, qzeros, scales, g_idx = (tensors[f"{layer}.{x}"] for x in ("qweight", "qzeros", "scales", "g_idx"))
            v2 = recipe.get("checkpoint_format") == "gptq_v2"
            dense[f"{layer}.weight"] = dequantize(qweight, qzeros, scales, g_idx, recipe["bits"], v2)
        elif kind not in ("qzeros", "scales", "g_idx"):
            dense[name] = tensors[name]
    return dense


def dequantize(qweight: Any, qzeros: Any, scales: Any, g_idx: Any, bits: int, v2: bool = False) -> Any:
    """A layer's weight, outputs x inputs, in the type of its scales: scale * (q - zero) of each input's group.

    qweight: int32, inputs * bits / 32 x outputs; qzeros: int32, groups x outputs * bits / 32; scales: groups x outputs;
    g_idx: the group of each input. Values fill the words from the lowest bit on, and AutoGPTQ (v1) keeps zero - 1.
    """
    q = _unpack(qweight.T, bits)  # outputs x inputs
    zeros = _unpack(qzeros, bits) + (0 if v2 else 1)  # groups x outputs
    groups = g_idx.long()
    return ((q - zeros[groups].T) * scales.float()[groups].T).to(scales.dtype)


def _unpack(words: Any, bits: int) -> Any:
    """n x k int32 words to n x (32 k / bits) values of `bits` bits, as float32."""
    import numpy as np
    import torch

    stream = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
    values = stream.reshape(len(stream), -1, bits) @ (1 << np.arange(bits, dtype=np.uint8))
    return torch.from_numpy(values.astype(np.float32))
