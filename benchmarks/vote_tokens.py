"""What votes over option orders cost in computed tokens, by vLLM's rule for its prefix cache.

python benchmarks/vote_tokens.py STORE INPUT [--block 16]

As benchmarks/votes.py, each plan is replayed from recorded scores; here the prompts of the orders that it asks are made
with the embedded model's tokenizer, and a prompt computes all tokens but its leading blocks that an earlier prompt of
the same question had (vLLM keeps full blocks, and always computes the last token). Nothing is evicted between the
orders of one question, so this is what an engine computes; a run on a GPU host is compared in docs/benchmarks.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from votes import CURVE, play, recorded

from ensemble.config import Letter, Member
from ensemble.load import load_config
from ensemble.orders import make_orders
from ensemble.prompts import Prompter
from pipelines.stage import tokenizer

PLANS = ("identity", "PriDe 5%", "cyclic", "latin:2", "latin:3", "latin:4", "latin:5", "full",
         *(f"adaptive {share:g}%" for share in (0.1, 0.3, 0.5, 1, 2, 3, 5, 10)))  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("store")
    p.add_argument("input")
    p.add_argument("--block", type=int, default=16, help="tokens of a block of vLLM's cache")
    options = p.parse_args()
    questions, stored = recorded(options.store, options.input, None)
    member = Member(model="smollm2", template="letters", scoring=Letter(method="letter"))
    config = load_config(
        ROOT / "configs/demo.yaml",
        ["tasks={multiple_choice: {members: [{model: smollm2, template: letters, scoring: {method: letter}}]}}"],
    )
    prompter = Prompter(member, config.models["smollm2"], config.templates["letters"], tokenizer("smollm2", config))
    sent, computed = (np.zeros((len(questions), 25)) for _ in range(2))  # after so many orders
    for row, question in enumerate(questions):
        seen: set[tuple[int, ...]] = set()
        for i, order in enumerate(make_orders("full", len(question.choices), 0), 1):
            ids = tuple(prompter.letters(question, order).prompt)
            blocks = [ids[:end] for end in range(options.block, len(ids) + 1, options.block)]
            hit = next((k for k, block in enumerate(blocks) if block not in seen), len(blocks))
            cached = options.block * min(hit, (len(ids) - 1) // options.block)
            seen.update(blocks)
            sent[row, i] = sent[row, i - 1] + len(ids)
            computed[row, i] = computed[row, i - 1] + len(ids) - cached
    rows = np.arange(len(questions))
    print("| orders | orders a question | computed tokens a question | of full | prompt tokens | from cache | other |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    full = next(setting for setting in CURVE if setting.name == "full")
    reference = play(full, questions, stored)
    for setting in CURVE:
        if setting.name not in PLANS:
            continue
        played = reference if setting is full else play(setting, questions, stored)
        tokens, prompts = computed[rows, played.orders], sent[rows, played.orders]
        share, cached = tokens.sum() / computed[:, 24].sum(), 1 - tokens.sum() / prompts.sum()
        other = (played.predictions != reference.predictions).mean()
        print(
            f"| {setting.name} | {played.orders.mean():.2f} | {tokens.mean():.1f} | {share:.1%} | {prompts.sum():,.0f} "
            f"| {cached:.1%} | {other:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
