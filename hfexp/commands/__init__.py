"""What a person types: one file per command, with the Python function of the same name."""
