"""A model and a source small enough to compute every score by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlmax.data.example import BadRecord, Example, Feature
from vlmax.evaluation.evaluation import Context

CONTEXT = 6
WIDTH = 8


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Examples made by hand; those at `broken` are damaged."""

    examples: tuple[Example, ...]
    broken: tuple[int, ...] = ()
    name: str = "pictures"

    def open(self):
        return self

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        if index in self.broken:
            raise BadRecord("zero bytes")
        return self.examples[index]


@dataclasses.dataclass(frozen=True)
class Plain:
    """The picture as it is."""

    def __call__(self, example, rng):
        return {"image": example.image}

    def features(self):
        return {"image": Feature((2, 2, 3), "uint8")}


def tokenize(texts):
    """Letters as their codes."""
    rows = [[ord(c) % 97 for c in text[-CONTEXT:].rjust(CONTEXT)] for text in texts]
    return np.asarray(rows, np.int32).reshape(len(rows), CONTEXT)


def _weights(shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


IMAGE_WEIGHTS, TEXT_WEIGHTS = _weights((12, WIDTH)), _weights((CONTEXT, 97, WIDTH))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def image_features(images):
    """The stand-in's image features in NumPy."""
    return unit((images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5) @ IMAGE_WEIGHTS)


def text_features(texts):
    """The stand-in's text features in NumPy."""
    tokens = tokenize(texts)
    return unit(sum(TEXT_WEIGHTS[i, tokens[:, i]] for i in range(CONTEXT)))


@jax.jit
def _embed_images(images):
    x = (images.reshape(images.shape[0], -1).astype(jnp.float32) / 255 - 0.5) @ IMAGE_WEIGHTS
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@jax.jit
def _embed_texts(tokens):
    x = sum(jnp.asarray(TEXT_WEIGHTS)[i, tokens[:, i]] for i in range(CONTEXT))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def mesh_of(devices: int) -> Mesh:
    shape = (devices, 1) if devices < 8 else (4, 2)
    return jax.make_mesh(
        shape, ("data", "fsdp"), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,) * 2
    )


def context(devices: int = 8, **changes) -> Context:
    return dataclasses.replace(
        Context(mesh_of(devices), _embed_images, _embed_texts, Plain(), tokenize, log=lambda text: None), **changes
    )


def random_pictures(count: int, seed: int, captions=lambda rng: 1, **fields) -> tuple[Example, ...]:
    """Pictures with random pixels and random captions, all captions distinct."""
    rng = np.random.default_rng(seed)
    made, used = [], set()
    for i in range(count):
        texts = []
        while len(texts) < captions(rng) or not texts:
            text = "".join(rng.choice(list("abcdefghijklmnop"), CONTEXT))
            if text not in used:
                used.add(text)
                texts.append(text)
        image = rng.integers(0, 256, (2, 2, 3), np.uint8)
        made.append(Example(str(i), image, tuple(texts), {name: give(i, rng) for name, give in fields.items()}))
    return tuple(made)
