"""Small models with random weights, prompts of unequal length, and the slow way to continue them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers.embeddings import Rotary

V, NEW = 40, 9
SIZES = {"width": 24, "depth": 2, "heads": 4, "mlp": 32, "vocab": V, "context": 64}
MODELS = {
    "llama": LLaMA(**SIZES, kv_heads=2, rotary=Rotary(100.0)),
    "gpt2": GPT2(**SIZES),
    "opt": OPT(**SIZES),
    "bert": BERT(**SIZES, token_types=0, causal=True),
    "t5": T5(width=24, depth=2, heads=4, head_dim=8, mlp=32, vocab=V, context=64, buckets=8, max_distance=9),
}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, V, length).tolist() for length in (5, 1, 12, 3)]


def parameters(config, seed: int = 1):
    """Random values everywhere, such that texts are varied."""
    tokens = np.zeros((1, 4), np.int32)
    inputs = (tokens, tokens) if isinstance(config, T5) else (tokens,)
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), *inputs))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.5 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def logits_after(config, params):
    """(prompt, new tokens) -> the logits of the next, from a whole pass without padding or cache."""
    module, length = config.build(), 48

    @jax.jit
    def run(params, prompt, size, text, last):
        if isinstance(config, T5):
            segments = (jnp.arange(length) < size)[None].astype(jnp.int32)
            encoded = module.apply(params, prompt[None], segments=segments, method="encode").tokens
            options = {"context_segments": segments, "method": "decode"}
            out = module.apply(params, text[None], encoded, **options).tokens
        else:
            out = module.apply(params, text[None]).tokens
        return module.apply(params, out, method="logits")[0, last]

    def padded(tokens):
        row = np.zeros(length, np.int32)
        row[: len(tokens)] = tokens
        return row

    def logits(prompt, new):
        text = [0, *new] if isinstance(config, T5) else [*prompt, *new]
        return np.asarray(run(params, padded(prompt), len(prompt), padded(text), len(text) - 1))

    return logits


def greedy(logits, prompt, new: int = NEW, eos: tuple[int, ...] = ()) -> list[int]:
    """The likeliest token, again and again."""
    text: list[int] = []
    while len(text) < new and not (text and text[-1] in eos):
        text.append(int(np.argmax(logits(prompt, text))))
    return text
