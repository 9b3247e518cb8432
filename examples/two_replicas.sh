#!/usr/bin/env bash
# Two engines behind one proxy, one Redis: what one has served the other drafts.
# The engines here are embedded ones; a vLLM is started by `paceline vllm MODEL --port PORT --redis URL`.
# Needs `paceline`, `python` and `redis-server` on PATH; stops what it started when it ends.
set -euo pipefail
port=${PACELINE_PORT:-8080}
redis=redis://127.0.0.1:$((port + 3))
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

redis-server --port "$((port + 3))" --bind 127.0.0.1 --save '' --dir "$work" --loglevel warning &
engines=()
for n in 1 2; do
  python -m paceline.adapters.embedded --port "$((port + n))" --redis "$redis" &
  engines[n]=$!
done
cat >"$work/proxy.yaml" <<YAML
listen: {host: 127.0.0.1, port: $port}
upstreams:
  - {name: engine-1, url: "http://127.0.0.1:$((port + 1))", decisions_url: "http://127.0.0.1:$((port + 1))"}
  - {name: engine-2, url: "http://127.0.0.1:$((port + 2))", decisions_url: "http://127.0.0.1:$((port + 2))"}
routing: {policy: round_robin}   # so that both serve here; without it the second would go where the first was read
YAML
for n in 1 2; do
  until curl -sf "http://127.0.0.1:$((port + n))/health" >/dev/null; do
    kill -0 "${engines[n]}" # ends the script if the engine has ended
    sleep 0.5
  done
done
paceline proxy --config "$work/proxy.yaml" &
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do sleep 0.2; done

served() { curl -s "http://127.0.0.1:$((port + $1))/metrics" | sed -n 's/^paceline_engine_requests_total //p'; }

for session in monday tuesday wednesday thursday friday; do
  before=$(served 1)
  sources=$(curl -s -D - -o /dev/null "http://127.0.0.1:$port/v1/chat/completions" -H "x-session-id: $session" \
    -H 'content-type: application/json' -H 'x-paceline-explain: on' \
    -d '{"model": "smollm2", "temperature": 0, "max_tokens": 40,
         "messages": [{"role": "user", "content": "Name some rivers of Europe and their cities."}]}' |
    tr -d '\r' | sed -n 's/^x-paceline-draft-sources: //p')
  [ "$(served 1)" = "$before" ] && n=2 || n=1
  echo "$session, engine $n: $sources"
  sleep 1   # the other engine reads meanwhile what this one has written
done
