"""`paceline bench learn`: a drafter that learns from live traffic, beside the same one frozen.

Real processes: an engine that follows the registry, the proxy, a Redis, the learner.
"""
