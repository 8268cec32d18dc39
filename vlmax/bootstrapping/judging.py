"""Captioner and filter over batches of pictures with their texts: what is written, and how well each text fits.

The captioner draws one text for each picture (nucleus sampling: Li et al. 2022, table 2, find its texts noisier than
those of beam search and more useful). The filter says how likely a text belongs to its picture.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32

from vlmax.data.cleaning import Cleaning
from vlmax.data.example import Example, Feature, Features, Preprocess, Tokenizes
from vlmax.data.images import ImageTransform
from vlmax.data.preprocess import ImageOnly
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation.captioning import Captioning, PromptedImage
from vlmax.evaluation.features import batch_spec, from_host
from vlmax.evaluation.prompting import prompt_features
from vlmax.evaluation.writing import Writer
from vlmax.systems.system import Carried, Matches, Params, Writes

Arrays = Mapping[str, Array]
NUCLEUS = Generation(max_new_tokens=30, min_new_tokens=5, temperature=1.0, top_p=0.9)
"""BLIP's: the likeliest tokens that together have a probability of 0.9."""


@runtime_checkable
class Filters(Matches, Protocol):
    """A system that says how likely an image and a text belong together."""

    def match_probability(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N D"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """Of the two classes of matching, the probability of "match"; see `Matches.match`."""
        ...


class Verdicts(NamedTuple):
    """What was found for the rows of a batch, whole on every process.

    Attributes:
      valid: False for rows that fill up the batch and for damaged records, of which the rest says nothing.
      web: the probability that a text of the record belongs to its picture; of places without a text it says nothing.
      written: what the captioner wrote.
      synthetic: the probability of that.
    """

    valid: Bool[np.ndarray, " B"]
    web: Float[np.ndarray, "B K"]
    written: list[str]
    synthetic: Float[np.ndarray, " B"]


class Judge(Protocol):
    """Captioner and filter together."""

    @property
    def preprocess(self) -> Preprocess:
        """What batches are made by."""

    def __call__(self, batch: Arrays, seed: int) -> Verdicts:
        """The verdicts on a global batch; `seed` is that of the texts that are drawn. Every process calls it alike."""


@dataclasses.dataclass(frozen=True)
class PictureWithTexts:
    """A picture with up to `most` of its texts as the filter reads them, and what the captioner is given.

    Features: `image` uint8, as the filter sees it; `captioner_image`, where the captioner sees it otherwise; `texts`
    int32 `[most, T]`; the captioner's `prompt`, `prompt_valid` and perhaps `instruction`.
    """

    image: ImageOnly
    prompted: PromptedImage
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "n T"]]
    most: int

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        texts = Feature((self.most, self.tokenize([""]).shape[1]), "int32")
        return {**self._captioner(self.prompted.features()), **self.image.features(), "texts": texts}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """Raises `BadRecord` where there is no picture or it cannot be decoded; texts there may be none."""
        texts = example.texts[: self.most]
        tokens = self.tokenize([*texts, *[""] * (self.most - len(texts))])
        return {**self._captioner(self.prompted(example, rng)), **self.image(example, rng), "texts": tokens}

    def _captioner(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What the captioner is given, its picture under another name where it is another."""
        same = self.prompted.image == self.image
        return {"captioner_image" if n == "image" and not same else n: x for n, x in found.items()}


class Trained(Protocol):
    """A trained system and how its batches are made: `training.restored.Restored`."""

    @property
    def system(self) -> Any:
        """What was trained."""

    @property
    def preprocess(self) -> Any:
        """How its examples became features."""

    @property
    def image(self) -> ImageTransform:
        """What happens to a picture in evaluation."""

    @property
    def clean(self) -> Cleaning | None:
        """What happened to the texts that it was trained on."""

    @property
    def params(self) -> Params:
        """Of the system."""

    @property
    def carried(self) -> Carried:
        """Beside them."""


class CaptionerAndFilter:
    """A `Judge` of two trained systems.

    Args:
      mesh: batches are sharded over it.
      captioner: what writes.
      judge: what judges.
      captioning: how the captioner is asked, and how it writes.
      texts: the most texts of a record that are judged.

    Raises:
      InputError: a system that cannot do its part.
    """

    def __init__(self, mesh: Mesh, captioner: Trained, judge: Trained, captioning: Captioning, texts: int = 5):
        _check(captioner.system, Writes, "captioner", "writes: BLIP, its captioner, or a BLIP-2 of the second stage")
        _check(judge.system, Filters, "filter", "judges pairs: BLIP, its model for retrieval, or a BLIP-2 of the first")
        if not isinstance(judge.preprocess, Tokenizes):
            raise InputError(f"--filter: its preprocess, {type(judge.preprocess).__name__}, cannot read a text alone")
        self._mesh, self._judge, self._captioning = mesh, judge, captioning
        prompted = PromptedImage(ImageOnly(captioner.image), captioning)
        tokenize = Tokenized(judge.preprocess, judge.clean)
        self._preprocess = PictureWithTexts(ImageOnly(judge.image), prompted, tokenize, texts)
        self._writer = Writer(captioner.system, captioner.params, captioner.carried)
        self._token_bytes = captioning.prompting.token_bytes(captioning.settings.stop, self._writer.vocab)

    @property
    def preprocess(self) -> Preprocess:
        """See `Judge`."""
        return self._preprocess

    def __call__(self, batch: Arrays, seed: int) -> Verdicts:
        """See `Judge`; raises `RunFailed` where a probability is no number."""
        prompting, asked = self._captioning.prompting, prompt_features(1, self._captioning.instruction)
        given = {name: batch[name] for name in (*asked, "valid")}
        given["image"] = batch.get("captioner_image", batch["image"])
        settings = dataclasses.replace(self._captioning.settings, seed=seed)
        found = self._writer.generate(given, settings, prompting.marks(), self._token_bytes)
        written = [prompting.written(tokens, settings.stop) for tokens in found.tokens]
        own = from_host(self._mesh, self._preprocess.tokenize(written), batch_spec(self._mesh))
        score = _scorer(self._judge.system, self._mesh)
        scores, valid = jax.device_get(
            score(self._judge.params, self._judge.carried, batch["image"], batch["texts"], own, batch["valid"])
        )
        if not np.isfinite(scores[valid]).all():
            raise RunFailed(
                "the filter gave probabilities that are no numbers (NaN): its parameters hold some, or a product "
                "overflowed; look at the run of --filter"
            )
        return Verdicts(valid, scores[:, :-1], written, scores[:, -1])


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """Texts as the filter was trained to read them."""

    preprocess: Any
    clean: Cleaning | None

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n T"]:
        """Their tokens."""
        return self.preprocess.tokenize(list(texts) if self.clean is None else list(map(self.clean, texts)))


@functools.lru_cache(maxsize=4)
def _scorer(system: Filters, mesh: Mesh) -> Any:
    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def scores(
        params: Params,
        carried: Carried,
        image: Array,
        texts: Int[Array, "B K T"],
        own: Int[Array, "B T"],
        valid: Bool[Array, " B"],
    ) -> tuple[Float[Array, "B K+1"], Bool[Array, " B"]]:
        tokens = system.image_tokens(params, carried, image)
        rows = jnp.concatenate([texts, own[:, None]], axis=1).swapaxes(0, 1)
        found = jax.lax.map(lambda text: system.match_probability(params, carried, tokens, text), rows)
        return found.T.astype(jnp.float32), valid

    return scores


def _check(system: Any, needed: type, what: str, told: str) -> None:
    if not isinstance(system, needed):
        raise InputError(f"--{what}: the run is of a {type(system).__name__}, and must be of a system that {told}")
