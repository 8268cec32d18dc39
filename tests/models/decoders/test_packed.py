"""Packed documents under every attention kernel that can run on a CPU: editing one changes no logit of another."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers import kernels

T = 256  # two blocks of splash attention
SIZES = {"width": 16, "heads": 2, "depth": 1, "mlp": 16, "vocab": 30, "context": T}
DECODERS = {
    "llama": LLaMA(**SIZES, kv_heads=1),
    "mistral": LLaMA(**SIZES, kv_heads=1, window=40),
    "qwen2": LLaMA(**SIZES, kv_heads=2, tied=True, qkv_bias=True),
    "gpt2": GPT2(**SIZES),
    "opt": OPT(**SIZES),
    "opt_350m": OPT(**SIZES, token_width=8, post_norm=True),
    "bert": BERT(**SIZES),
    "bert_causal": BERT(**SIZES, causal=True),
    "t5": T5(**SIZES, head_dim=8),
}
LENGTHS = [(100, 1, 70, 85), (0, 128, 128, 0), (30, 90, 9, 100)]
SEGMENTS = np.zeros((len(LENGTHS), T), np.int32)
for row, (begin, *lengths) in enumerate(LENGTHS):
    ids = np.repeat([0, 1, 2, 3], [begin, *lengths])
    SEGMENTS[row, : len(ids)] = ids
TOKENS = np.random.default_rng(0).integers(0, 30, SEGMENTS.shape).astype(np.int32)


@pytest.fixture(params=["xla", "splash", "cudnn"])
def backend(request, monkeypatch):
    """The kernel, and a list of what it computed: splash interpreted, and for cuDNN what the library is called with."""
    calls = []
    splash, library = kernels.splash, kernels._library

    def interpreted(*arrays):
        calls.append(arrays)
        return splash(*arrays, interpret=True)

    def products(q, k, v, mask, implementation):
        calls.append(implementation)
        return library(q, k, v, mask, "xla")

    monkeypatch.setattr(kernels, "splash", interpreted)
    monkeypatch.setattr(kernels, "_library", products)
    monkeypatch.setenv(kernels.VARIABLE, request.param)
    return request.param, calls


def logits_of(config, dtype):
    """Tokens -> logits of random parameters, compiled anew: the kernel is chosen when it is traced."""
    module = config.build(dtype)
    arguments = (TOKENS, TOKENS) if isinstance(config, T5) else (TOKENS,)
    shapes = nn.unbox(jax.eval_shape(functools.partial(module.init, segments=None), jax.random.key(0), *arguments))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)
    segments = {"segments": SEGMENTS} | ({"target_segments": SEGMENTS} if isinstance(config, T5) else {})

    @jax.jit
    def run(*tokens):
        out = module.apply(params, *tokens, **segments)
        return module.apply(params, out.tokens, method="logits")

    return lambda tokens: run(*(tokens for _ in arguments))


@pytest.mark.parametrize("name", DECODERS)
def test_editing_one_document_changes_no_logit_of_another(name, backend):
    kernel, calls = backend
    run = logits_of(DECODERS[name], jnp.bfloat16 if kernel == "cudnn" else jnp.float32)
    before = run(TOKENS)
    assert bool(calls) == (kernel != "xla")  # no kernel takes T5's bias, but its cross-attention has none
    for document in (1, 2, 3):
        after = run(np.where(document == SEGMENTS, (TOKENS + 7) % 30, TOKENS))
        changed = np.any(np.asarray(before != after), axis=-1)
        np.testing.assert_array_equal(changed, document == SEGMENTS)


@pytest.mark.parametrize("name", ["mistral", "bert", "gpt2"])
def test_the_kernels_agree_on_packed_documents(name, backend, monkeypatch):
    kernel, _ = backend
    dtype = jnp.bfloat16 if kernel == "cudnn" else jnp.float32
    found = np.asarray(logits_of(DECODERS[name], dtype)(TOKENS), np.float32)
    monkeypatch.setenv(kernels.VARIABLE, "xla")
    want = np.asarray(logits_of(DECODERS[name], jnp.float32)(TOKENS))
    read = SEGMENTS > 0
    assert np.abs(found - want)[read].max() <= (0.03 if kernel == "cudnn" else 1e-4) * np.abs(want[read]).max()
