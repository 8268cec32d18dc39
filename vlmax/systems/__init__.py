"""Systems: one paper's whole model with its losses in one file."""
