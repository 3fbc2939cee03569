"""Benchmarks: run workloads against the served model while samplers observe every node."""
