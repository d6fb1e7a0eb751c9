"""Lives of engines for the tests of what is made of them."""

from typing import Any

from ensemble.vitals import Vitals

NOTHING: dict[str, Any] = {
    "pid": 1, "node": "n", "status": "ready", "first": None, "last": None, "busy": 0.0, "requests": 0,
    "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "errors": 0, "running": 0, "waiting": 0,
    "kv_usage": 0.0, "memory_gib": None,
}  # fmt: skip


def life(model: str, created: float, ready: float | None, at: float, replica: int = 0, **more: Any) -> Vitals:
    return Vitals(**NOTHING | {"gpus": 1} | more, model=model, replica=replica, created=created, ready=ready, at=at)


def at_work(second: float, tokens: int, **more: Any) -> Vitals:
    counts = {"prompt_tokens": tokens, "cached_tokens": tokens * 3 // 4, "first": 10, "last": second, "busy": 1.0}
    return life("m", **{"created": 0, "ready": 10, "at": second} | counts | more)
