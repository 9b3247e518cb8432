"""Tenants, their keys and what they may do; the naming of workloads. Pure: no I/O happens here."""
