#!/usr/bin/env bash
# Every kind of request to a running endpoint, by curl alone.
#
# examples/curl.sh                                          # make serve, on this machine
# BASE=http://host:8000 KEY=... MODEL=smollm2_gptq ENSEMBLE=ensemble:demo examples/curl.sh
#
# Ends with the first request that is not answered with a 2xx status.
set -euo pipefail

BASE=${BASE:-http://127.0.0.1:8000}
MODEL=${MODEL:-smollm2_gptq}
ENSEMBLE=${ENSEMBLE:-ensemble:demo}

ask() { # TITLE PATH [curl's arguments]
  local title=$1 path=$2
  shift 2
  printf '\n== %s: %s\n' "$title" "$path"
  curl --silent --show-error --fail-with-body --max-time "${SECONDS_EACH:-300}" \
    ${KEY:+--header "Authorization: Bearer $KEY"} --header 'Content-Type: application/json' "$@" "$BASE$path"
  echo
}

RIVER='{"id": "river", "text": "Where does a river usually end?", "choices": ["in a cave", "in the sea", "on a roof"]}'
SKY='{"id": "sky", "text": "What is seen in the sky at night?", "choices": ["stars", "roots"], "answer": 0}'
SUM='{"id": "sum", "task": "math", "text": "A box holds 4 cups. How many cups do 3 boxes hold?"}'
CHAT='"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 12, "temperature": 0'

# Is the process there, and can it answer?
ask 'health' /healthz
ask 'ready' /readyz

# The names that "model" may have below.
ask 'models' /v1/models

# One question: its result is the whole answer.
ask 'solve, one question' /v1/solve --data "$RIVER"

# A list: results in the order of the questions, graded where a question has its answer.
ask 'solve, a list' /v1/solve --data "{\"questions\": [$RIVER, $SKY, $SUM]}"

# NDJSON: a result a line, as they finish.
ask 'solve, a stream' /v1/solve --no-buffer --data "{\"questions\": [$RIVER, $SKY, $SUM], \"stream\": true}"

# OpenAI's completion, with the log-probability of each token of the prompt too.
ask 'completion' /v1/completions --data "{\"model\": \"$MODEL\", \"prompt\": \"The sea is\", \"max_tokens\": 4,
  \"temperature\": 0, \"logprobs\": 1, \"echo\": true}"

# OpenAI's chat, in pieces (server-sent events).
ask 'chat, streamed' /v1/chat/completions --no-buffer --data "{\"model\": \"$MODEL\", $CHAT, \"stream\": true}"

# The whole ensemble behind OpenAI's chat.
ask 'chat of the ensemble' /v1/chat/completions --data "{\"model\": \"$ENSEMBLE\", $CHAT}"

# The NeurIPS 2023 challenge's routes: the default model, then the ensemble by its prefix.
ask 'process' /process --data '{"prompt": "The sea is", "max_new_tokens": 4, "temperature": 0}'
ask 'process, ensemble' "/models/$ENSEMBLE/process" --data '{"prompt": "The sea is", "max_new_tokens": 4}'
ask 'tokenize' /tokenize --data '{"text": "The sea is"}'
ask 'decode' /decode --data '{"tokens": [504, 3426, 314]}'
