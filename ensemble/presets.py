"""GPUs by name: their memory, and the engine settings that a model file leaves out.

vLLM's AsyncLLM takes batches of 2,048 tokens and 256 sequences by default, whatever the chip: made for replies at once,
it leaves a large GPU half idle on long prompts and short answers. Its offline class takes 8,192 and 256, from 70 GiB
on 16,384 and 1,024, and these are the values here. A shared GPU or a model that barely fits wants less: the model file
says so, and what it says counts.
"""

import re
from typing import NamedTuple

from ensemble.config import EngineConfig, RayConfig


class Chip(NamedTuple):
    """gib: what torch reports as the total; data sheets say a little more, and ECC takes a part."""

    gib: float
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    tokens_in_flight: int = 131_072  # `ray.tokens_in_flight`


# Of 24 GiB and less, desktops and other processes may hold some.
CHIPS = {
    "L4": Chip(22.0, 0.9),
    "A10G": Chip(22.1, 0.9),
    "T4": Chip(14.7, 0.9, 128, 4096),
    "L40S": Chip(44.4),
    "A100-40GB": Chip(39.4),
    "A100-80GB": Chip(79.2, 0.92, 1024, 16384, 524_288),
    "H100": Chip(79.2, 0.92, 1024, 16384, 524_288),
    "H200": Chip(139.8, 0.92, 1024, 16384, 524_288),
}
UNKNOWN = Chip(0.0, 0.9)  # any other GPU
CPU_SEQUENCES = 32  # max_num_seqs: of 8 to 128 the fastest for short prompts on two cores, docs/benchmarks.md


def chip_name(hardware: str) -> str | None:
    """The known chip that a name such as L4 or `cuda:NVIDIA A100-SXM4-80GB` means."""
    words = set(re.split(r"[^A-Z0-9]+", hardware.upper()))
    return next((name for name in CHIPS if words.issuperset(name.split("-"))), None)


def tokens_in_flight(config: RayConfig, engine: EngineConfig, hardware: str) -> int:
    """Of one engine: as the run config says, else several of the chip's batches; on a CPU as on an unknown chip."""
    return config.tokens_in_flight or CHIPS.get(chip_name(engine.hardware or hardware) or "", UNKNOWN).tokens_in_flight


def with_preset(engine: EngineConfig, hardware: str) -> EngineConfig:
    """An engine on a GPU of that name, with the chip's settings where the model file has none."""
    name = chip_name(hardware)
    chip = CHIPS[name] if name else UNKNOWN
    seqs, tokens = engine.max_num_seqs, engine.max_num_batched_tokens
    # vLLM refuses more sequences than tokens in a batch: a preset gives way to what is set.
    filled = {
        "gpu_memory_utilization": engine.gpu_memory_utilization or chip.gpu_memory_utilization,
        "max_num_seqs": seqs or min(chip.max_num_seqs, tokens or chip.max_num_seqs),
        "max_num_batched_tokens": tokens or max(chip.max_num_batched_tokens, seqs or 0),
    }
    return engine.model_copy(update=filled)
