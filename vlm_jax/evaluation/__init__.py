"""Metrics, benchmarks, the runner and the report."""
