"""Where the tokens of images stand among those of a text: all before it, or each at its own place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vlmax.errors import InputError
from vlmax.objectives.language_device import IGNORED
from vlmax.systems.system import Batch

Prompt = tuple[Float[Array, "B P D"], Int[Array, "B P"]]


class Row(NamedTuple):
    """Rows of text as a language model reads them.

    Attributes:
      x: embeddings.
      segments: documents 1, 2, ...; 0 is padding.
      labels: what every place predicts; None where an encoder reads them, which predicts nothing.
    """

    x: Float[Array, "B T D"]
    segments: Int[Array, "B T"]
    labels: Int[Array, "B T"] | None


@dataclasses.dataclass(frozen=True)
class Before:
    """A row has one image, and its tokens come before the text, as part of its first document."""

    @property
    def images(self) -> int:
        """How many images a row has."""
        return 1

    def length(self, text: int, image: int) -> int:
        """Tokens of a row that has so many of text, and whose images have so many each."""
        return image + text

    def inputs(self, size: tuple[int, int], text: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The feature `image`, uint8 `[h, w, 3]`."""
        return {"image": jax.ShapeDtypeStruct((*size, 3), jnp.uint8)}

    def images_of(self, batch: Batch) -> UInt8[Array, "B h w 3"]:
        """The images of a batch."""
        return batch["image"]

    def row(self, text: Row, image: Float[Array, "B M D"], batch: Batch) -> Row:
        """The images, then the text; what an image's tokens predict is not learned."""
        count = image.shape[1]
        labels = text.labels
        if labels is not None:
            labels = jnp.pad(labels, ((0, 0), (count, 0)), constant_values=IGNORED)
        segments = jnp.pad(text.segments, ((0, 0), (count, 0)), constant_values=1)
        return Row(jnp.concatenate([image.astype(text.x.dtype), text.x], axis=1), segments, labels)

    def prompt(
        self, words: Float[Array, "B P D"], valid: Int[Array, "B P"], image: Float[Array, "B M D"], batch: Batch
    ) -> Prompt:
        """Padding, the images, the prompt: padded at the left as the prompts are."""
        count, length = image.shape[1], words.shape[1]
        begins = length - jnp.sum(valid, axis=1, keepdims=True)
        place = jnp.arange(count + length)[None] - begins
        words = jnp.pad(words, ((0, 0), (count, 0), (0, 0)))
        return merged(words, image, jnp.where(place < count, place, -1)), (place >= 0).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Placed:
    """A row has several images, whose tokens stand where the feature `places` says (LLaVA; packed documents).

    Raises:
      InputError: no image.
    """

    images: int = 1
    """I, how many images a row has; those that no place names are read for nothing."""

    def __post_init__(self):
        if self.images < 1:
            raise InputError(f"system.layout.images is {self.images}; it must be 1 or more")

    def length(self, text: int, image: int) -> int:
        """Tokens of a row: places of images are among those of the text."""
        return text

    def inputs(self, size: tuple[int, int], text: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The features `image`, uint8 `[I, h, w, 3]`, and `places`, int32 `[T]`.

        A place holds which of the tokens of the row's images stands there, counted from 0 through one image after the
        other, or -1 where the text's own token does.
        """
        return {
            "image": jax.ShapeDtypeStruct((self.images, *size, 3), jnp.uint8),
            "places": jax.ShapeDtypeStruct((text,), jnp.int32),
        }

    def images_of(self, batch: Batch) -> UInt8[Array, "B*I h w 3"]:
        """The images of a batch, those of a row next to each other."""
        return batch["image"].reshape(-1, *batch["image"].shape[2:])

    def row(self, text: Row, image: Float[Array, "B M D"], batch: Batch) -> Row:
        """The text with the images at their places; what these predict is said by its labels, as everywhere."""
        return text._replace(x=merged(text.x, image, batch["places"]))

    def prompt(
        self, words: Float[Array, "B P D"], valid: Int[Array, "B P"], image: Float[Array, "B M D"], batch: Batch
    ) -> Prompt:
        """The prompt with the images at their places, which the batch holds for it."""
        return merged(words, image, batch["places"]), valid


def merged(
    words: Float[Array, "B T D"], image: Float[Array, "B M D"], places: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """At every place its own embedding, or where `places` is not negative, that token of the row's images.

    A place beyond the last token gives NaN.
    """
    taken = jnp.take_along_axis(image, jnp.maximum(places, 0)[..., None], axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where((places >= 0)[..., None], taken.astype(words.dtype), words)
