"""GPT-2's byte-level byte-pair encoding, which OPT shares, from vocab.json and merges.txt."""

from __future__ import annotations

import dataclasses
import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from vlmax.data.tokenizers.tokenizer import (
    FastTokenizer,
    Tokenizer,
    add_tokens,
    mark,
    marks_before,
    put_before,
    read,
    wrong_file,
)


@dataclasses.dataclass(frozen=True)
class ByteBpe:
    """Byte-pair encoding of UTF-8 bytes (Radford et al. 2019, section 2.2): any text, and back without loss.

    Marks and added tokens stand for themselves wherever they are written in a text.

    Attributes:
      vocab: `vocab.json`, token -> id.
      merges: `merges.txt`, a pair a line, the most frequent first.
      bos: the token of the beginning as it is written in the vocabulary.
      eos: that of the end.
      pad: what fills a row.
      added: tokens that the vocabulary does not have, with the next free ids.
      begins: a model's prompt begins with `bos`.
    """

    vocab: str
    merges: str
    bos: str = "<|endoftext|>"
    eos: str = "<|endoftext|>"
    pad: str = "<|endoftext|>"
    added: tuple[str, ...] = ()
    begins: bool = False

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where a file is missing or something else, or a token is not in it."""
        vocabulary = _vocabulary(self.vocab)
        merges = _merges(self.merges)
        try:
            fast = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
        except Exception as error:  # the library raises plain Exception
            raise wrong_file(self.merges, "ByteBpe.merges", f"the merges of {self.vocab}", error) from None
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        size = add_tokens(fast, self.added, "ByteBpe.added")
        bos, eos, pad = (
            mark(fast, token, self.vocab, f"ByteBpe.{field}")
            for field, token in (("bos", self.bos), ("eos", self.eos), ("pad", self.pad))
        )
        fast.add_special_tokens([self.bos, self.eos, self.pad])
        if self.begins:
            put_before(fast, self.bos)
        return FastTokenizer(fast, size, pad, bos, eos, marks_before(fast), strip=False)


def gpt2(vocab: str, merges: str, added: tuple[str, ...] = ()) -> ByteBpe:
    """GPT-2's: its one mark, 50256, is begin, end and padding, and begins no prompt."""
    return ByteBpe(vocab, merges, added=added)


def opt(vocab: str, merges: str, added: tuple[str, ...] = ()) -> ByteBpe:
    """OPT's: `</s>`, 2, begins every text and ends what is generated; padding is 1."""
    return ByteBpe(vocab, merges, "</s>", "</s>", "<pad>", added, begins=True)


def _vocabulary(path: str) -> dict[str, int]:
    data = read(path, "ByteBpe.vocab")
    try:
        found = json.loads(data)
    except ValueError as error:
        raise wrong_file(path, "ByteBpe.vocab", "a vocab.json", error) from None
    if not isinstance(found, dict) or not all(isinstance(i, int) for i in found.values()) or len(found) < 256:
        raise wrong_file(path, "ByteBpe.vocab", "a vocab.json", "it is not a mapping from 256 tokens or more to ids")
    if "a</w>" in found:
        reason = "its words end in </w>, as CLIP's do, which ClipBpe or TokenizerJson opens"
        raise wrong_file(path, "ByteBpe.vocab", "a vocab.json of GPT-2's kind", reason)
    return found


def _merges(path: str) -> list[tuple[str, str]]:
    try:
        lines = read(path, "ByteBpe.merges").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise wrong_file(path, "ByteBpe.merges", "a merges.txt", error) from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = [pair for pair in pairs if len(pair) != 2]
    if wrong or not pairs:
        raise wrong_file(path, "ByteBpe.merges", "a merges.txt", f"a line is no pair: {wrong[:1]}")
    return [(left, right) for left, right in pairs]
