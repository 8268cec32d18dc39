"""Encoders: an image or a text becomes tokens `[B, N, D]` and a pooled vector `[B, D]`."""
