"""`paceline bench chaos`: engines that share a memory, while what they depend on dies."""
