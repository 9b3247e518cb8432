"""`paceline bench exact`: whether speculation changes what a real target says, and how fast it is.

Greedy and seeded replies are compared token for token between the embedded engine without
speculation and with every way of drafting; sampled ones are held against the target's own
probabilities. docs/bench-exact.md says how.
"""
