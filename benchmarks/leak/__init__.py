"""`paceline bench leak`: what an eavesdropper learns from the times and sizes of streams."""
