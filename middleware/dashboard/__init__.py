"""The dashboard: a process of its own beside the proxy, which serves its pages at /dashboard."""
