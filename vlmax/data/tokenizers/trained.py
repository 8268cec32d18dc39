"""A byte-level BPE trained on the spot: no file is needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vlmax.data.example import BadRecord, Source
from vlmax.data.tokenizers.json_file import TokenizerJson
from vlmax.data.tokenizers.tokenizer import FastTokenizer, Tokenizer, marks_before, put_before
from vlmax.errors import InputError

TRAINED_MARKS = ("<pad>", "<bos>", "<eos>")


@dataclasses.dataclass(frozen=True)
class TrainedBpe:
    """A byte-level BPE of lower-cased text, trained at the start on a source's own texts: no file is needed.

    The same source gives the same tokenizer on every host. Padding, begin and end are the three highest ids, the end
    the very highest, as CLIP's text encoder wants it.

    Attributes:
      source: where the texts are.
      examples: how many of its first examples to train on.
      vocab_size: how many ids, at least 259 (256 bytes and three marks); ids that training does not need stay unused.
    """

    source: Source
    examples: int = 2_000
    vocab_size: int = 512

    def open(self) -> Tokenizer:
        """Trains the tokenizer; raises `InputError` where the source has no texts or `vocab_size` is too small."""
        reader = self.source.open()
        texts: list[str] = []
        for index in range(min(self.examples, len(reader))):
            try:
                texts.extend(reader[index].texts)
            except BadRecord:  # the pipeline reports it when it comes to it; the tokenizer learns without it
                continue
        fast = _train(texts, self.vocab_size, f"the first {self.examples} examples of {self.source.name!r}")
        pad, bos, eos = range(self.vocab_size - len(TRAINED_MARKS), self.vocab_size)
        return FastTokenizer(fast, self.vocab_size, pad, bos, eos, marks_before(fast))


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | Path) -> TokenizerJson:
    """Trains `TrainedBpe`'s tokenizer on texts, writes it to `path` and gives the configuration that opens it.

    The order of the texts makes no difference. Raises `InputError` where there is no text, or `vocab_size` < 259.
    """
    Path(path).write_text(_train(list(texts), vocab_size, "the texts given").to_str(), encoding="utf-8")
    return TokenizerJson(str(path), *TRAINED_MARKS)


def _train(texts: list[str], vocab_size: int, what: str) -> tokenizers.Tokenizer:
    least = 256 + len(TRAINED_MARKS)
    if vocab_size < least:
        raise InputError(f"training a tokenizer: vocab_size is {vocab_size}; it must be at least {least}, 256 bytes "
                         "and three marks; change the tokenizer's field vocab_size")  # fmt: skip
    if not any(text.strip() for text in texts):
        raise InputError(f"training a tokenizer: {what} have no text; change the tokenizer's source or its examples")
    trained = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(TRAINED_MARKS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    trained.train_from_iterator(texts, trainer)
    learnt = json.loads(trained.to_str())["model"]
    unused = range(len(learnt["vocab"]), vocab_size - len(TRAINED_MARKS))
    vocabulary = learnt["vocab"] | {f"<unused {i}>": i for i in unused}
    fast = _byte_level(models.BPE(vocabulary, [tuple(merge) for merge in learnt["merges"]]))
    fast.add_special_tokens(list(TRAINED_MARKS))  # they get the ids after the vocabulary
    put_before(fast, TRAINED_MARKS[1])
    return fast


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    return fast
