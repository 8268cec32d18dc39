"""Evaluations: zero-shot classification, retrieval."""
