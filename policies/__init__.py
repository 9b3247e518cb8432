"""Tenants, their keys and what they may do; the naming of workloads; what is worth its time.

Pure: no I/O happens here.
"""
