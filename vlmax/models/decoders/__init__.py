"""Decoders: language models, from tokens or embeddings to the probabilities of the next token."""
