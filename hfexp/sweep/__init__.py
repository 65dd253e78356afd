"""Sweeps: points of a search space, each a job or several, one record of them all."""
