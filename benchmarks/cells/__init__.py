"""`paceline bench cells`: throughput in every cell of load, by workload and requests in flight.

Each way of speculating runs beside an engine without speculation, a core each, cell by cell.
`paceline bench drift` has one cell, in which one tenant's workload changes its kind.
"""
