"""Probes: measure devices, links, collectives and storage. Predictions use the results."""
