"""Captioning: what a system writes about the pictures of a test set is held against what people wrote."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vlmax.data.example import Example, Feature, Features, Preprocess, Source
from vlmax.data.image_prompts import Instruction
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import first
from vlmax.evaluation.notes import first_example, image_id, notes
from vlmax.evaluation.prompting import Prompting, check_prompts, prompt_features, prompt_row
from vlmax.evaluation.scores.bleu import Bleu
from vlmax.evaluation.scores.captions import CaptionScore, paired
from vlmax.evaluation.scores.cider import CiderD
from vlmax.evaluation.scores.rouge import RougeL
from vlmax.evaluation.writing import new_tokens, writes
from vlmax.systems.system import Writes


@dataclasses.dataclass(frozen=True)
class Captioning:
    """Scores what `scores` say, `images`, how many were scored, and `words`, the mean length of a caption.

    The captions are kept with the run, in COCO's form of results.
    """

    source: Source
    """Pictures, each with its captions; the field `image_id` names a picture, or else its key."""
    prompting: Prompting
    """How the prompt is put to the system."""
    name: str = "captions"
    """Names the scores: `eval/<name>/cider`."""
    prompt: str = ""
    """What the captions go on from, such as `a picture of`; it is no part of them."""
    instruction: Instruction | None = None
    """How the prompt is put to a Q-Former that reads it, too; None: none does."""
    settings: Generation = Generation(max_new_tokens=16, min_new_tokens=1, beams=3)
    """How they are written. These are BLIP's for COCO, whose lengths of 5 to 20 count the prompt's four tokens."""
    scores: tuple[CaptionScore, ...] = (Bleu(), RougeL(), CiderD())
    """How they are scored; METEOR, SPICE and what is true of `shapes` are others. (): they are only kept."""
    batch_size: int = 64
    """Pictures at once over all devices."""
    limit: int | None = None
    """Only the first so many pictures; None for all."""

    def needs(self) -> type:
        """A system that writes."""
        return Writes

    def check(self, mesh: Mesh) -> None:
        """Opens source and tokenizer; raises `InputError` for sizes, marks, programs or fields that do not fit."""
        features.check_batch_size(self.name, self.batch_size, mesh)
        self.prompting.tokens(self.prompt)
        self.prompting.marks()
        for score in self.scores:
            score.check()
        example = first_example(first(self.source, self.limit, f"evaluation {self.name!r}"))
        if example is not None:
            self._noted(example)

    def check_prompts(self, system: Any, learned: Any) -> None:
        """See `prompting.Prompts`."""
        check_prompts(f"evaluation {self.name!r}", self.prompting, self.instruction, system, learned)

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` as `check` and `scores.captions.paired` do."""
        where = f"evaluation {self.name!r}"
        source = first(self.source, self.limit, where)
        prompted = PromptedImage(context.image, self)
        write = writes(context, self.prompting, self.settings)
        found = features.source_features(context, self.name, source, prompted, self.batch_size, write)
        texts = [self.prompting.written(row, self.settings.stop) for row in new_tokens(found)]

        noted = notes(source, found["index"], self._noted)
        outputs = [{"image_id": note["image_id"], "caption": text} for note, text in zip(noted, texts, strict=True)]
        context.keep(self.name, outputs)
        scores = {"images": float(len(texts)), "words": float(np.mean([len(text.split()) for text in texts]))}
        if self.scores:
            captions = paired(outputs, _references(noted, where), where)
            for i, score in enumerate(self.scores):
                given = score.score(captions, [note["facts"][i] for note in noted])
                scores |= {name: one.value for name, one in given.items()}
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}

    def _noted(self, example: Example) -> dict[str, Any]:
        facts = [score.reads(example) for score in self.scores]
        return {"image_id": image_id(example), "texts": list(example.texts), "facts": facts}


def _references(noted: list[dict[str, Any]], where: str) -> dict[Any, list[str]]:
    (image, times), *_ = collections.Counter(note["image_id"] for note in noted).most_common(1)
    if times > 1:
        raise InputError(
            f"{where}: its source has image {image!r} more than once; a picture must come once, with all its captions"
        )
    return {note["image_id"]: note["texts"] for note in noted}


@dataclasses.dataclass(frozen=True)
class PromptedImage:
    """A picture with the same prompt as all: `image`, `prompt` and `prompt_valid` int32 `[P]`, maybe `instruction`."""

    image: Preprocess
    captioning: Captioning

    @functools.cached_property
    def prompt(self) -> Features:
        """The features that all pictures have."""
        tokens = self.captioning.prompting.tokens(self.captioning.prompt)
        instruction = self.captioning.instruction
        told = {} if instruction is None else {"instruction": instruction.fixed(self.captioning.prompt)[0]}
        return {**prompt_row(tokens, len(tokens)), **told}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """Raises `BadRecord` where the picture is damaged."""
        return {"image": self.image(example, rng)["image"], **self.prompt}

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        length = len(self.prompt["prompt"])
        return {"image": self.image.features()["image"], **prompt_features(length, self.captioning.instruction)}
