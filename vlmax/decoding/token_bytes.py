"""What every token of a vocabulary adds to a text, in bytes."""

from __future__ import annotations

import re
import weakref
from typing import Any

from vlmax.data.tokenizers import FastTokenizer, Tokenizer
from vlmax.errors import InputError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


_FOUND: dict[tuple[int, int], list[bytes]] = {}
"""By a tokenizer's identity, as long as it lives, and V."""


def token_bytes(tokenizer: Tokenizer, vocab: int) -> list[bytes]:
    """The bytes of every token; none for marks, and for ids that the tokenizer does not have.

    Found once for a tokenizer: for LLaMA 3's 128,256 tokens it takes seconds.

    A token's text depends on its place (a space at the beginning is not written), so it is looked at between two
    letters. A token that is part of a character alone is read as its tokenizer spells it.

    Args:
      tokenizer: any of vlmax/data/tokenizers.
      vocab: V, the model's.

    Raises:
      InputError: no token is a letter that joins others.
    """
    key = id(tokenizer), vocab
    if key not in _FOUND:
        _FOUND[key] = _token_bytes(tokenizer, vocab)
        weakref.finalize(tokenizer, _FOUND.pop, key)
    return _FOUND[key]


def _token_bytes(tokenizer: Tokenizer, vocab: int) -> list[bytes]:
    letter, before, after = _letter(tokenizer)
    pieces = []
    for token in range(vocab):
        if token >= tokenizer.vocab_size or token in (tokenizer.bos, *tokenizer.ends):
            pieces.append(b"")
            continue
        text = tokenizer.decode([letter, token, letter])
        text = text[len(before) : len(text) - len(after)]
        pieces.append(_spelled(tokenizer, token) if UNKNOWN in text else text.encode())
    return pieces


def _letter(tokenizer: Tokenizer) -> tuple[int, str, str]:
    """A token that stands in a text as itself, and its text at the beginning and after another token."""
    for token in range(tokenizer.vocab_size):
        first = tokenizer.decode([token])
        if not first or not first.isascii() or " " in first or token in (tokenizer.bos, *tokenizer.ends):
            continue
        second = tokenizer.decode([token, token])[len(first) :]
        thrice = tokenizer.decode([token, token, token])
        if second.isalpha() and first[-1].isalpha() and thrice == first + second + second:
            return token, first, second
    raise InputError(
        "generation: for stop strings the tokenizer needs a token that is a letter within a word, and it has none; "
        "leave `stop` out, and cut the text afterwards"
    )


def _spelled(tokenizer: Any, token: int) -> bytes:
    """The bytes of a token that is not whole characters: `<0xE2>`, or in GPT-2's alphabet of 256 bytes."""
    fast = isinstance(tokenizer, FastTokenizer)
    name = tokenizer.fast.id_to_token(token) if fast else tokenizer.processor.id_to_piece(token)
    if re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    if all(letter in BYTES for letter in name):
        return bytes(BYTES[letter] for letter in name)
    return name.encode()


def _alphabet() -> dict[str, int]:
    """GPT-2's: a byte that can be seen is its Latin-1 character, the others follow from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


BYTES = _alphabet()
