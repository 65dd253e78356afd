"""Pictures, tables and pages about one run."""
