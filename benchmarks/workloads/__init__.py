"""`paceline bench workloads`: how well kinds of work are told apart, beside other ways."""
