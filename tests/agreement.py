"""Scores 20 demo questions by vLLM and by transformers, same weights, and prints both as JSON (run by test_engine).

python tests/agreement.py
"""

import asyncio
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from ensemble import models
from ensemble.config import ROOT, Letter, Member, RunConfig, Sampling
from ensemble.engine import ScoreRequest, VLLMEngine
from ensemble.load import load_config, read_yaml
from ensemble.prompts import Prompter
from ensemble.questions import parse_question
from ensemble.rows import iter_rows
from ensemble.tokens import load_tokenizer

N = 20


def requests(config: RunConfig, tokenizer: object) -> dict[str, list[ScoreRequest]]:
    model = config.models["smollm2"]
    rows = [row for _, row in iter_rows(ROOT / "configs/demo/questions.jsonl")]
    article = next(row["text"] for row in rows if row["task"] == "summarization")[:600]
    # With a passage, so that the prompt spans blocks of the prefix cache.
    questions = [parse_question({**row, "context": article}, i, "demo", i) for i, row in enumerate(rows[:N])]
    assert all(q.task == "multiple_choice" for q in questions)
    cloze = Prompter(config.tasks["multiple_choice"].members[0], model, config.templates["cloze"], tokenizer)
    member = Member(model="smollm2", template="letters", scoring=Letter(method="letter"))
    letters = Prompter(member, model, config.templates["letters"], tokenizer)
    order = (2, 0, 3, 1)
    return {
        "cloze": [ScoreRequest(p.prompt, p.continuations) for p in map(cloze.cloze, questions)],
        "letter": [ScoreRequest(p.prompt, p.continuations) for q in questions for p in [letters.letters(q, order)]],
    }


async def by_vllm(engine: VLLMEngine, asked: dict[str, list[ScoreRequest]]) -> dict[str, object]:
    replies = {kind: await engine.score(r) for kind, r in asked.items()}
    again = {kind: await engine.score(r) for kind, r in asked.items()}  # now everything is in the prefix cache
    cached = {kind: sum(r.cached_tokens for r in again[kind]) for kind in again}
    prompt = asked["letter"][0].prompt
    greedy = await engine.generate(prompt, Sampling(max_tokens=8), 0)
    sampled = [
        await engine.generate(prompt, Sampling(max_tokens=8, min_tokens=8, temperature=1.0), seed) for seed in (1, 1, 2)
    ]
    return {
        "logprobs": {kind: [r.logprobs for r in rs] for kind, rs in replies.items()},
        "again": {kind: [r.logprobs for r in rs] for kind, rs in again.items()},
        "cached": cached,
        "greedy": greedy._asdict(),
        "sampled": [s.text for s in sampled],
    }


def by_transformers(folder: Path, dtype: str, asked: dict[str, list[ScoreRequest]]) -> dict[str, list[list[float]]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

    def table(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def totals(request: ScoreRequest) -> list[float]:
        start = len(request.prompt) - 1
        if all(len(c) == 1 for c in request.continuations):  # one pass answers for all labels
            last = table(list(request.prompt))[start]
            return [last[c[0]].item() for c in request.continuations]
        tables = [table([*request.prompt, *c]) for c in request.continuations]
        return [
            sum(t[start + k, token].item() for k, token in enumerate(c))
            for t, c in zip(tables, request.continuations, strict=True)
        ]

    return {kind: [totals(r) for r in rs] for kind, rs in asked.items()}


def main(device: str = "cpu") -> None:
    letters = json.dumps(read_yaml(ROOT / "configs/templates/letters.yaml"))
    config = load_config(ROOT / "configs/demo.yaml", ["models.smollm2.dtype=float32", f"templates.letters={letters}"])
    folder = models.prepare("smollm2", config.models["smollm2"], lambda line: print(line, file=sys.stderr))
    asked = requests(config, load_tokenizer(folder, False))
    found: dict[str, object] = {
        "tokens": {kind: [[len(c) for c in r.continuations] for r in rs] for kind, rs in asked.items()}
    }
    for dtype in ("float32", "bfloat16"):
        engine = VLLMEngine(config.models["smollm2"].model_copy(update={"dtype": dtype}), folder, device)
        try:
            ours = asyncio.run(by_vllm(engine, asked))
        finally:
            engine.close()
        found[dtype] = ours | {"transformers": by_transformers(folder, dtype, asked)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
