"""Questions about COCO's pictures with their answers as published: VQA v1, VQAv2 and OK-VQA.

    v2_OpenEnded_mscoco_train2014_questions.json   {"data_subtype": "train2014", "questions": [
                                                      {"question_id", "image_id", "question"}]}
    v2_mscoco_train2014_annotations.json           {"annotations": [{"question_id", "image_id", "question_type",
                                                      "answer_type", "multiple_choice_answer",
                                                      "answers": [{"answer", "answer_confidence", "answer_id"}]}]}
    train2014/COCO_train2014_000000458752.jpg

Yash Goyal and others, Making the V in VQA Matter, CVPR 2017; Kenneth Marino and others, OK-VQA, CVPR 2019.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vlmax.data.sources.annotated import (
    ID,
    AnnotatedReader,
    Problems,
    Record,
    Wanted,
    member,
    open_annotated,
    read_members,
    text_in,
)
from vlmax.data.sources.annotation_forms import ANSWERS, QUESTIONS
from vlmax.data.sources.files import find, wrong

ASKED: Wanted = {"questions": {"question_id": ID, "image_id": ID, "question": object}}
ANSWERED: Wanted = {"annotations": {"question_id": ID, "image_id": ID, "answers": list}}


@dataclasses.dataclass(frozen=True)
class VQA:
    """A question about a picture, with the answers of all annotators.

    Fields: `question`, `question_id`, `image_id`; and where there are annotations `answers` (ten strings, as they were
    given), `answer` (the most common one), `question_type`, `answer_type`. The text is the question, the key its id.

    Attributes:
      questions: the files of questions; of several splits all are read.
      annotations: the files of answers to them; () for the questions of a test split.
      images: where the pictures are: the folder with `train2014/` and `val2014/`; also URLs, and folders in zip files
        (`zip://::/data/train2014.zip`).
      picture: the path of a question's picture. `subtype` is that of the questions' file (`val2014`; of `test-dev2015`
        it is `test2015`).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out questions whose picture is not there; else a missing one is an error.
    """

    questions: tuple[str, ...]
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    picture: str = "{subtype}/COCO_{subtype}_{image_id:012d}.jpg"
    name: str = "vqa"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the files, or finds their index.

        Raises:
          InputError: a file or picture is missing, a question has no answers or occurs twice, a file is of another
            form, or `picture` is no template of a path.
        """
        questions = find(self.questions, self.name, "questions")
        annotations = find(self.annotations, self.name, "annotations") if self.annotations else ()
        files = (*questions, *annotations)
        return open_annotated(self, files, "questions", lambda p: self._records(questions, annotations, p))

    def _records(self, questions, annotations, problems: Problems) -> Iterator[Record]:
        answered = self._answers(annotations, problems)
        for file in questions:
            subtype = self._subtype(file)
            for _, element in read_members((file,), self.name, "questions", ASKED, QUESTIONS):
                number, image_id = element["question_id"], element["image_id"]
                question = text_in(element, "question", problems, "questions", number)
                found = answered.get(number, {})
                if annotations and not found:
                    problems.add("annotations", "questions without answers", number)
                elif found and found["image_id"] != image_id:
                    problems.add("annotations", "questions about another picture than their answers", number)
                fields = {"question": question, "question_id": number, **found, "image_id": image_id}
                path = self._path(subtype, image_id)
                yield Record(str(number), (path,), () if question is None else (question,), fields)

    def _answers(self, annotations, problems: Problems) -> dict[Any, dict[str, Any]]:
        """The fields that come of the annotations, by question."""
        answered: dict[Any, dict[str, Any]] = {}
        shared: dict[str, str] = {}  # most answers are a few thousand words, each held once
        for _, element in read_members(annotations, self.name, "annotations", ANSWERED, ANSWERS):
            number, given = element["question_id"], element["answers"]
            answers = [a["answer"] for a in given if isinstance(a, dict) and isinstance(a.get("answer"), str)]
            if not answers or len(answers) < len(given):
                problems.add("annotations", "questions without answers, or with answers that are no text", number)
                continue
            if number in answered:
                problems.add("annotations", "questions that are answered more than once", number)
            answers = [shared.setdefault(a, a) for a in answers]
            common = element.get("multiple_choice_answer") or max(answers, key=answers.count)
            answered[number] = {"image_id": element["image_id"], "answers": answers, "answer": common}
            answered[number] |= {n: element.get(n) for n in ("question_type", "answer_type")}
        return answered

    def _subtype(self, file) -> str:
        """Which pictures the questions of a file are about, `train2014`."""
        if "{subtype" not in self.picture:
            return ""
        subtype = member(file, self.name, "questions", "data_subtype")
        if not isinstance(subtype, str):
            for _ in read_members((file,), self.name, "questions", ASKED, QUESTIONS):  # another file has a better error
                break
            told = f"{file.path} has no data_subtype, which `picture` asks for; write `picture` without {{subtype}}"
            raise wrong(self.name, "picture", told)
        return subtype.replace("test-dev", "test")

    def _path(self, subtype: str, image_id: Any) -> str:
        try:
            return self.picture.format(subtype=subtype, image_id=image_id)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            told = f"picture {self.picture!r} makes no path of subtype {subtype!r} and image_id {image_id!r} ({error})"
            raise wrong(self.name, "picture", told) from None
