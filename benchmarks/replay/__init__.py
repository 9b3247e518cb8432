"""`paceline bench replay`: what drafters would get accepted on recorded agents' replies.

No model runs. A recorded reply is the truth, verification is greedy, and every drafter gets the
same requests in the same order. docs/replay.md says what is measured.
"""
