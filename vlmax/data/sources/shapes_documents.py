"""The text of the `shapes` world without its pictures: what a small language model is pretrained on.

Each example is one document about one scene. Everything that a document asks can be answered from what it says before,
so that a model which has learned to read it knows every answer.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vlmax.data.example import Example
from vlmax.data.sources import shapes_text
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_scene import Kind, stream
from vlmax.errors import InputError

Form = Literal["caption", "captions", "question", "conversation"]
Turns = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class ShapesText:
    """The configuration of the source.

    Attributes:
      split: of the scenes; see `Shapes`.
      count: how many examples; a larger count only adds examples at the end.
      seed: another seed is another world of scenes with the same words.
      kinds: which scenes there are; of each of these the first caption says everything.
      forms: what the documents are, drawn alike. `caption`: one of a scene's captions. `captions`: two to four of
        them, each of which says again what the first has said. `question`: its first caption, a question and the
        answer. `conversation`: a dialogue that begins with the caption and asks every question.
    """

    split: Literal["train", "test"] = "train"
    count: int = 1_000_000
    seed: int = 0
    kinds: tuple[Kind, ...] = ("single", "pair", "group")
    forms: tuple[Form, ...] = ("caption", "question", "conversation")

    @property
    def name(self) -> str:
        """`shapes-text-train` or `shapes-text-test`."""
        return f"shapes-text-{self.split}"

    def open(self) -> ShapesTextReader:
        """A reader; raises `InputError` where a field has no meaning."""
        if self.count < 1 or not self.kinds or not self.forms:
            raise InputError(
                f"opening the source {self.name}: count={self.count}, kinds={self.kinds}, forms={self.forms}; count "
                "must be at least 1, kinds and forms not empty; change these of ShapesText"
            )
        return ShapesTextReader(self)


class ShapesTextReader:
    """Random access to the documents."""

    def __init__(self, config: ShapesText):
        self.config = config
        self.world = Shapes(config.split, config.count, seed=config.seed, kinds=config.kinds)

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Example:
        """The document at `index`: the one text. Where it ends in an answer, its fields are `prompt` and `answer`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.config.name} has {len(self)} examples, index {index} is outside")
        config, scene = self.config, self.world.scene(index)
        draws = stream(config.seed, "document", index)
        form = config.forms[draws.below(len(config.forms))]
        key = f"{config.split}-{config.seed}-{index}"
        if form in ("caption", "captions"):
            first, *others = shapes_text.full_captions(scene)
            captions = [first, *others, *shapes_text.loose_captions(scene)]
            if form == "caption":
                return Example(key, None, (captions[draws.below(len(captions))],))
            said = [captions.pop(draws.below(1 + len(others)))]  # a full one
            while captions and len(said) < 4 and (len(said) < 2 or draws.below(2)):
                said.append(captions.pop(draws.below(len(captions))))
            return Example(key, None, ("; ".join(said),))
        if form == "question":
            asked = shapes_text.questions(scene)
            kind, question, answer = asked[draws.below(len(asked))]
            prompt = question_prompt(question, shapes_text.full_captions(scene)[0])
        else:
            prompt, answer = dialogue(shapes_text.conversation(scene))
            kind = form
        return Example(key, None, (f"{prompt} {answer}",), {"prompt": prompt, "answer": answer, "kind": kind})


def question_prompt(question: str, caption: str | None = None) -> str:
    """`a red circle question: what shape is red? answer:`, which the answer follows after a space."""
    asked = f"question: {question} answer:"
    return asked if caption is None else f"{caption} {asked}"


def dialogue(turns: Turns) -> tuple[str, str]:
    """All turns but the last, `user: ... assistant: ... user: ... assistant:`, and what is said last."""
    said = [f"{who}: {text}" for who, text in turns[:-1]]
    who, last = turns[-1]
    return " ".join([*said, f"{who}:"]), last
