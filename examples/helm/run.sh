#!/usr/bin/env bash
# HELM's MMLU against a running endpoint, through its client for the NeurIPS 2023 challenge (neurips/local).
#
# HELM=VENV BASE=http://127.0.0.1:8000 examples/helm/run.sh OUT SUBJECT...
#
# OUT has the questions (csv_files.py) and gets HELM's results under OUT/runs/quorum. MODEL=ensemble:demo asks the
# endpoint's model of that name, else its default. LIMIT: questions per subject. SHOTS: worked examples, 0 to 5.
# PERTURBATIONS: a folder with SAE_to_AAVE_mapping.json and person_names.txt turns the canonical perturbations on.
# HELM sends no key: the endpoint must run without a keys file, on this machine.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
shift
BASE=${BASE:-http://127.0.0.1:8000}${MODEL:+/models/$MODEL}
BIN=$(cd "${HELM:?names the folder of an environment with HELM, see examples/README.md}/bin" && pwd)

# HELM itself would ask again and again for minutes where there is no endpoint, or none of that name.
curl --silent --show-error --fail-with-body --max-time 60 --header 'Content-Type: application/json' \
  --data '{"text": "a"}' "$BASE/tokenize" > /dev/null

canonical=
if [ -n "${PERTURBATIONS:-}" ]; then
  # Where HELM looks before it downloads them.
  mkdir -p "$OUT/perturbations/dialect" "$OUT/perturbations/person_name/data"
  cp -f "$PERTURBATIONS"/*SAE_to_AAVE_mapping.json "$OUT/perturbations/dialect/SAE_to_AAVE_mapping.json"
  cp -f "$PERTURBATIONS"/*person_names.txt "$OUT/perturbations/person_name/data/person_names.txt"
  canonical=,data_augmentation=canonical
fi

{
  echo 'entries: ['
  for subject in "$@"; do
    echo "  {description: \"mmlu:model=neurips/local,subject=$subject,max_train_instances=${SHOTS:-5}$canonical\"," \
      'priority: 1}'
  done
  echo ']'
} > "$OUT/run.conf"

# One thread keeps the requests in the order of the questions. The cache would answer for another model.
cd "$OUT"
HELM_HTTP_MODEL_BASE_URL=$BASE HF_HUB_OFFLINE=1 PYTHONUTF8=1 "$BIN/helm-run" \
  --conf-paths run.conf --suite quorum --max-eval-instances "${LIMIT:-20}" -n "${THREADS:-1}" \
  --local-path "$OUT/local" -o "$OUT" --disable-cache --exit-on-error
