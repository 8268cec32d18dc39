"""Small sources and preprocesses for the tests of the pipeline; importable by worker processes."""

import dataclasses
import os
import signal

import numpy as np

from vlmax.data.example import BadRecord, Example, Feature


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Record i has key `i`; those in `damaged` cannot be read, those in `undecodable` not preprocessed."""

    count: int = 1000
    name: str = "numbers"
    damaged: tuple[int, ...] = ()
    undecodable: tuple[int, ...] = ()
    missing: bool = False

    def open(self):
        return NumbersReader(self)


@dataclasses.dataclass(frozen=True)
class NumbersReader:
    config: Numbers

    def __len__(self):
        return self.config.count

    def __getitem__(self, index):
        if index in self.config.damaged:
            error = BadRecord("cannot be read")
            error.key = str(index)
            raise error
        text = "undecodable" if index in self.config.undecodable else "fine"
        return Example(str(index), None, (text,), {"index": index})


@dataclasses.dataclass(frozen=True)
class Plain:
    """Features: the record's index, a random number, and a count of even records."""

    width: int = 1

    def features(self):
        return {"index": Feature((), "int32"), "noise": Feature((self.width,), "float32")}

    def __call__(self, example, rng):
        if example.texts[0] == "undecodable":
            raise BadRecord("cannot be decoded")
        index = example.fields["index"]
        noise = rng.random(self.width).astype(np.float32)
        return {"index": np.int32(index), "noise": noise, "count/even": np.int32(index % 2 == 0)}


@dataclasses.dataclass(frozen=True)
class Failing:
    """Has a bug at one record, or dies there."""

    at: int
    how: str = "raise"

    def features(self):
        return {"index": Feature((), "int32")}

    def __call__(self, example, rng):
        if example.fields["index"] == self.at:
            if self.how == "raise":
                raise KeyError("a bug in the preprocess")
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": np.int32(example.fields["index"])}


@dataclasses.dataclass(frozen=True)
class Letters:
    """A tokenizer of small letters, ids 3 to 28, that is its own configuration; marks: 0 padding, 1 begin, 2 end."""

    vocab_size: int = 30
    pad_id: int = 0
    bos: int | None = 1
    eos: int | None = 2

    @property
    def begin(self):
        return () if self.bos is None else (self.bos,)

    @property
    def ends(self):
        return () if self.eos is None else (self.eos,)

    def open(self):
        return self

    def encode(self, text):
        return [ord(c) - ord("a") + 3 for c in text if c.isalpha()]

    def decode(self, ids):
        return "".join(chr(i - 3 + ord("a")) for i in ids if i > 2)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents by index; the first two letters are the prompt of the rest. Those at `damaged` cannot be read."""

    texts: tuple[str, ...]
    damaged: tuple[int, ...] = ()
    name: str = "texts"

    def open(self):
        return self

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        if index in self.damaged:
            raise BadRecord("cannot be read")
        text = self.texts[index]
        return Example(str(index), None, (text,), {"prompt": text[:2], "answer": text[2:]})
