"""Visual Genome as published: phrases about regions, and questions with answers.

    region_descriptions.json   [{"id": 1, "regions": [{"region_id", "phrase", "x", "y", "width", "height"}, ...]}, ...]
    question_answers.json      [{"id": 1, "qas": [{"qa_id", "question", "answer"}, ...]}, ...]
    VG_100K/1.jpg   VG_100K_2/2.jpg

Ranjay Krishna and others, IJCV 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmax.data.sources.annotated import ID, AnnotatedReader, Problems, Record, Wanted, open_annotated, read_members
from vlmax.data.sources.annotation_forms import GENOME_QUESTIONS, REGIONS
from vlmax.data.sources.files import find


@dataclasses.dataclass(frozen=True)
class VisualGenome:
    """Pictures, each with the phrases about its regions. The field `image_id` is the picture's id; so is the key.

    The file has blank phrases and pictures without any; they are left out.

    Attributes:
      regions: `region_descriptions.json`.
      images: where the pictures are: `VG_100K` and `VG_100K_2`; also URLs, and folders in zip files
        (`zip://VG_100K::/data/images.zip`).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out pictures that are not there; else a missing one is an error.
    """

    regions: str
    images: tuple[str, ...]
    name: str = "visual_genome"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the file, or finds its index.

        Raises:
          InputError: the file or a picture is missing, a picture occurs twice, or the file is of another form.
        """
        files = find(self.regions, self.name, "regions")
        return open_annotated(self, files, "regions", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        wanted: Wanted = {None: {"id": ID, "regions": list}}
        for _, element in read_members(files, self.name, "regions", wanted, REGIONS):
            number = element["id"]
            phrases = [region.get("phrase") for region in element["regions"] if isinstance(region, dict)]
            if texts := tuple(phrase.strip() for phrase in phrases if isinstance(phrase, str) and phrase.strip()):
                yield Record(str(number), (f"{number}.jpg",), texts, {"image_id": number})


@dataclasses.dataclass(frozen=True)
class VisualGenomeQuestions:
    """A question about a picture with its one answer.

    Fields: `question`, `question_id`, `image_id`, `answer`, `answers` (that one, so that what reads `VQA` reads this)
    and `answer_weight`. The text is the question, the key its id. Blank questions and answers are left out.

    Attributes:
      questions: `question_answers.json`.
      images: as in `VisualGenome`.
      weight: how much an answer counts: BLIP takes 0.2 beside the shares of VQAv2's ten annotators.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out questions whose picture is not there; else a missing one is an error.
    """

    questions: str
    images: tuple[str, ...]
    weight: float = 0.2
    name: str = "visual_genome_questions"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the file, or finds its index; raises `InputError` as `VQA` does."""
        files = find(self.questions, self.name, "questions")
        return open_annotated(self, files, "questions", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        wanted: Wanted = {None: {"id": ID, "qas": list}}
        for _, element in read_members(files, self.name, "questions", wanted, GENOME_QUESTIONS):
            for qa in element["qas"]:
                if not isinstance(qa, dict) or "qa_id" not in qa:
                    problems.add("questions", "pictures with a question that has no `qa_id`", element["id"])
                    continue
                number, image_id = qa["qa_id"], element["id"]
                question, answer = (str(qa.get(name) or "").strip() for name in ("question", "answer"))
                if question and answer:
                    fields = {"question": question, "question_id": number, "image_id": image_id, "answer": answer}
                    fields |= {"answers": [answer], "answer_weight": self.weight}
                    yield Record(str(number), (f"{image_id}.jpg",), (question,), fields)
