"""Scores of texts that a system writes about images: pure functions of what was written and what people wrote."""
