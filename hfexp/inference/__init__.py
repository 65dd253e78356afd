"""A trained model: load it, ask it, score it, export it."""
