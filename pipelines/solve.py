"""Answers a question file with an ensemble and writes a run folder.

python pipelines/solve.py --config configs/demo.yaml --input questions.jsonl --output runs/mine
"""

import sys
import time
from pathlib import Path

STARTED = time.time()  # a deadline counts from here: the imports below take a second

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not pipelines/

from pipelines import cli, run

EPILOG = """\
The run folder gets predictions.jsonl, grades.json, submission.json, errors.jsonl, manifest.json and report.html.
Scores are kept in store.path: after an interruption, or with another vote or metric, the same command computes
only what is missing.

exit status: 0 all answered; 1 some questions failed (see errors.jsonl, the rest is written);
2 config, input or model unusable, nothing was answered

examples:
  python pipelines/solve.py --config configs/demo.yaml --dry-run
  python pipelines/solve.py --config configs/demo.yaml --input questions.jsonl --limit 0.1 --output runs/try
  python pipelines/solve.py --config configs/demo.yaml --set submission.format=matsuo --set store.path=/data/store
"""

if __name__ == "__main__":
    options = cli.solve_parser(__doc__.splitlines()[0], EPILOG).parse_args()
    cli.run(lambda: run.solve(options, STARTED))
