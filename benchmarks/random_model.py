"""Writes a Llama model of a known shape with random weights, for speed measurements without a model hub.

python benchmarks/random_model.py 7b /opt/7b --tokenizer FOLDER [--bits 4] [--group-size 128]

7b is Mistral-7B's shape, 70b Llama-2-70B's, 135m SmolLM2-135M's, tiny for a try. With --bits 4 the file is what GPTQ
tools write (AutoGPTQ format, symmetric). Every product keeps the size of what goes in: a weight's standard deviation is
1/sqrt(its inputs), and vectors are normalised before each product, so that 80 layers add up to numbers around ten and
16 bits hold them. Random bits, not zeros: a GPU's clock depends on the data.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SHARD_BYTES = 4 * 2**30
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
# Standard deviation of a whole number drawn evenly from 0 .. 15: sqrt((16^2 - 1) / 12). The zero point is 8.
DRAWN = math.sqrt(255 / 12)
ZERO_POINTS = 0x77777777  # eight times 8, stored less one


class Shape(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    positions: int


SHAPES = {
    "7b": Shape(4096, 32, 32, 8, 14336, 32768),
    "70b": Shape(8192, 80, 64, 8, 28672, 4096),
    "135m": Shape(576, 30, 9, 3, 1536, 8192),
    "tiny": Shape(256, 2, 4, 2, 512, 4096),
}


def config(shape: Shape, base: dict[str, Any], bits: int, group_size: int) -> dict[str, Any]:
    """config.json; base: that of the folder which the tokenizer comes from."""
    made = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": base["bos_token_id"],
        "eos_token_id": base["eos_token_id"],
        "dtype": "bfloat16" if bits == 16 else "float16",
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": math.ceil(base["vocab_size"] / 64) * 64,
    }
    if bits == 16:
        return made
    quantized = {"bits": bits, "group_size": group_size, "desc_act": False, "sym": True, "lm_head": False}
    return made | {"quantization_config": quantized | {"quant_method": "gptq", "checkpoint_format": "gptq"}}


def products(shape: Shape) -> dict[str, tuple[int, int]]:
    """Per matrix of a layer (outputs, inputs)."""
    h, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    return {
        "self_attn.q_proj": (h, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h),
        "mlp.gate_proj": (shape.intermediate, h),
        "mlp.up_proj": (shape.intermediate, h),
        "mlp.down_proj": (h, shape.intermediate),
    }


def tensors(shape: Shape, made: dict[str, Any], bits: int, group_size: int) -> Iterator[tuple[str, Any]]:
    """Names and tensors, on the GPU where there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, made["dtype"])

    def normal(rows: int, columns: int, deviation: float) -> Any:
        return torch.randn(rows, columns, generator=draw, device=device, dtype=dtype).mul_(deviation)

    def packed(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Any]]:
        words = (inputs // 8, outputs)
        scale = 1 / math.sqrt(inputs) / DRAWN
        zeros = torch.full((inputs // group_size, outputs // 8), ZERO_POINTS, dtype=torch.int32, device=device)
        yield f"{name}.qweight", torch.randint(-(2**31), 2**31, words, generator=draw, device=device, dtype=torch.int32)
        yield f"{name}.qzeros", zeros
        yield f"{name}.scales", torch.full((inputs // group_size, outputs), scale, dtype=dtype, device=device)
        yield f"{name}.g_idx", torch.arange(inputs, dtype=torch.int32, device=device) // group_size

    ones = torch.ones(shape.hidden, dtype=dtype, device=device)
    yield "model.embed_tokens.weight", normal(made["vocab_size"], shape.hidden, 1.0)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        for name, (outputs, inputs) in products(shape).items():
            if bits == 16:
                yield f"{layer}.{name}.weight", normal(outputs, inputs, 1 / math.sqrt(inputs))
            else:
                yield from packed(f"{layer}.{name}", outputs, inputs)
        yield f"{layer}.input_layernorm.weight", ones
        yield f"{layer}.post_attention_layernorm.weight", ones
    yield "model.norm.weight", ones
    yield "lm_head.weight", normal(made["vocab_size"], shape.hidden, 1 / math.sqrt(shape.hidden))


def write(out: Path, found: Iterator[tuple[str, Any]], report: Callable[[str], None]) -> int:
    """Shards and their index; returns the bytes of all tensors."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    shard: dict[str, Any] = {}
    held = total = number = 0

    def flush() -> None:
        nonlocal held, number
        number += 1
        file = f"model-{number:05d}.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in shard.items()}, out / file, {"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        report(f"{file}: {held / 2**30:.1f} GiB")
        shard.clear()
        held = 0

    for name, tensor in found:
        shard[name] = tensor.clone() if tensor.dim() == 1 else tensor  # a shard's tensors may not share their memory
        size = tensor.numel() * tensor.element_size()
        held, total = held + size, total + size
        if held >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model folder: its tokenizer is copied")
    parser.add_argument("--bits", type=int, choices=(16, 4), default=16)
    parser.add_argument("--group-size", type=int, default=128, help="must divide the shape's widths (135m: 64)")
    options = parser.parse_args()
    shape, started = SHAPES[options.shape], time.monotonic()
    if options.bits == 4 and any(n % options.group_size for n in (shape.hidden, shape.intermediate)):
        parser.error(f"--group-size {options.group_size} does not divide {shape.hidden} and {shape.intermediate}")
    options.out.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER_FILES:
        for path in options.tokenizer.glob(pattern):
            shutil.copy(path, options.out)
    base = json.loads((options.tokenizer / "config.json").read_text())
    made = config(shape, base, options.bits, options.group_size)
    (options.out / "config.json").write_text(json.dumps(made, indent=1))
    total = write(options.out, tensors(shape, made, options.bits, options.group_size), print)
    print(f"{options.out}: {total / 2**30:.1f} GiB in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
