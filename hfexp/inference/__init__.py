"""A trained model: load it, predict with it, score it, export it."""
