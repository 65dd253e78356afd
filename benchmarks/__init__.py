"""Measurements, each against a limit or a peer in the same run: `python -m benchmarks --list`."""
