"""Foreign checkpoints, in and out: one file a family, each a table of names and layouts that is read in both directions."""
