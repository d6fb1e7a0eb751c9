"""Compares variants (models, prompts, option orders, votes) on the same questions, from one set of model calls.

python pipelines/ablate.py --config configs/ablate_demo.yaml --input questions.jsonl --output runs/compare
"""

import sys
import time
from pathlib import Path

STARTED = time.time()

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not pipelines/

from pipelines import ablation, cli

EPILOG = """\
The folder gets leaderboard.html, leaderboard.json, routes.yaml (the best variant of each task, a config for solve.py),
errors.jsonl and manifest.json. Scores are kept in store.path: what another variant, an earlier run or solve.py asked
for is not asked again, and a second run with more votes or weights over what is stored touches no model.

exit status: 0 all compared; 1 some questions failed and were left out (see errors.jsonl);
2 config, input or model unusable, or more prompts than the budget allows: nothing was asked

examples:
  python pipelines/ablate.py --config configs/ablate_demo.yaml --dry-run
  python pipelines/ablate.py --config mine.yaml --limit 0.1 --task multiple_choice
  python pipelines/ablate.py --config mine.yaml --set budget=50000
  python pipelines/solve.py --config runs/compare/routes.yaml
"""

if __name__ == "__main__":
    options = cli.parser(__doc__.splitlines()[0], EPILOG, "configs/ablate_demo.yaml").parse_args()
    cli.run(lambda: ablation.ablate(options, STARTED))
