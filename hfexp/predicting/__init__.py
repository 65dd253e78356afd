"""Asking a trained model: `hfexp predict`."""
