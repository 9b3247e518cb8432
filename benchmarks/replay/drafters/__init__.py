"""The drafters that a replay compares, one a file; `registry` names them."""
