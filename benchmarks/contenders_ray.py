"""ray.data.llm's two processors as contenders of benchmarks/speed.py, in the process of contenders.py.

The processors get token ids as Arrow blocks and ask for exactly the letters' log-probabilities (`logprob_token_ids`);
results go to Parquet. They do not tell how many prompt tokens came from the cache.
"""

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def engine(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The processor that holds an engine; returns the keywords of `contenders.figures`, but the first."""
    _init_ray(work)
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    arguments = dict(work["engine_args"])
    config = vLLMEngineProcessorConfig(
        model_source=arguments.pop("model"),
        engine_kwargs=arguments,
        batch_size=work["ray_batch"],
        max_concurrent_batches=math.ceil(2 * arguments["max_num_seqs"] / work["ray_batch"]),
        concurrency=1,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        placement_group_config={"bundles": [{"CPU": 1}]} if work["device"] == "cpu" else None,
    )

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        letters = [int(x) for x in row["letters"]]
        params = {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": letters, "detokenize": False}
        return {"tokenized_prompt": [int(x) for x in row["ids"]], "sampling_params": params}

    def finished(row: dict[str, Any]) -> dict[str, Any]:
        found = {int(token): entry["logprob"] for token, entry in row["logprobs"][0].items()}
        return _reply(row, found, row["time_taken_llm"])

    return _stream(work, folder, build_processor(config, preprocess=prepared, postprocess=finished))


def served(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The processor that asks a deployment of Ray Serve, by its OpenAI completions method; as `engine`."""
    _init_ray(work)
    from ray import serve
    from ray.data.llm import ServeDeploymentProcessorConfig, build_processor
    from ray.serve.llm import LLMConfig, ModelLoadingConfig, build_llm_deployment

    arguments = dict(work["engine_args"])
    at_once = 2 * arguments["max_num_seqs"]
    loading = ModelLoadingConfig(model_id="model", model_source=arguments.pop("model"))
    app = build_llm_deployment(
        LLMConfig(
            model_loading_config=loading,
            engine_kwargs=arguments,
            deployment_config={"num_replicas": 1, "max_ongoing_requests": at_once},
            placement_group_config={"bundles": [{"CPU": 1}]} if work["device"] == "cpu" else None,
            log_engine_metrics=False,
        ),
        override_serve_options={"name": "letters"},
    )
    serve.run(app, name="speed")
    config = ServeDeploymentProcessorConfig(
        deployment_name="letters",
        app_name="speed",
        dtype_mapping={"Completion": Completion},
        batch_size=work["ray_batch"],
        concurrency=min(8, math.ceil(at_once / work["ray_batch"] / 4)),  # an actor asks for four batches at a time
    )

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        letters = [int(x) for x in row["letters"]]
        request = {
            "model": "model",
            "prompt": [int(x) for x in row["ids"]],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": len(letters),
            "logprob_token_ids": letters,
            "return_tokens_as_token_ids": True,
        }
        return {"method": "completions", "dtype": "Completion", "request_kwargs": request}

    def finished(row: dict[str, Any]) -> dict[str, Any]:
        top = row["choices"][0]["logprobs"]["top_logprobs"][0]
        found = {int(name.removeprefix("token_id:")): value for name, value in top.items()}
        return _reply(row, found, row["time_taken"])

    return _stream(work, folder, build_processor(config, preprocess=prepared, postprocess=finished))


class Completion:
    """vLLM's request, of lists: between its stages Ray Data makes arrays of them, which the request refuses."""

    def __new__(cls, **given: Any) -> Any:
        from ray.serve.llm.openai_api_models import CompletionRequest

        return CompletionRequest(**{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in given.items()})


def _reply(row: dict[str, Any], found: dict[int, float], seconds: float) -> dict[str, Any]:
    return {
        "row": int(row["row"]),
        "logprobs": [found[int(token)] for token in row["letters"]],
        "batch": row["batch_uuid"],
        "seconds": seconds,
        "returned": time.time(),
    }


def _init_ray(work: dict[str, Any]) -> None:
    import ray
    import ray.data

    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(32, os.cpu_count() or 1),  # in name: an actor for each of Ray Data's stages has to find room
        object_store_memory=2**30,
        logging_level="ERROR",
        log_to_driver=work["verbose"],
        runtime_env={"env_vars": work["env"] | {"PYTHONPATH": path}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False


def _stream(work: dict[str, Any], folder: Path, processor: Any) -> dict[str, Any]:
    """All prompts through the processor, one block a batch: Ray Data hands on whole blocks."""
    import pyarrow.parquet as pq
    import ray

    prompts = pq.read_table(work["prompts"])
    count, step = prompts.num_rows, work["ray_batch"]
    data = ray.data.from_arrow([prompts.slice(start, step) for start in range(0, count, step)])
    out = folder / "out"
    processor(data).write_parquet(str(out))
    table = pq.read_table(out).to_pydict()
    ray.shutdown()
    # A reply has no time of its own. The rows of a batch are sent together, and the batch returns with the last of
    # them, so it was sent as long before as that one took.
    returned: dict[str, float] = {}
    slowest: dict[str, float] = {}
    for batch, seconds, end in zip(table["batch"], table["seconds"], table["returned"], strict=True):
        returned[batch] = min(returned.get(batch, end), end)
        slowest[batch] = max(slowest.get(batch, 0.0), seconds)
    sent = {batch: returned[batch] - slowest[batch] for batch in returned}
    kept = np.zeros((count, len(table["logprobs"][0])), np.float32)
    kept[table["row"]] = table["logprobs"]
    np.save(folder / "logprobs.npy", kept)
    done = [sent[batch] + seconds for batch, seconds in zip(table["batch"], table["seconds"], strict=True)]
    return {"ready": min(sent.values()), "first": min(sent.values()), "done": done}
