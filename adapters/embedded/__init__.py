"""The embedded engine: a small target through transformers, with the same `Speculator` as vLLM's.

It is what `paceline serve` runs on a laptop, and the reference for the engines that are harder to
look into.
"""
