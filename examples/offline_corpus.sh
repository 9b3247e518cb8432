#!/usr/bin/env bash
# A corpus: text of your own that drafts may come from before anybody has said it.
# Usage: offline_corpus.sh [FOLDER OR FILE]   (the docs of this repository without one)
# Needs `paceline` on PATH; stops what it started when it ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../docs}
port=${PACELINE_PORT:-8080}
work=$(mktemp -d)
export PACELINE_CORPUS_DIR=$work/corpus
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

paceline corpus add "$folder" --name handbook
paceline corpus list

paceline serve --port "$port" --data "$work/data" &
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do sleep 0.5; done

ask() {   # PROMPT: what was verified, by the source that drafted it
  curl -s -D - -o /dev/null "http://127.0.0.1:$port/v1/completions" \
    -H 'content-type: application/json' -H 'x-paceline-explain: on' \
    -d "{\"model\": \"smollm2\", \"temperature\": 0, \"max_tokens\": 48, \"prompt\": \"$1\"}" |
    tr -d '\r' | sed -n 's/^x-paceline-draft-sources: /drafted and right, by source: /p'
}
ask "What an agent says once"   # the first request of a tenant has its corpora opened
sleep 8
ask "A corpus is text of your own, frozen into files from which the"
