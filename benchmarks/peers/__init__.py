"""Peers that a benchmark compares with, had on first use and never installed beside Paceline."""
