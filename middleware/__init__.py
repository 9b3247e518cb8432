"""The proxy between agents and engines, and the `paceline` command."""
