"""Questions about pictures: a system answers, in words of its own or by choosing, as people's answers are known."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from vlmax.data.example import Example, Feature, Features, Preprocess, Source
from vlmax.data.image_prompts import Instruction
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import first
from vlmax.evaluation.notes import first_example, notes
from vlmax.evaluation.prompting import Prompting, check_prompts, prompt_features, prompt_row
from vlmax.evaluation.scores.vqa import AnswerScore, VqaAccuracy
from vlmax.evaluation.writing import described, new_tokens, writes
from vlmax.systems.system import Writes


@runtime_checkable
class Answering(Protocol):
    """A frozen configuration of how answers come about."""

    def check(self, prompting: Prompting) -> None:
        """Raises `InputError` for what does not fit."""
        ...

    def answers(self, context: Context, prompting: Prompting, read: Read) -> tuple[dict[str, np.ndarray], list[str]]:
        """What `read` gathers, with `index`, and the answer of every row of it."""
        ...


class Read(Protocol):
    """Gives a function every batch of questions, and gathers what it makes of them."""

    def __call__(self, embed: Any) -> dict[str, np.ndarray]:
        """See `features.source_features`."""


@dataclasses.dataclass(frozen=True)
class InOwnWords:
    """The system writes the answer."""

    settings: Generation = Generation(max_new_tokens=9, beams=3)
    """How it is written. These are BLIP's, whose lengths of 1 to 10 count the token that begins the answer."""

    def check(self, prompting: Prompting) -> None:
        """Needs nothing more."""

    def answers(self, context: Context, prompting: Prompting, read: Read) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Answering`."""
        found = read(writes(context, prompting, self.settings))
        return found, [prompting.written(tokens, self.settings.stop) for tokens in new_tokens(found)]


@dataclasses.dataclass(frozen=True)
class ByRank:
    """The system says of given answers which is the likeliest (BLIP, appendix; `decoding.answers`).

    Raises:
      InputError: neither answers nor a file of them, or both; sizes below 1.
    """

    candidates: tuple[str, ...] = ()
    """The answers to choose from."""
    file: str | None = None
    """Or a file with them, a JSON list of texts, such as the 3,128 that BLIP chooses from."""
    before: str = ""
    """Stands before every candidate, where the tokenizer tells a word after a space from one without: a space."""
    first: int = 128
    """So many, whose first token is likeliest, are read to their ends."""
    at_once: int = 16
    """So many of them side by side; more need more memory."""

    def __post_init__(self):
        if self.first < 1 or self.at_once < 1:
            raise InputError(f"ranking answers: first is {self.first} and at_once {self.at_once}; give both 1 or more")
        if bool(self.candidates) == (self.file is not None):
            raise InputError(
                f"ranking answers: there are {len(self.candidates)} candidates and the file of them is {self.file}; "
                "give either the field candidates, with at least one answer, or the field file"
            )

    def check(self, prompting: Prompting) -> None:
        """Raises `InputError` where the file holds no answers, one is empty or stands there twice, or has no end."""
        self.texts()
        if not prompting.marks().eos:
            raise InputError(
                "ranking answers: nothing ends an answer, so that a short one would be likelier than what it begins; "
                "name the mark of the end in prompting.end or in the tokenizer"
            )

    def texts(self) -> tuple[str, ...]:
        """The candidates."""
        texts = self.candidates if self.file is None else _texts_in(self.file)
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        if not texts or empty:
            what = f"candidate {empty[0]} is empty" if empty else "there are no candidates"
            raise InputError(f"ranking answers: {what}, in {self.file or 'the field candidates'}; give answers there")
        if len(set(texts)) < len(texts):
            twice = next(text for i, text in enumerate(texts) if text in texts[:i])
            raise InputError(f"ranking answers: {twice!r} is given twice, in {self.file or 'the field candidates'}")
        return texts

    def answers(self, context: Context, prompting: Prompting, read: Read) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Answering`."""
        texts, writer = self.texts(), context.writer()
        candidates = writer.answers([prompting.answer(self.before + text) for text in texts])

        def rank(batch: features.Arrays) -> features.Arrays:
            ranked = writer.rank(described(batch), candidates, prompting.marks(), self.first, self.at_once)
            return {"answer": ranked.answer, "sound": ranked.sound, "index": batch["index"]}

        found = read(rank)
        if not found["sound"].all():
            raise RunFailed(
                f"ranking answers: the model gave logits that are no number (NaN) for {int((~found['sound']).sum())} "
                "questions; look at its parameters, or compute in float32"
            )
        return found, [texts[i] for i in found["answer"]]


def _texts_in(file: str) -> tuple[str, ...]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"ranking answers: {file} cannot be read as JSON ({error}); change the field file") from None
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise InputError(f"ranking answers: {file} holds no JSON list of texts; change the field file")
    return tuple(content)


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """Scores what `scores` say, over all questions and by the type of answer, and `questions`, how many there were.

    An example has the fields `question` and `answers`, a list, or else `answer`. The answers are kept with the run, in
    VQA's form of results. Without `scores` the answers need not be known, as in a test split that a server scores.
    """

    source: Source
    """Pictures, each with a question."""
    prompting: Prompting
    """How a question is put to the system."""
    name: str = "vqa"
    """Names the scores: `eval/<name>/accuracy`."""
    prompt: str = "{}"
    """What a question is put into, such as `Question: {} Short answer:`."""
    length: int = 64
    """Tokens of a prompt with its marks at most; of a longer question the last words are left out, and it is told."""
    instruction: Instruction | None = None
    """How the prompt is put to a Q-Former that reads it, too; None: none does."""
    answering: Answering = InOwnWords()
    """How answers come about."""
    scores: tuple[AnswerScore, ...] = (VqaAccuracy(),)
    """How they are scored."""
    batch_size: int = 64
    """Questions at once over all devices."""
    limit: int | None = None
    """Only the first so many questions; None for all."""

    def needs(self) -> type:
        """A system that writes."""
        return Writes

    def check(self, mesh: Mesh) -> None:
        """Opens source and tokenizer; raises `InputError` for sizes, a prompt, candidates or fields that do not fit."""
        where = f"evaluation {self.name!r}"
        features.check_batch_size(self.name, self.batch_size, mesh)
        if self.prompt.count("{}") != 1:
            raise InputError(f"{where}: prompt {self.prompt!r} needs one {{}} for the question")
        empty = len(self.prompting.tokens(self.prompt.replace("{}", "?")))
        if self.length < empty:
            raise InputError(
                f"{where}: length is {self.length}, and the prompt takes {empty} tokens with a question of one mark; "
                "raise `length`"
            )
        self.answering.check(self.prompting)
        example = first_example(first(self.source, self.limit, where))
        if example is not None:
            people = [self._noted(example)["answers"]]
            question_of(example, where)
            self._check_answers(people)
            for score in self.scores:
                score.each([""], people)

    def check_prompts(self, system: Any, learned: Any) -> None:
        """See `prompting.Prompts`."""
        check_prompts(f"evaluation {self.name!r}", self.prompting, self.instruction, system, learned)

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` as `check` does, and where an answer is not known."""
        where, cut = f"evaluation {self.name!r}", 0

        def record(info: Any) -> None:
            nonlocal cut
            context.record(info)
            cut += info.counts.get("truncated", 0)

        source = first(self.source, self.limit, where)
        asked = AskedImage(context.image, self, where)
        heard = dataclasses.replace(context, record=record)
        read = functools.partial(features.source_features, heard, self.name, source, asked, self.batch_size)
        found, answers = self.answering.answers(context, self.prompting, read)
        if cut:
            context.log(f"{where}: {cut} questions of this process are longer than `length`; their ends are left out")

        noted = notes(source, found["index"], self._noted)
        context.keep(
            self.name,
            [{"question_id": n["question_id"], "answer": a} for n, a in zip(noted, answers, strict=True)],
        )
        scores = {"questions": float(len(answers))}
        people = [note["answers"] for note in noted]
        self._check_answers(people)
        for score in self.scores:
            each = score.each(answers, people)
            scores[score.name] = float(each.mean())
            for kind in sorted({note["type"] for note in noted if note["type"]}):
                chosen = np.array([note["type"] == kind for note in noted])
                scores[f"{score.name}_{'_'.join(kind.replace('/', ' ').split())}"] = float(each[chosen].mean())
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}

    def _check_answers(self, people: list[list[str]]) -> None:
        unknown = sum(not given for given in people)
        if self.scores and unknown:
            raise InputError(
                f"evaluation {self.name!r}: {unknown} of {len(people)} questions have no answer in the fields answers "
                "and answer, against which they could be scored; take a split with answers, or leave `scores` empty"
            )

    def _noted(self, example: Example) -> dict[str, Any]:
        fields = example.fields
        answers = fields.get("answers") or ([fields["answer"]] if fields.get("answer") else [])
        return {
            "question_id": fields.get("question_id", example.key),
            "answers": [str(answer) for answer in answers],  # type: ignore[attr-defined]
            "type": fields.get("answer_type"),
        }


def question_of(example: Example, where: str) -> str:
    """The field `question`; raises `InputError` where it holds no text."""
    question = example.fields.get("question")
    if not isinstance(question, str):
        raise InputError(
            f"{where}: example {example.key!r} has no text in a field question, but the fields "
            f"{', '.join(sorted(example.fields)) or '(none)'}; take a source of questions"
        )
    return question


@dataclasses.dataclass(frozen=True)
class AskedImage:
    """A picture and its question: `image`, `prompt` and `prompt_valid` int32 `[length]`, perhaps `instruction`."""

    image: Preprocess
    asked: QuestionAnswering
    where: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """Raises `BadRecord` where the picture is damaged, `InputError` where there is no question."""
        asked, question = self.asked, question_of(example, self.where)
        tokens, cut = asked.prompting.fitting(asked.prompt, question, asked.length)
        found = {"image": self.image(example, rng)["image"], **prompt_row(tokens, asked.length)}
        if asked.instruction is not None:
            found["instruction"], shorter = asked.instruction.fixed(asked.prompt.replace("{}", question))
            cut |= shorter
        return {**found, "count/truncated": np.asarray(cut, np.int32)} if cut else found

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        asked = self.asked
        return {"image": self.image.features()["image"], **prompt_features(asked.length, asked.instruction)}
