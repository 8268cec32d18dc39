"""Questions about the pictures of the `shapes` world, as the annotated sources have them (`VQA`, `GQA`)."""

from __future__ import annotations

import dataclasses

from vlmax.data.example import Example
from vlmax.data.sources.shapes import Shapes, ShapesReader
from vlmax.data.sources.shapes_scene import stream


@dataclasses.dataclass(frozen=True)
class ShapesQuestions:
    """A question about every scene, drawn from those that it has.

    Fields: `question`, `question_id`, `answers` (the one answer), `answer`, `answer_type` (`count`, `color`, `shape`,
    `place`, `relation`, `yes/no`), `image_id`, and those of `Shapes`. The text is the question.
    """

    shapes: Shapes = Shapes()
    """The scenes and their pictures."""

    @property
    def name(self) -> str:
        """`shapes-train-questions` or `shapes-test-questions`."""
        return f"{self.shapes.name}-questions"

    def open(self) -> ShapesQuestionsReader:
        """A reader; raises `InputError` where a field of `shapes` has no meaning."""
        return ShapesQuestionsReader(self.shapes.open())


class ShapesQuestionsReader:
    """Random access to the questions."""

    def __init__(self, reader: ShapesReader):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Example:
        """The question at `index` with its picture."""
        example = self.reader[index]
        asked = example.fields["questions"]
        assert isinstance(asked, tuple)
        kind, question, answer = asked[stream(self.reader.config.seed, "question", index).below(len(asked))]
        fields = {**example.fields, "question": question, "question_id": f"{example.key}-question"}
        fields |= {"answers": [answer], "answer": answer, "answer_type": kind, "image_id": example.key}
        return Example(str(fields["question_id"]), example.image, (question,), fields)
