"""Processes: a pool of warm ones for the jobs of a sweep, and several for one run."""
