"""Figures, tables and the page about one run."""
