"""Attention, norms, feed-forward, embeddings and the scanned transformer stack."""
