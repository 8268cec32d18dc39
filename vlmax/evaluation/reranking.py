"""Retrieval in two steps: what lies nearest by features, then re-ranked by what reads image and text together.

As BLIP and BLIP-2 are scored on COCO and Flickr30k (Li et al. 2021, ALBEF, section 4; 2022; 2023): of every query's
`k_test` nearest the logit that they match is added to their similarity; all others come after them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from vlmax.data.example import Source
from vlmax.data.pipeline import EvaluationPipeline
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import Chosen, first
from vlmax.evaluation.ranking import nearest, ranks, recall
from vlmax.evaluation.retrieval import Embedded, embedded
from vlmax.models.layers.axes import constrain
from vlmax.systems.system import Matches

RECALLS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Reranking:
    """Scores `image_to_text_r1`, `_r5`, `_r10` and `text_to_image_r1`, ... as `Retrieval` does, but re-ranked.

    Those of the features alone are `unranked_image_to_text_r1`, ...; `pairs` is how many images and texts were read
    together, each once although both directions may ask for it.
    """

    source: Source
    """Pictures, each with its captions."""
    name: str = "reranked"
    """Names the scores: `eval/<name>/image_to_text_r1`."""
    captions: int = 5
    """The most captions of one picture that are read; further ones are left out, and their number is told."""
    prompt: str = "{}"
    """How a caption is put to the model."""
    k_test: int = 256
    """Texts that are re-ranked for every image, and images for every text; 256 for COCO, 128 for Flickr30k."""
    batch_size: int = 256
    """Pictures embedded at once over all devices, and captions likewise."""
    images_at_once: int = 32
    """Pictures whose tokens are held at once over all devices."""
    texts_at_once: int = 16
    """Texts that are read with each of them at once."""
    limit: int | None = None
    """Only the first so many pictures; None for all."""

    def needs(self) -> type:
        """A system with features of images and texts that also reads both together."""
        return Matches

    def check(self, mesh: Mesh) -> None:
        """Opens the source; raises `InputError` for sizes or a prompt that do not fit."""
        self._check_settings(mesh)
        first(self.source, self.limit, f"evaluation {self.name!r}").open()

    def _check_settings(self, mesh: Mesh) -> None:
        where = f"evaluation {self.name!r}"
        least = {name: getattr(self, name) for name in ("captions", "k_test", "texts_at_once")}
        if min(least.values()) < 1 or self.prompt.count("{}") != 1:
            told = ", ".join(f"{name} is {value}" for name, value in least.items())
            raise InputError(
                f"{where}: {told}, and prompt {self.prompt!r}; each must be at least 1, and the prompt needs one {{}} "
                "for the caption"
            )
        features.check_batch_size(self.name, self.batch_size, mesh)
        try:
            features.check_batch_size(self.name, self.images_at_once, mesh)
        except InputError as error:
            raise InputError(str(error).replace("its batch_size", "its images_at_once")) from None

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` as `check` does."""
        self._check_settings(context.mesh)
        source = first(self.source, self.limit, f"evaluation {self.name!r}")
        found = embedded(context, self.name, source, self.captions, self.prompt, self.batch_size)
        images, ids, mesh = found.images, np.arange(len(found.images)), context.mesh
        unranked = {
            "image_to_text": ranks(images, ids, found.texts, found.owners, mesh),
            "text_to_image": ranks(found.texts, found.owners, images, ids, mesh),
        }
        texts, text_scores = nearest(images, found.texts, self.k_test, mesh)
        others, other_scores = nearest(found.texts, images, self.k_test, mesh)
        pairs = Pairs(texts, others)
        logits = matched(self, context, source, found, pairs)
        ways = {
            "image_to_text": (text_scores + logits[pairs.of_images], texts, found.owners[texts] == ids[:, None]),
            "text_to_image": (other_scores + logits[pairs.of_texts], others, others == found.owners[:, None]),
        }
        rights = {"image_to_text": np.bincount(found.owners, minlength=len(images)), "text_to_image": np.array([1])}
        gallery = {"image_to_text": len(found.texts), "text_to_image": len(images)}
        ranked = {
            way: standing(given, right, near >= 0, rights[way], gallery[way])
            for way, (given, near, right) in ways.items()
        }
        scores = {"images": float(len(images)), "texts": float(len(found.texts)), "pairs": float(len(pairs.image))}
        for prefix, answers in {"": ranked, "unranked_": unranked}.items():
            for way, answer in answers.items():
                scores |= {f"{prefix}{way}_r{k}": recall(*answer, k) for k in RECALLS}
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}


class Pairs:
    """The pairs of images and texts that both directions ask for, each once, image by image.

    Attributes:
      image, text: of every pair.
      of_images: the pair of each image with each of its nearest texts.
      of_texts: the pair of each text with each of its nearest images.
    """

    def __init__(self, texts: Int[np.ndarray, "images k"], images: Int[np.ndarray, "texts k"]):
        width = len(images)  # a pair as one number, which sorts image by image
        forth = np.arange(len(texts))[:, None] * width + texts
        back = images.astype(np.int64) * width + np.arange(width)[:, None]
        numbers, where = np.unique(
            np.concatenate([np.where(texts >= 0, forth, -1).ravel(), np.where(images >= 0, back, -1).ravel()]),
            return_inverse=True,
        )
        where = where.ravel()
        self.of_images = where[: texts.size].reshape(texts.shape)
        self.of_texts = where[texts.size :].reshape(images.shape)
        if numbers.size and numbers[0] < 0:  # what is near to nothing has no pair; any stands for it
            numbers = numbers[1:]
            self.of_images, self.of_texts = np.maximum(self.of_images - 1, 0), np.maximum(self.of_texts - 1, 0)
        self.image, self.text = numbers // width, numbers % width


def matched(
    evaluation: Reranking, context: Context, source: Source, found: Embedded, pairs: Pairs
) -> Float[np.ndarray, " pairs"]:
    """The logit of every pair. The tokens of a block of images are computed once, and held for its texts alone."""
    mesh, size, wide = context.mesh, evaluation.images_at_once, evaluation.texts_at_once
    begin = np.searchsorted(pairs.image, np.arange(len(found.images) + 1))
    count = np.diff(begin)
    order = np.argsort(-count, kind="stable")  # images of a block have about as many texts
    order = order[count[order] > 0]
    logits = np.full(max(len(pairs.image), 1), np.nan, np.float32)
    blocks = [order[start : start + size] for start in range(0, len(order), size)]
    chosen = Chosen(source, tuple(int(place) for place in found.places[order]))
    for rows, tokens in zip(blocks, _token_blocks(context, chosen, size), strict=True):
        repeated, answers = _repeated(tokens, wide), []
        for start in range(0, int(count[rows[0]]), wide):
            # Images that have no more texts, and rows that only fill up the block, read some text again, for nothing.
            offset = np.minimum(np.arange(start, start + wide), count[rows][:, None] - 1)
            texts = np.zeros((size, wide), np.int64)
            texts[: len(rows)] = pairs.text[begin[rows][:, None] + offset]
            placed = features.from_host(mesh, found.tokens[texts.reshape(-1)], features.batch_spec(mesh))
            answers.append(context.match(repeated, placed))
        parts = [answer.reshape(size, wide)[: len(rows)] for answer in features.on_host(mesh, answers)]
        for row, own in zip(rows, np.concatenate(parts, axis=1), strict=True):
            logits[begin[row] : begin[row + 1]] = own[: count[row]]
    return logits


def _token_blocks(context: Context, source: Chosen, size: int) -> Iterator[Float[Array, "B N D"]]:
    """The image tokens of one block after the other."""
    if not source.places:
        return
    sharding = NamedSharding(context.mesh, features.batch_spec(context.mesh))
    options = {"workers": context.workers, "threads": context.threads}
    with EvaluationPipeline(source, context.image, size, sharding, **options) as pipeline:
        for batch in pipeline:
            if batch.info.damaged:
                raise RunFailed(f"re-ranking: {batch.info.damaged[0]} was sound when it was read before")
            yield context.image_tokens(batch.arrays["image"])


@functools.partial(jax.jit, static_argnames="times")
def _repeated(tokens: Float[Array, "B N D"], times: int) -> Float[Array, "rows N D"]:
    return constrain(jnp.repeat(tokens, times, axis=0), "batch", None, None)


def standing(
    scores: Float[np.ndarray, "Q k"],
    right: Bool[np.ndarray, "Q k"],
    real: Bool[np.ndarray, "Q k"],
    rights: Int[np.ndarray, " Q"],
    gallery: int,
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """(above, tied) for `ranking.recall`, where all that was not re-ranked comes last, in no order.

    Args:
      scores: of what was re-ranked; one that is not a number counts as above.
      right: whether it is a right answer.
      real: whether it is anything at all; if not, it counts as above, too (see `ranking.nearest`).
      rights: how many right answers there are.
      gallery: how many answers there are.
    """
    scores, right = np.where(real, scores, np.nan), right & real
    own = np.where(right & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    above = (~right & ~(scores <= own)).sum(axis=1)
    tied = (~right & (scores == own)).sum(axis=1)
    lost = np.isneginf(own[:, 0])  # no right answer was re-ranked: it is one of the last
    wrong = (~right).sum(axis=1)
    return np.where(lost, wrong, above), np.where(lost, np.maximum(gallery - rights - wrong, 0), tied)
