"""Sources: random access to raw image-text records, one file a format."""
