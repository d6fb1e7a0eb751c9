"""One contender of benchmarks/speed.py in a process of its own: python benchmarks/contenders.py NAME FOLDER

FOLDER has work.json (engine arguments, prompts, settings; see speed.py). Writes FOLDER/result.json, and
FOLDER/logprobs.npy: [prompts, options] log-probabilities of the letters, by content.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import prompts_24


def figures(work: dict[str, Any], ready: float, first: float, done: Sequence[float], **more: Any) -> dict[str, Any]:
    """ready, first: epoch seconds at which the engine was there and the first prompt was sent; done: of each reply."""
    times = sorted(done)
    low, high = len(times) // 10, len(times) - 1 - len(times) // 10
    middle = times[high] - times[low] if times else 0.0
    seconds = times[-1] - first
    return {
        "ready": ready,
        "orders": len(times),
        "seconds": seconds,
        "per_second": len(times) / seconds,
        "middle_per_second": (high - low) / middle if middle > 0 else None,
    } | more


def sampling(letters: list[int]) -> dict[str, Any]:
    return {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": letters, "detokenize": False}


def warm_up(prompts: prompts_24.Prompts) -> list[list[int]]:
    """A question's worth of prompts that share nothing with the others: Quorum asks one before it counts too."""
    return [ids[::-1] for ids in prompts.ids[: prompts.orders]]


def values(output: Any, letters: list[int]) -> list[float]:
    found = output.outputs[0].logprobs[0]
    return [found[token].logprob for token in letters]


def bare(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`AsyncLLM` in this process, all prompts in order, at most `in_flight` outstanding."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    prompts = prompts_24.load(Path(work["prompts"]))
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**work["engine_args"]))
    done: list[float] = []
    cached = 0

    async def ask(i: int, ids: list[int], letters: list[int], kept: np.ndarray | None) -> None:
        nonlocal cached
        params = SamplingParams(**sampling(letters), output_kind=RequestOutputKind.FINAL_ONLY)
        async for output in llm.generate({"prompt_token_ids": ids}, params, f"{kept is None}{i}"):
            if kept is not None:
                kept[i, : len(letters)] = values(output, letters)
                cached += output.num_cached_tokens or 0
                done.append(time.time())

    async def run() -> dict[str, Any]:
        await asyncio.gather(*(ask(i, x, prompts.letters[0], None) for i, x in enumerate(warm_up(prompts))))
        room = asyncio.Semaphore(work["in_flight"] or len(prompts.ids))
        kept = np.full((len(prompts.ids), max(map(len, prompts.letters))), -np.inf, np.float32)

        async def bounded(i: int, ids: list[int], letters: list[int]) -> None:
            async with room:
                await ask(i, ids, letters, kept)

        ready = first = time.time()
        await asyncio.gather(*(bounded(i, *x) for i, x in enumerate(zip(prompts.ids, prompts.letters, strict=True))))
        np.save(folder / "logprobs.npy", kept)
        return figures(work, ready, first, done, cached_tokens=cached)

    result = asyncio.run(run())
    llm.shutdown()
    return result


def llm(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`LLM.generate` with a list; only the whole time is known."""
    from vllm import LLM, SamplingParams

    prompts = prompts_24.load(Path(work["prompts"]))
    engine = LLM(**work["engine_args"])
    params = [SamplingParams(**sampling(letters)) for letters in prompts.letters]

    def ask(ids: list[list[int]]) -> list[Any]:
        return engine.generate([{"prompt_token_ids": x} for x in ids], params[: len(ids)], use_tqdm=False)  # type: ignore[no-any-return]

    ask(warm_up(prompts))
    first = time.time()
    outputs = ask(prompts.ids)
    end = time.time()
    kept = [values(output, letters) for output, letters in zip(outputs, prompts.letters, strict=True)]
    np.save(folder / "logprobs.npy", np.array(kept, np.float32))
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    return figures(work, first, first, [end] * len(outputs), cached_tokens=cached)


def transformers(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One forward pass for each batch of prompts, padded on the left; of the first `transformers_orders` prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = prompts_24.load(Path(work["prompts"]))
    device = work["device"]
    args = work["engine_args"]
    model = AutoModelForCausalLM.from_pretrained(args["model"], dtype=args["dtype"]).to(device).eval()
    ids, letters = prompts.ids[: work["transformers_orders"]], prompts.letters
    kept: list[list[float]] = []
    done: list[float] = []

    def forward(batch: list[list[int]]) -> Any:
        longest = max(map(len, batch))
        tokens = torch.tensor([[0] * (longest - len(x)) + x for x in batch], device=device)
        mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in batch], device=device)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(tokens, attention_mask=mask, position_ids=places, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1].float().log_softmax(-1)

    size = work["transformers_batch"]
    with torch.inference_mode():
        forward(warm_up(prompts)[:size])
        first = time.time()
        for start in range(0, len(ids), size):
            rows = forward(ids[start : start + size])
            chosen = torch.tensor(letters[start : start + len(rows)], device=device)
            kept += rows.gather(1, chosen).tolist()
            done += [time.time()] * len(rows)
    np.save(folder / "logprobs.npy", np.array(kept, np.float32))
    return figures(work, first, first, done, cached_tokens=0)


def ray_data_llm(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    import contenders_ray

    return figures(work, **contenders_ray.engine(work, folder))


def ray_data_serve(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    import contenders_ray

    return figures(work, **contenders_ray.served(work, folder))


CONTENDERS: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "bare": bare,
    "llm": llm,
    "transformers": transformers,
    "ray_data_llm": ray_data_llm,
    "ray_data_serve": ray_data_serve,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / "work.json").read_text("utf-8"))
    os.environ.update(work["env"])
    result = CONTENDERS[name](work, folder)
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
