"""Connectors: image tokens to what a decoder reads."""
