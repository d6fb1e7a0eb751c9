"""The GPUs of this process, asked through the driver (NVML): CUDA would take memory of its own."""

import os
import time
from typing import Any

FREE_SECONDS = 120.0  # for an engine that ended, or was killed, to give its memory back
SLACK = 0.02  # of the memory: the driver's own


class Gpus:
    """Raises ImportError, or NVML's errors where there is no such GPU or no driver that answers."""

    def __init__(self, held: int) -> None:
        """held: how many this process holds, of those that it may see."""
        from vllm.third_party import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        names = (shown or [str(i) for i in range(held)])[:held]
        by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        self._devices = [by_index(int(name)) if name.isdigit() else by_uuid(name) for name in names]

    def used_gib(self) -> float:
        """Memory in use on all of them, by whomever."""
        return sum(float(self._nvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices) / 2**30

    def free(self) -> float:
        """The least share of free memory of any of them, 0 to 1."""
        infos = [self._nvml.nvmlDeviceGetMemoryInfo(device) for device in self._devices]
        return min((info.free / info.total for info in infos), default=1.0)


def wait_for_memory(held: int, share: float) -> None:
    """Until this share of each held GPU's memory is free, or for FREE_SECONDS: vLLM then says what lacks."""
    try:
        gpus = Gpus(held)
        until = time.monotonic() + FREE_SECONDS
        while gpus.free() < share - SLACK and time.monotonic() < until:
            time.sleep(0.5)
    except Exception:  # no driver that answers: vLLM finds out by itself
        return
