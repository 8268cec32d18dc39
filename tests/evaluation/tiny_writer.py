"""Systems that write about pictures of 2 x 2 pixels, one for each kind of decoder, and the slow way to do the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.data.stand_ins import Letters
from tests.evaluation import stand_in
from tests.models.test_transformer import RULES
from vlmax.data.example import Example
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.writing import Writer
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.sharding.rules import unboxed
from vlmax.systems.system import Prompted

V, WIDTH, IMAGE_TOKENS = 30, 24, 4
SIZES = {"width": WIDTH, "depth": 2, "heads": 4, "mlp": 32, "vocab": V, "context": 48}
DECODERS = {
    "bert": BERT(**SIZES, token_types=0, causal=True, cross_width=WIDTH),
    "opt": OPT(**SIZES),
    "t5": T5(width=WIDTH, depth=2, heads=4, head_dim=8, mlp=32, vocab=V, context=48, buckets=8, max_distance=9),
}


@dataclasses.dataclass(frozen=True)
class TinyWriter:
    """BERT attends to the image's tokens; OPT and T5 read them before the prompt, as BLIP-2 has it."""

    family: str

    def decoder_module(self):
        return DECODERS[self.family].build()

    def decoder_params(self, params):
        return {"params": params["decoder"]}

    def prompted(self, params, carried, batch):
        image = batch["image"].reshape(len(batch["image"]), IMAGE_TOKENS, 3).astype(jnp.float32) / 255 - 0.5
        image = image @ params["image"]
        if self.family == "bert":
            return Prompted(batch["prompt"], batch["prompt_valid"], image)
        words = self.decoder_module().apply(self.decoder_params(params), batch["prompt"], method="embed")
        valid = jnp.concatenate([jnp.ones(image.shape[:2], jnp.int32), batch["prompt_valid"]], axis=1)
        return Prompted(jnp.concatenate([image, words], axis=1), valid)


@functools.cache
def weights(family: str, seed: int = 1):
    """Random kernels, and next to no biases, which would say the same of every picture."""
    config, tokens = DECODERS[family], np.zeros((1, 4), np.int32)
    init = functools.partial(config.build().init, jax.random.key(0))
    given = {
        "bert": lambda: init(tokens, context=np.zeros((1, 2, WIDTH), np.float32)),
        "opt": lambda: init(tokens),
        "t5": lambda: init(tokens, tokens),
    }
    shapes = unboxed(jax.eval_shape(given[family]))["params"]
    rng = np.random.default_rng(seed)

    def value(path, shape):
        name, drawn = path[-1].key, rng.standard_normal(shape.shape)
        found = {"scale": 1 + 0.1 * drawn, "bias": 0.1 * drawn, "output_bias": 0.1 * drawn}.get(name, 0.5 * drawn)
        return found.astype(np.float32)

    decoder = jax.tree_util.tree_map_with_path(value, shapes)
    return {"decoder": decoder, "image": 3 * rng.standard_normal((3, WIDTH)).astype(np.float32)}


@functools.cache
def logits_after(family: str):
    """(picture, prompt, new tokens) -> the logits of the next token, alone, without padding at the left or a cache."""
    system, params, length = TinyWriter(family), weights(family), 24
    module, own = system.decoder_module(), system.decoder_params(params)

    @jax.jit
    def run(picture, prompt, size, text, last):
        valid = (jnp.arange(length) < size)[None].astype(jnp.int32)
        if family == "bert":
            read = {"image": picture[None], "prompt": text[None], "prompt_valid": valid}
            given = system.prompted(params, {}, read)
            out = module.apply(own, given.inputs, context=given.context).tokens
        else:
            read = {"image": picture[None], "prompt": (prompt if family == "t5" else text)[None], "prompt_valid": valid}
            given = system.prompted(params, {}, read)
        if family == "opt":
            out = module.apply(own, given.inputs).tokens
            last = last + IMAGE_TOKENS
        if family == "t5":
            encoded = module.apply(own, given.inputs, segments=given.valid, method="encode").tokens
            out = module.apply(own, text[None], encoded, context_segments=given.valid, method="decode").tokens
        return module.apply(own, out, method="logits")[0, last]

    def padded(tokens):
        return np.array([*tokens, *[0] * (length - len(tokens))], np.int32)

    def logits(picture, prompt, new):
        text = [0, *new] if family == "t5" else [*prompt, *new]
        return np.asarray(run(picture, padded(prompt), len(prompt), padded(text), len(text) - 1))

    return logits


def greedy(family: str, picture, prompt, new: int, eos: int = 2) -> list[int]:
    """The likeliest token, again and again."""
    text: list[int] = []
    while len(text) < new and not (text and text[-1] == eos):
        text.append(int(np.argmax(logits_after(family)(picture, prompt, text))))
    return text


def prompting(family: str) -> Prompting:
    return Prompting(Letters(), closed=family == "t5")


def context(family: str, devices: int = 8, **changes) -> Context:
    writer = functools.partial(Writer, TinyWriter(family), weights(family), {})
    return stand_in.context(devices, writer=writer, **changes)


def pictures(count: int, seed: int = 0, **fields) -> tuple[Example, ...]:
    """Pictures with two captions each and an `image_id`."""
    rng = np.random.default_rng(seed)
    return tuple(
        Example(
            str(i),
            rng.integers(0, 256, (2, 2, 3), np.uint8),
            ("".join(rng.choice(list("abcdefg"), 5)), "a man riding a horse"),
            {"image_id": 100 + i, **{name: give(i) for name, give in fields.items()}},
        )
        for i in range(count)
    )


@contextlib.contextmanager
def meshed(shape: tuple[int, int, int, int]) -> Iterator[jax.sharding.Mesh]:
    """A mesh of all devices and the rules, in force as they are in a run."""
    axes = ("data", "fsdp", "tensor", "sequence")
    mesh = jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield mesh
