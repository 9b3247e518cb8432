#!/usr/bin/env bash
# A learner beside vLLM: it trains the drafter on what is served, in the time that the engine leaves.
# Usage: learner_beside_vllm.sh MODEL DRAFTER, beside a Redis and a vLLM that were started as
#   paceline drafter init MODEL DRAFTER --num-layers 2
#   mkdir drafters
#   paceline vllm MODEL --served-model-name target --port 8001 --redis redis://127.0.0.1:6379 \
#     --drafter DRAFTER --drafter-registry ./drafters
# Needs `paceline` on PATH; stops what it started when it ends.
set -euo pipefail
model=$(realpath "$1") drafter=$(realpath "$2") registry=$(realpath "${REGISTRY:-./drafters}")
engine=${ENGINE:-http://127.0.0.1:8001} redis=${REDIS:-redis://127.0.0.1:6379}
port=${PACELINE_PORT:-8080}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

cat >"$work/proxy.yaml" <<YAML
listen: {host: 127.0.0.1, port: $port}
upstreams: [{name: one, url: "$engine"}]
local_learning: true   # with a policy file its tenants say \`learn: true\` instead
YAML
paceline proxy --config "$work/proxy.yaml" &
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do sleep 0.5; done

# Small figures, so that the first lesson comes within a minute; docs/learning.md has all settings.
cat >"$work/learner.yaml" <<YAML
redis_url: $redis
registry: $registry
data: $work/learner
model: target
target: $model
drafter: $drafter
teacher: {kind: served, url: "$engine"}
load: {engines: ["$engine"]}
replay: {quiet_seconds: 1, held_out_share: 0.3, passage_tokens: 256, context_tokens: 32}
cycle: {min_new_tokens: 100, passages: 4, epochs: 1}
gate: {min_sessions: 2}
metrics: {port: $((port + 1))}
YAML
paceline learner --config "$work/learner.yaml" &

for session in {1..12}; do
  curl -sf "http://127.0.0.1:$port/v1/chat/completions" -H "x-session-id: tour-$session" -H 'content-type: application/json' \
    -d "{\"model\": \"target\", \"max_tokens\": 40, \"messages\": [{\"role\": \"user\", \"content\": \"Tell of stage $session.\"}]}" \
    >/dev/null
done
echo "served 12 conversations; the learner goes on when the engine is idle"

learned() { curl -s "http://127.0.0.1:$((port + 1))/metrics" | sed -n 's/^paceline_learner_events_total{.*event="steps".*} //p'; }
until [ "$(learned | cut -d. -f1)" -gt 0 ] 2>/dev/null; do sleep 1; done
echo "training steps: $(learned)"
paceline drafter list --redis "$redis" --registry "$registry"
