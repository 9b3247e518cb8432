"""What `paceline bench NAME` runs; each benchmark compares with a peer in the same run."""
