"""The Paceline worker inside vLLM.

`launch` turns `paceline vllm MODEL ...` into a `vllm serve` command; `worker` holds the worker
classes that vLLM loads (`--worker-cls`); `proposer` drafts (`--speculative-config`, method
``custom_class``). Only `worker` imports vllm.
"""
