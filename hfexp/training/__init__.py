"""What the optimizer touches: the model, the Trainer, checkpoints, callbacks."""
