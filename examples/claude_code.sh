#!/usr/bin/env bash
# Claude Code on Paceline: a question, and the conversation continued. Needs `claude` on PATH
# (npm install -g @anthropic-ai/claude-code), and a proxy: `paceline serve`, or one in front of vLLM.
set -euo pipefail
url=${PACELINE_URL:-http://127.0.0.1:8080/v1}
export ANTHROPIC_BASE_URL=${url%/v1}
export ANTHROPIC_AUTH_TOKEN=${PACELINE_KEY:-local}
export ANTHROPIC_MODEL=${PACELINE_MODEL:-smollm2}
export ANTHROPIC_DEFAULT_HAIKU_MODEL=$ANTHROPIC_MODEL   # for titles and the like
export CLAUDE_CODE_MAX_OUTPUT_TOKENS=${CLAUDE_CODE_MAX_OUTPUT_TOKENS:-64}   # a small model has no room for 32,000
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_TELEMETRY=1 DISABLE_ERROR_REPORTING=1 DISABLE_AUTOUPDATER=1

claude -p "Say hello to the riders." --output-format json </dev/null
claude -p "And to those behind." --continue --output-format json </dev/null
