"""The record of a run: MLflow, or nothing."""
