"""Retrieval both ways: each picture's captions among all captions, each caption's picture among all pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from vlmax.data.example import BadRecord, Example, Feature, Features, Preprocess, Source
from vlmax.errors import InputError
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import first
from vlmax.evaluation.ranking import ranks, recall
from vlmax.systems.system import Embeds


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Scores `image_to_text_r1`, `_r5`, `_r10` and `text_to_image_r1`, ... (0 to 1); `images` and `texts` are counts.

    Image to text goes by the best placed of the picture's own captions, text to image by the caption's one picture.
    Exactly equal scores stand in random order and the expected share is given (`ranking.recall`). Two pictures with one
    and the same caption cannot both be found by it: a test set should have distinct captions.
    """

    source: Source
    """Pictures, each with its captions."""
    name: str = "retrieval"
    """Names the scores: `eval/<name>/image_to_text_r1`."""
    captions: int = 5
    """The most captions of one picture that are read; further ones are left out, and their number is told."""
    prompt: str = "{}"
    """How a caption is put to the model, e.g. `a photo of {}` as in CLIP, appendix E.1."""
    batch_size: int = 256
    """Pictures embedded at once over all devices, and captions likewise."""
    limit: int | None = None
    """Only the first so many pictures; None for all."""

    def needs(self) -> type:
        """A system with features of images and texts."""
        return Embeds

    def check(self, mesh: Mesh) -> None:
        """Opens the source; raises `InputError` for sizes or a prompt that do not fit."""
        self._check_settings(mesh)
        first(self.source, self.limit, f"evaluation {self.name!r}").open()

    def _check_settings(self, mesh: Mesh) -> None:
        where = f"evaluation {self.name!r}"
        if self.captions < 1 or self.prompt.count("{}") != 1:
            raise InputError(
                f"{where}: captions is {self.captions} and prompt {self.prompt!r}; read at least 1 caption, and "
                "give the prompt one {} for it"
            )
        features.check_batch_size(self.name, self.batch_size, mesh)

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` as `check` does."""
        self._check_settings(context.mesh)
        source = first(self.source, self.limit, f"evaluation {self.name!r}")
        found = embedded(context, self.name, source, self.captions, self.prompt, self.batch_size)
        ids = np.arange(len(found.images))
        scores = {"images": float(len(found.images)), "texts": float(len(found.texts))}
        for way, answer in {
            "image_to_text": ranks(found.images, ids, found.texts, found.owners, context.mesh),
            "text_to_image": ranks(found.texts, found.owners, found.images, ids, context.mesh),
        }.items():
            scores |= {f"{way}_r{k}": recall(*answer, k) for k in (1, 5, 10)}
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}


class Embedded(NamedTuple):
    """A test set of captioned pictures, whole on every process.

    Attributes:
      images: the features of every picture, or several of each.
      places: of each picture in the source.
      texts: the features of all captions, picture by picture.
      tokens: the captions as the system reads them.
      owners: the row of each caption's picture.
    """

    images: Float[np.ndarray, "images *several E"]
    places: Int[np.ndarray, " images"]
    texts: Float[np.ndarray, "texts E"]
    tokens: Int32[np.ndarray, "texts T"]
    owners: Int[np.ndarray, " texts"]


def embedded(context: Context, name: str, source: Source, most: int, prompt: str, batch_size: int) -> Embedded:
    """Features of all pictures and their captions; raises `InputError` as `features.source_features` does.

    Args:
      context: the model, and how it is fed.
      name: of the evaluation, for messages.
      source: pictures with captions.
      most: captions of one picture at most; it is told how many there are beyond.
      prompt: how a caption is put to the model.
      batch_size: pictures embedded at once, and captions likewise.
    """

    def embed(batch: features.Arrays) -> features.Arrays:
        texts = [context.embed_texts(tokens) for tokens in _apart(batch["text"])]
        named = {f"text{i}": text for i, text in enumerate(texts)}
        kept = {name: batch[name] for name in ("captions", "text", "index")}
        return {"image": context.embed_images(batch["image"]), **kept, **named}

    captioned = CaptionedImage(context.image, context.tokenize, most, prompt)
    found = features.source_features(context, name, source, captioned, batch_size, embed)
    left_out = int(np.maximum(found["captions"] - most, 0).sum())
    if left_out:
        context.log(f"evaluation {name!r}: {left_out} captions beyond their picture's first {most} are not scored")
    images, each = found["image"], np.minimum(found["captions"], most)
    real = np.arange(most) < each[:, None]
    texts = np.stack([found[f"text{i}"] for i in range(most)], axis=1)[real]
    features.warn_not_finite(context, name, images=images, texts=texts)
    return Embedded(images, found["index"], texts, found["text"][real], np.repeat(np.arange(len(images)), each))


@jax.jit
def _apart(texts: Int32[Array, "B captions T"]) -> tuple[Int32[Array, "B T"], ...]:
    return tuple(texts[:, i] for i in range(texts.shape[1]))


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """A picture and its captions: `image`, `text` int32 `[most, T]`, and `captions` int32, how many it really has."""

    image: Preprocess
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "n T"]]
    most: int
    prompt: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """Raises `BadRecord` where the picture is damaged or has no caption."""
        if not example.texts:
            raise BadRecord("no caption")
        texts = example.texts[: self.most]
        filled = texts + texts[:1] * (self.most - len(texts))
        return {
            "image": self.image(example, rng)["image"],
            "text": self.tokenize([self.prompt.replace("{}", text) for text in filled]),
            "captions": np.asarray(len(example.texts), np.int32),
        }

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        return {
            "image": self.image.features()["image"],
            "text": Feature((self.most, self.tokenize([""]).shape[1]), "int32"),
            "captions": Feature((), "int32"),
        }
