"""State, step, optimizers, checkpoints and the loop."""
