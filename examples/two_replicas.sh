#!/usr/bin/env bash
# Two engines behind one proxy, one Redis: what one has served is drafted by the other.
# Needs `paceline` and redis-server on PATH; stops what it started when it ends.
# With vLLM the engines are started by `paceline vllm MODEL --port PORT --redis URL`.
set -euo pipefail
port=${PACELINE_PORT:-8080}
redis=redis://127.0.0.1:$((port + 3))
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

redis-server --port "$((port + 3))" --bind 127.0.0.1 --save '' --dir "$work" --loglevel warning &
for n in 1 2; do
  ${PYTHON:-python} -m paceline.adapters.embedded --port "$((port + n))" --redis "$redis" &
done
cat >"$work/proxy.yaml" <<YAML
listen: {host: 127.0.0.1, port: $port}
upstreams:
  - {name: one, url: "http://127.0.0.1:$((port + 1))"}
  - {name: two, url: "http://127.0.0.1:$((port + 2))"}
YAML
for n in 1 2; do
  until curl -sf "http://127.0.0.1:$((port + n))/health" >/dev/null; do sleep 0.5; done
done
paceline proxy --config "$work/proxy.yaml" &
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do sleep 0.2; done

# A session stays on one engine; different sessions are spread over both.
for session in monday tuesday wednesday thursday friday; do
  echo -n "$session: "
  curl -s -D - -o /dev/null "http://127.0.0.1:$port/v1/chat/completions" -H "x-session-id: $session" \
    -H 'content-type: application/json' -H 'x-paceline-explain: on' \
    -d '{"model": "smollm2", "temperature": 0, "max_tokens": 40,
         "messages": [{"role": "user", "content": "Name some rivers of Europe and their cities."}]}' |
    tr -d '\r' | sed -n 's/^x-paceline-reason: //p'
  sleep 1   # the other engine reads the journal meanwhile
done
for n in 1 2; do
  echo -n "engine $n accepted drafted tokens: "
  curl -s "http://127.0.0.1:$((port + n))/metrics" | sed -n 's/^paceline_engine_accepted_tokens_total //p'
done
