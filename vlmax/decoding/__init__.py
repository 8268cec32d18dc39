"""Text generation: one compiled loop over a cache, greedy, sampled or by beam search."""
