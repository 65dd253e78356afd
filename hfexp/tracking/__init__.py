"""What is remembered: the run directory, the journal, MLflow, the report."""
