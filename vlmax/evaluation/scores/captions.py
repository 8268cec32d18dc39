"""What scores of captions are given and what they give back."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vlmax.data.example import Example
from vlmax.errors import InputError
from vlmax.evaluation.scores.ptb import tokenized_in_order


@dataclasses.dataclass(frozen=True)
class Captions:
    """One caption for each image, and what people wrote about it, in the same order.

    Attributes:
      written: the captions that are scored.
      references: at least one for each image.
    """

    written: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """The captions as the reference tokenizes them, tokens parted by spaces."""
        return tokenized_in_order(self.written)

    @functools.cached_property
    def reference_tokens(self) -> tuple[tuple[str, ...], ...]:
        """The references in the same way."""
        found = iter(tokenized_in_order([text for texts in self.references for text in texts]))
        return tuple(tuple(itertools.islice(found, len(texts))) for texts in self.references)


class Scored(NamedTuple):
    """One score.

    Attributes:
      value: over all images.
      images: of each image; the value is not always their mean.
    """

    value: float
    images: Float[np.ndarray, " images"]


@runtime_checkable
class CaptionScore(Protocol):
    """A frozen configuration of one way to score captions, what `Captioning` holds."""

    def check(self) -> None:
        """Raises `InputError` for what it needs and is not there, such as a program."""
        ...

    def reads(self, example: Example) -> Any:
        """What it must know of an example beside its texts, as JSON types; None for nothing."""
        ...

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The scores by their names; `facts` is what it has read of every image's example."""
        ...


def paired(
    results: Iterable[Mapping[str, Any]], references: Mapping[Hashable, Sequence[str]], where: str = "caption results"
) -> Captions:
    """Captions in the form of COCO's results, beside their references.

    Args:
      results: each with `image_id` and `caption`.
      references: image id -> texts; every one of these images is scored.
      where: what the results are, for messages.

    Raises:
      InputError: a result without these fields, two of one image, one of no image of the reference, an image of the
        reference without a result or without a text.
    """
    found: dict[Hashable, str] = {}
    for i, result in enumerate(results):
        if not isinstance(result, Mapping) or not {"image_id", "caption"} <= set(result):
            raise InputError(
                f"{where}: entry {i} is {str(result)[:80]}; each must have the fields image_id and caption, as in "
                "COCO's results"
            )
        image, caption = result["image_id"], result["caption"]
        if image not in references:
            raise InputError(
                f"{where}: entry {i} is about image {image!r}, which the reference does not have; score it against the "
                "split that it was written for"
            )
        if image in found:
            raise InputError(f"{where}: entry {i} is a second caption of image {image!r}; give one for each image")
        if not isinstance(caption, str):
            raise InputError(f"{where}: entry {i}, of image {image!r}, has the caption {caption!r}; give a text")
        found[image] = caption
    missing = [image for image in references if image not in found]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of the reference's {len(references)} images have no caption, the first is "
            f"{missing[0]!r}; a score over fewer images would not be the published one: write the missing ones, or cut "
            "the reference"
        )
    bare = [image for image, texts in references.items() if not texts]
    if bare:
        raise InputError(f"{where}: image {bare[0]!r} of the reference has no text to be scored against; leave it out")
    if not references:
        raise InputError(f"{where}: the reference has no images")
    return Captions(tuple(found[image] for image in references), tuple(tuple(texts) for texts in references.values()))


def read_results(path: str | Path) -> list[Mapping[str, Any]]:
    """A file of COCO's results: a JSON list of objects. Raises `InputError` where it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"reading results: {path} cannot be read as JSON ({error}); name a file that can") from None
    if not isinstance(content, list):
        raise InputError(f"reading results: {path} holds no list; results are a list of objects, as in COCO's format")
    return content
