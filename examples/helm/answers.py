"""Reads what an endpoint answered to HELM (examples/helm/run.sh) out of OUT: a JSON line per question.

.venv/bin/python examples/helm/answers.py OUT --input test.jsonl [--predictions runs/mine/predictions.jsonl]

id: of the row of --input with the same question and options, else HELM's own number; completion: what came back;
prediction: 0-based index of the option whose letter that is, or null. With --predictions (a run folder's, or results of
/v1/solve) the answers are also compared; exit status 1 where one differs that is no near tie there: two options closer
than the engine's rounding may change places with the batch.

HELM shows its worked examples in an order of its own. --dev FILE (the rows of csv_files.py's --dev) with --shots FILE
writes them in that order: as `shots.file` of the template helm_mmlu they make solve.py's prompts those of HELM.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LETTERS = "ABCDE"


def runs(out: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Subject and requests with their replies, of all runs in the folder; without perturbed copies of a question."""
    for path in sorted(out.glob("runs/*/mmlu:*/scenario_state.json")):
        if subject := re.search(r"subject=([^,]+)", path.parent.name):
            states = json.loads(path.read_text("utf-8"))["request_states"]
            yield subject[1], [state for state in states if "perturbation" not in state["instance"]]


def answers(out: Path, ids: dict[tuple[str, ...], Any]) -> Iterator[dict[str, Any]]:
    for subject, states in runs(out):
        for state in states:
            instance = state["instance"]
            options = [reference["output"]["text"] for reference in instance["references"]]
            gold = [i for i, reference in enumerate(instance["references"]) if "correct" in reference["tags"]]
            completion = state["result"]["completions"][0]["text"]
            letter = completion.strip()
            known = len(letter) == 1 and letter in LETTERS[: len(options)]
            yield {
                "id": ids.get((instance["input"]["text"], *options), instance["id"]),
                "group": subject,
                "completion": completion,
                "prediction": LETTERS.index(letter) if known else None,
                "correct": known and LETTERS.index(letter) in gold,
            }


def shots(out: Path, dev: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that HELM showed, in the order of the prompt with the most of them: a long question leaves some out."""
    for subject, states in runs(out):
        prompt = max(states, key=lambda state: state["num_train_instances"])["request"]["prompt"]
        places = {prompt.find(f"Question: {row['text']}\n"): row for row in dev if row["group"] == subject}
        yield from (places[place] for place in sorted(places) if place >= 0)


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="run.sh's OUT")
    parser.add_argument("--input", type=Path, help="the questions (JSONL) that csv_files.py made HELM's of")
    parser.add_argument("--predictions", type=Path, help="JSONL with id and prediction")
    parser.add_argument("--dev", type=Path, help="the rows for the shots (JSONL)")
    parser.add_argument("--shots", type=Path, help="is written: those of --dev that HELM showed, in its order")
    options = parser.parse_args()
    ids = {(row["text"], *row["choices"]): row["id"] for row in rows(options.input)} if options.input else {}
    found = list(answers(options.out, ids))
    for answer in found:
        print(json.dumps(answer, ensure_ascii=False))
    correct = sum(answer["correct"] for answer in found)
    print(f"{correct} of {len(found)} correct", file=sys.stderr)
    if options.dev and options.shots:
        lines = [json.dumps(row, ensure_ascii=False) for row in shots(options.out, rows(options.dev))]
        options.shots.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    if not options.predictions:
        return 0
    others = {row["id"]: row for row in rows(options.predictions)}
    common = [(answer, others[answer["id"]]) for answer in found if answer["id"] in others]
    different = [(a["id"], other) for a, other in common if a["prediction"] != other["prediction"]]
    print(f"{len(common) - len(different)} of {len(common)} as in {options.predictions}", file=sys.stderr)
    for question_id, other in different:
        print(f"other answer: {question_id}{' (near tie)' if other.get('near_tie') else ''}", file=sys.stderr)
    return 0 if common and all(other.get("near_tie") for _, other in different) else 1


if __name__ == "__main__":
    sys.exit(main())
