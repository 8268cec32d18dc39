"""CLIP's byte-pair encoding, from its public merges file."""

from __future__ import annotations

import dataclasses
import gzip
import html
import re
import zlib

import ftfy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from vlmax.data.tokenizers.tokenizer import FastTokenizer, Tokenizer, read, wrong_file

CLIP_MERGES = 49_152 - 256 - 2
CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
# U+0345 is no letter, but its capital is one: ignoring case, Python's regex drops it from symbols, and so from a text.
CLIP_WORDS = r"(?i:<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


@dataclasses.dataclass(frozen=True)
class ClipBpe:
    """CLIP's byte-pair encoding of lower-cased text, from its public merges file.

    Text is cleaned as OpenAI's code does: broken encodings mended (ftfy), HTML entities resolved twice, white space
    made single. 49,408 ids, begin 49406, end 49407 (the highest, which the text encoder looks for), padding 0.

    Attributes:
      path: `bpe_simple_vocab_16e6.txt.gz`.
    """

    path: str

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or is not CLIP's merges file."""
        try:
            lines = gzip.decompress(read(self.path, "ClipBpe.path")).decode("utf-8").split("\n")
        except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
            raise wrong_file(self.path, "ClipBpe.path", "CLIP's bpe_simple_vocab_16e6.txt.gz", error) from None
        merges = [(m[0], m[1]) for m in map(str.split, lines[1 : CLIP_MERGES + 1]) if len(m) == 2]
        if len(merges) != CLIP_MERGES:
            reason = f"it has {len(merges)} merges, not {CLIP_MERGES}"
            raise wrong_file(self.path, "ClipBpe.path", "CLIP's bpe_simple_vocab_16e6.txt.gz", reason)
        letters = byte_letters()
        words = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges), *CLIP_MARKS]
        vocabulary = {word: i for i, word in enumerate(words)}
        bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
        bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        bpe.add_special_tokens(list(CLIP_MARKS))
        bpe.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
        bos, eos = (vocabulary[mark] for mark in CLIP_MARKS)
        return FastTokenizer(bpe, len(words), 0, bos, eos, (bos,), clip_clean)


def clip_clean(text: str) -> str:
    """The text as CLIP's tokenizer sees it: mended, without entities, in single spaces and lower case."""
    if not (text.isascii() and text.isprintable()) or "&" in text:  # nothing to mend otherwise, and ftfy is slow
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def byte_letters() -> list[str]:
    """A printable letter for each byte, in CLIP's and GPT-2's order: those that print as they are come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
