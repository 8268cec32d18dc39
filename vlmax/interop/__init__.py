"""Foreign checkpoints, in and out: one file a family, a table of names and layouts read in both directions."""
