"""Makes the files that HELM's MMLU scenario reads of two question files; the rows' `group` is the subject.

.venv/bin/python examples/helm/csv_files.py --dev dev.jsonl --test test.jsonl --out OUT

Writes OUT/scenarios/mmlu/data/dev/SUBJECT_dev.csv and OUT/scenarios/mmlu/data/test/SUBJECT_test.csv, where HELM looks
before it downloads anything, and prints the subjects. Rows without choices, gold or group are left out, and counted.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MOST = 5  # options that the scenario has letters for


def subjects(spec: str) -> tuple[dict[str, list[list[str]]], int]:
    """Per subject its rows (question, options, letter of the right one), and how many rows were left out."""
    from ensemble.questions import LETTERS, parse_question
    from ensemble.read import find_inputs
    from ensemble.rows import iter_rows

    rows: defaultdict[str, list[list[str]]] = defaultdict(list)
    left_out = 0
    numbered = enumerate((path, line, row) for path in find_inputs(spec) for line, row in iter_rows(path))
    for i, (path, line, row) in numbered:
        q = parse_question(row, i, str(path), line)
        if isinstance(q.gold, int) and q.group is not None and len(q.choices) <= MOST:
            # HELM's description of a run separates with commas, colons and equals signs.
            if not re.fullmatch(r"[\w.-]+", q.group):
                raise SystemExit(f"{path}:{line}: group {q.group!r} cannot be a subject; use letters, digits, _ . -")
            rows[q.group].append([q.text, *q.choices, LETTERS[q.gold]])
        else:
            left_out += 1
    return rows, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", required=True, help="questions for the shots: file, glob or folder")
    parser.add_argument("--test", required=True, help="questions to be answered: file, glob or folder")
    parser.add_argument("--out", type=Path, required=True, help="HELM's output folder (run.sh's OUT)")
    options = parser.parse_args()
    for split, spec in (("dev", options.dev), ("test", options.test)):
        rows, left_out = subjects(spec)
        folder = options.out / "scenarios/mmlu/data" / split
        folder.mkdir(parents=True, exist_ok=True)
        for subject, lines in sorted(rows.items()):
            with (folder / f"{subject}_{split}.csv").open("w", encoding="utf-8", newline="") as f:
                csv.writer(f).writerows(lines)
        count = sum(map(len, rows.values()))
        print(f"{split}: {count} questions of {len(rows)} subjects, {left_out} rows left out", file=sys.stderr)
    print(*sorted(rows), sep="\n")


if __name__ == "__main__":
    main()
