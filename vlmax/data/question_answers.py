"""A picture with a question and its weighted answers, as BLIP is fine-tuned on VQA (Li et al. 2022, section 5.3)."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from vlmax.data.cleaning import Cleaning, CleanQuestion
from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.images import ImageTransform
from vlmax.data.preprocess import ImageOnly
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, to_fixed
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class QuestionAnswers:
    """Reads the fields `question` and `answers` (what each annotator said), as `VQA`, `GQA` and their kin have them.

    Features: `image` uint8 `[size, size, 3]`; `question` int32 `[length]`; `answers` int32 `[answers, answer_length]`,
    the different answers, the most common first; `answer_weights` float32 `[answers]`, the share of annotators who gave
    it, times the field `answer_weight` where the record has one. Places without an answer have the marks of begin and
    end alone and weight 0. Different answers beyond `answers` are left out (`answers_left_out`); a question or answer
    that is too long is cut off at its end (`truncated`).
    """

    image: ImageTransform
    """What happens to the picture."""
    tokenizer: TokenizerConfig
    """What makes tokens of question and answers."""
    length: int = 35
    """Q, tokens of a question with its marks and padding."""
    answers: int = 10
    """A, the most different answers to a question."""
    answer_length: int = 12
    """T, tokens of an answer with its marks and padding."""
    clean: Cleaning = CleanQuestion()
    """What happens to the question's text; answers are read as they are."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where the tokenizer cannot be opened or a size is too small."""
        if self.answers < 1:
            raise InputError(f"data.preprocess.answers is {self.answers}; it must be at least 1")
        self._fixed("", self.length), self._fixed("", self.answer_length)
        return {
            **ImageOnly(self.image).features(),
            "question": Feature((self.length,), "int32", ("tokens",)),
            "answers": Feature((self.answers, self.answer_length), "int32", (None, "tokens")),
            "answer_weights": Feature((self.answers,), "float32", (None,)),
        }

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where picture, question or answers are empty or damaged."""
        question, given = _asked(example)
        text, cut = self._fixed(self.clean(question), self.length)
        counts = collections.Counter(given)
        shares = [(answer, count / len(given)) for answer, count in counts.most_common() if answer.strip()]
        if not shares:
            raise BadRecord("no answer")
        scale = float(example.fields.get("answer_weight", 1.0))  # type: ignore[arg-type]
        rows = [self._fixed(answer, self.answer_length) for answer, _ in shares[: self.answers]]
        weights = [scale * share for _, share in shares[: self.answers]]
        unused = self.answers - len(rows)
        empty, _ = self._fixed("", self.answer_length)
        return {
            **ImageOnly(self.image)(example, rng),
            "question": text,
            "answers": np.stack([row for row, _ in rows] + [empty] * unused),
            "answer_weights": np.asarray(weights + [0.0] * unused, np.float32),
            "count/truncated": np.asarray(cut or any(cut for _, cut in rows), np.int32),
            "count/answers_left_out": np.asarray(len(shares) - len(rows), np.int32),
        }

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Questions as the model reads them."""
        return np.stack([self._fixed(self.clean(text), self.length)[0] for text in texts])

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts that tokens stand for."""
        return [self.opened.decode(row.tolist()) for row in tokens]

    def _fixed(self, text: str, length: int) -> tuple[Int32[np.ndarray, "length"], bool]:
        tokenizer = self.opened
        return to_fixed(tokenizer.encode(text), length, tokenizer.pad_id, tokenizer.bos, tokenizer.eos)


def _asked(example: Example) -> tuple[str, list[str]]:
    """The question, and what each annotator answered; raises `InputError` where the source has no such fields."""
    question, answers = (example.fields.get(name) for name in ("question", "answers"))
    if not isinstance(question, str) or not isinstance(answers, Sequence) or isinstance(answers, str):
        raise InputError(
            f"reading record {example.key!r}: data.preprocess reads the fields question and answers, and the record "
            f"has {', '.join(sorted(example.fields)) or '(none)'}; take a source with questions and their answers, as "
            "VQA with its annotations"
        )
    if not question.strip():
        raise BadRecord("no question")
    return question, [str(answer) for answer in answers]
