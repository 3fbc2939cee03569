"""Measure, predict, load, explain, report.

Imports point from report to bench, probe, predict and results.
"""
