"""GQA's questions as published: `train_balanced_questions.json` and the folder `images`.

    {"07333408": {"imageId": "2375429", "question": "What is on the white wall?", "answer": "pipe",
                  "fullAnswer": "The pipe is on the wall.", "types": {"structural": "query", ...}, ...}, ...}

Drew Hudson and Christopher Manning, CVPR 2019.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmax.data.sources.annotated import (
    EVERY,
    ID,
    AnnotatedReader,
    Problems,
    Record,
    Wanted,
    open_annotated,
    read_members,
    text_in,
)
from vlmax.data.sources.annotation_forms import GQA as FORM
from vlmax.data.sources.files import find

WANTED: Wanted = {EVERY: {"imageId": ID, "question": object}}


@dataclasses.dataclass(frozen=True)
class GQA:
    """A question about a picture with its one answer.

    Fields: `question`, `question_id`, `image_id`, `types`; and where there are answers `answer`, `answers` (that one,
    so that what reads `VQA` reads this), `full_answer`. The text is the question, the key its number.

    Attributes:
      questions: `train_balanced_questions.json`, `testdev_balanced_questions.json`, or several such.
      images: where the pictures are: folders, URLs, or folders in zip files (`zip://images::/data/images.zip`).
      answered: False reads the questions of a test split, which have no answers.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out questions whose picture is not there; else a missing one is an error.
    """

    questions: tuple[str, ...]
    images: tuple[str, ...]
    answered: bool = True
    name: str = "gqa"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the files, or finds their index.

        Raises:
          InputError: a file or picture is missing, a question has no answer or occurs twice, or a file is of another
            form.
        """
        files = find(self.questions, self.name, "questions")
        return open_annotated(self, files, "questions", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        for number, element in read_members(files, self.name, "questions", WANTED, FORM):
            question = text_in(element, "question", problems, "questions", number)
            fields = {"question": question, "question_id": number, "image_id": element["imageId"]}
            fields |= {"types": element.get("types")}
            if self.answered:
                if not isinstance(element.get("answer"), str):
                    what = "questions without an answer (a test split? set `answered` to False)"
                    problems.add("questions", what, number)
                    continue
                answer = element["answer"]
                fields |= {"answer": answer, "answers": [answer], "full_answer": element.get("fullAnswer")}
            texts = () if question is None else (question,)
            yield Record(str(number), (f"{element['imageId']}.jpg",), texts, fields)
