"""Evaluations: zero-shot classification, retrieval and re-ranking, captions, answers to questions, perplexity."""
