"""The OpenAI SDK: a conversation, streamed; the second time its reply is drafted from the first.

pip install openai
python examples/openai_chat.py
"""

import os

import openai

BASE_URL = os.environ.get("PACELINE_URL", "http://127.0.0.1:8080/v1")
KEY = os.environ.get("PACELINE_KEY", "local")
MODEL = os.environ.get("PACELINE_MODEL", "smollm2")


def main() -> None:
    client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)
    messages = [{"role": "user", "content": "Name the planets, one a line."}]
    for session in ("monday", "tuesday"):
        stream = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-session-id": session},  # keeps a conversation on one engine
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            elif chunk.usage:
                print(f"\n[{session}: {chunk.usage.completion_tokens} tokens]")
    # What was decided for a request is said in its answer's head, if asked for.
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        max_tokens=40,
        extra_headers={"x-paceline-explain": "on", "x-session-id": "wednesday"},
    )
    print(answer.headers["x-paceline-reason"])


if __name__ == "__main__":
    main()
