#!/usr/bin/env bash
# Two tenants on one server (two_tenants.yaml): each is drafted from what it said itself, never from the other's.
# Needs `paceline` on PATH; stops what it started when it ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
port=${PACELINE_PORT:-8080}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

new_key() { paceline keys new | awk '{print $2}' | paste -s -d' '; }   # the key and its hash
read -r red red_hash <<<"$(new_key)"
read -r blue blue_hash <<<"$(new_key)"
sed "s/RED_HASH/$red_hash/; s/BLUE_HASH/$blue_hash/" "$here/two_tenants.yaml" >"$work/policy.yaml"
paceline policy check "$work/policy.yaml"

paceline serve --port "$port" --policy "$work/policy.yaml" --data "$work/data" &
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do sleep 0.5; done

ask() {   # NAME KEY: what was decided for the same question
  curl -s -D - -o /dev/null "http://127.0.0.1:$port/v1/chat/completions" \
    -H "authorization: Bearer $2" -H 'content-type: application/json' -H 'x-paceline-explain: on' \
    -d '{"model": "smollm2", "temperature": 0, "max_tokens": 40,
         "messages": [{"role": "user", "content": "Name some rivers of Europe and their cities."}]}' |
    tr -d '\r' | sed -n "s/^x-paceline-draft-sources: /$1: /p"
}
ask "red, first time" "$red"
ask "red, second time" "$red"
ask "blue, first time" "$blue"
ask "blue, second time" "$blue"
