"""The model drafter: cut from the target, and taught to speak like it.

Only modules that say so need torch; `settings` is what the command shares with the process it
starts.
"""
