"""The Anthropic SDK, as Claude Code uses it: a streamed message and the tokens of a prompt.

    pip install anthropic
    python examples/anthropic_messages.py

Claude Code itself is pointed here by its environment: claude_code.sh.
"""

import os

import anthropic

BASE_URL = os.environ.get("PACELINE_URL", "http://127.0.0.1:8080/v1").removesuffix("/v1")
KEY = os.environ.get("PACELINE_KEY", "local")
MODEL = os.environ.get("PACELINE_MODEL", "smollm2")


def main() -> None:
    client = anthropic.Anthropic(
        base_url=BASE_URL,
        auth_token=KEY,  # sent as a bearer token, as Claude Code does
        default_headers={"x-claude-code-session-id": "tour"},
    )
    messages = [{"role": "user", "content": "Name the planets, one a line."}]
    counted = client.messages.count_tokens(model=MODEL, messages=messages)
    with client.messages.stream(
        model=MODEL,
        system="You are brief.",
        messages=messages,
        max_tokens=40,
        extra_body={"temperature": 0},  # the SDK has no argument for it
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        said = stream.get_final_message().usage.output_tokens
    print(f"\n[{counted.input_tokens} tokens asked, {said} said]")


if __name__ == "__main__":
    main()
