from __future__ import annotations

import dataclasses

import pytest

from tests.shared import shared
from vlmax.data.tokenizers import SentencePiece, Tokenizer, gpt2, train_bpe
from vlmax.decoding import token_bytes as module
from vlmax.decoding.token_bytes import BYTES, token_bytes
from vlmax.errors import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    return train_bpe(["a red circle", "two small blue squares", "é und ñ, 日本語"] * 20, 330, path).open()


def files(*parts: str) -> str:
    return str(shared("data", "tokenizers", *parts))


def llama() -> Tokenizer:
    return SentencePiece(files("sentencepiece-c4-32k", "bpe_32k_c4.model"), marks=True).open()


def test_the_bytes_of_tokens_make_the_text(trained):
    pieces = token_bytes(trained, 335)
    assert len(pieces) == 335 and pieces[-8:] == [b""] * 8
    for text in ("two red squares", "ñ 日本語 and 🙂é", "circle!"):
        joined = b"".join(pieces[token] for token in trained.encode(text))
        assert joined.decode().strip() == text
    assert {bytes([byte]) for byte in range(256) if byte not in range(65, 91)} <= set(pieces)


def test_they_are_found_once_for_a_tokenizer(trained, monkeypatch):
    again, calls = dataclasses.replace(trained), []
    found = token_bytes(again, 335)
    monkeypatch.setattr(type(again), "decode", lambda *_: calls.append(1))
    assert token_bytes(again, 335) is found and not calls
    size = len(module._FOUND)
    del again, found
    assert len(module._FOUND) == size - 1


def test_ends_have_no_bytes(trained):
    (letter,) = trained.encode("q")[-1:]
    assert token_bytes(trained, 335)[letter]
    assert token_bytes(dataclasses.replace(trained, further_ends=(letter,)), 335)[letter] == b""


def test_gpt2_s_alphabet_has_every_byte_once():
    assert sorted(BYTES.values()) == list(range(256))
    assert BYTES["A"] == 65 and BYTES["\u0120"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_published_vocabularies(name):
    if name == "gpt2":
        tokenizer = gpt2(files("gpt2", "vocab.json"), files("gpt2", "merges.txt")).open()
    else:
        tokenizer = llama() if name == "llama" else SentencePiece(files("t5", "spiece.model"), extra_ids=100).open()
    pieces = token_bytes(tokenizer, tokenizer.vocab_size)
    for text in ("Hello, world: 12 apples.", "naïve café", "one\ttwo" if name == "gpt2" else "a b"):
        joined = b"".join(pieces[token] for token in tokenizer.encode(text))
        assert joined.decode().strip() == text
    if name != "t5":  # it has no bytes, and so no emoji
        assert b"".join(pieces[token] for token in tokenizer.encode("🙂")).decode().strip() == "🙂"


def test_a_tokenizer_without_letters_is_refused():
    class Digits:
        vocab_size, pad_id, bos, eos, begin, ends = 10, 0, None, None, (), ()

        def encode(self, text):
            return [int(letter) for letter in text]

        def decode(self, ids):
            return "".join(map(str, ids))

    with pytest.raises(InputError, match="a letter within a word"):
        token_bytes(Digits(), 10)
