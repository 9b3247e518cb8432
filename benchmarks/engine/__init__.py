"""`paceline bench engine`: recorded agents' replies forced upon a real engine.

Before each sampling the logits of every verified position are changed so that the target wants the
recorded token of that position. So the acceptance is that of real agents' text, for any weights,
while prefill, verification, scheduling and drafting cost what they cost. docs/bench-engine.md says
what is measured; nothing here is imported by what serves.
"""
