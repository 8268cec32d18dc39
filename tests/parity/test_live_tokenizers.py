"""Our tokenizers beside transformers' and OpenCLIP's, on ten thousand strings of every kind: the same ids, every one."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.data.strings import varied
from tests.parity.torch_imports import open_clip, transformers
from tests.shared import shared
from vlmax.data.tokenizers import ClipBpe, SentencePiece, TokenizerJson, WordPiece, gpt2, opt

BERT = {"bert-base-uncased/vocab.txt": "vocab.txt"}
GPT2 = {"gpt2/vocab.json": "vocab.json", "gpt2/merges.txt": "merges.txt"}
OPT = {"opt/vocab.json": "vocab.json", "opt/merges.txt": "merges.txt"}
T5 = {"t5/spiece.model": "spiece.model"}
LLAMA = {"sentencepiece-c4-32k/bpe_32k_c4.model": "tokenizer.model"}
OPT_MARKS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
LLAMA_MARKS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@pytest.fixture(scope="module")
def strings() -> list[str]:
    found = varied()
    assert len(set(found)) == 10_000
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Opens a tokenizer of transformers from files of the shared data, with tokens added to it."""

    def make(name: str, files: dict[str, str], added: tuple[str, ...] = (), **fields):
        folder = tmp_path_factory.mktemp(name)
        for source, target in files.items():
            shutil.copyfile(shared("data", "tokenizers", *source.split("/")), folder / target)
        tokenizer = getattr(transformers(), name).from_pretrained(folder, **fields)
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)}, replace_extra_special_tokens=False)
        return tokenizer

    return make


def path(name: str) -> str:
    return str(shared("data", "tokenizers", *name.split("/")))


def assert_same(strings, ours, theirs):
    wrong = [text for text in strings if ours.encode(text) != theirs(text)]
    assert not wrong, f"{len(wrong)} of {len(strings)} differ, the first is {wrong[0]!r}"


def ids(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("added", [(), ("[DEC]", "[ENC]")])
def test_bert(strings, reference, added):
    theirs = reference("BertTokenizer", BERT, added)
    ours = WordPiece(path("bert-base-uncased/vocab.txt"), added=added).open()
    assert_same([*strings, "[ENC] a dog [DEC][SEP]"], ours, ids(theirs))
    assert ours.vocab_size == len(theirs)
    assert theirs.encode("a") == [ours.bos, *ours.encode("a"), ours.eos] and theirs.pad_token_id == ours.pad_id


def test_cased_bert(strings, reference):
    theirs = reference("BertTokenizer", BERT, do_lower_case=False)
    assert_same(strings[:2_000], WordPiece(path("bert-base-uncased/vocab.txt"), lower=False).open(), ids(theirs))


@pytest.mark.parametrize("added", [(), ("<image>",)])
def test_gpt2(strings, reference, added):
    theirs = reference("GPT2Tokenizer", GPT2, added)
    ours = gpt2(path("gpt2/vocab.json"), path("gpt2/merges.txt"), added).open()
    assert_same([*strings, "a <image>dog<|endoftext|>"], ours, ids(theirs))
    assert ours.vocab_size == len(theirs) and ours.eos == theirs.eos_token_id
    for text in strings[:2_000]:
        encoded = ours.encode(text)
        assert ours.decode(encoded) == theirs.decode(encoded, skip_special_tokens=True) or "<|" in text


def test_opt(strings, reference):
    theirs = reference("GPT2Tokenizer", OPT, **OPT_MARKS)
    ours = opt(path("opt/vocab.json"), path("opt/merges.txt")).open()
    assert_same(strings, ours, ids(theirs))
    assert ours.vocab_size == len(theirs)
    assert (ours.bos, ours.eos, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


def test_t5(strings, reference):
    theirs = reference("T5Tokenizer", T5)
    ours = SentencePiece(path("t5/spiece.model"), extra_ids=100, marks=True).open()
    assert_same([*strings, "a <extra_id_0> b<extra_id_1>c <extra_id_99></s>"], ours, ids(theirs))
    assert ours.vocab_size == len(theirs)
    for text in strings[:2_000]:
        encoded = ours.encode(text)
        if ours.eos not in encoded:
            assert ours.decode(encoded) == theirs.decode(encoded, skip_special_tokens=True)


def inner(tokenizer, legacy: bool):
    """The reference's pieces behind the normalisation that LLaMA's published tokenizer.json files have.

    Made from tokenizer.model alone, transformers 5 puts no space before a text that begins with one; SentencePiece, with
    which LLaMA was trained, and those files do.
    """
    from tokenizers import normalizers, pre_tokenizers

    fast = tokenizer.backend_tokenizer
    fast.normalizer = None
    fast.pre_tokenizer = None
    if legacy:
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return lambda text: fast.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("legacy", [True, False])
def test_llama(strings, reference, legacy):
    theirs = reference("LlamaTokenizer", LLAMA, ("<image>",), **LLAMA_MARKS)
    ours = SentencePiece(path(next(iter(LLAMA))), added=("<image>",), marks=True, legacy=legacy).open()
    assert ours.vocab_size == len(theirs) and ours.encode("<image>") == [theirs.convert_tokens_to_ids("<image>")]
    mixed = [f"{a[:200]}<image>{b[:200]} </s>{a[-5:]}" for a, b in zip(strings[:3_000], strings[3_000:], strict=False)]
    texts = [*strings, *mixed]
    if not legacy:  # there the reference's space before the first word joins one that the text begins with
        texts = [text for text in texts if not text.startswith((" ", "▁"))]
        assert len(texts) > 10_000
    assert_same(texts, ours, inner(theirs, legacy))


@pytest.mark.parametrize("name,files,pad", [
    ("BertTokenizer", BERT, "[PAD]"),
    ("GPT2Tokenizer", GPT2, "<|endoftext|>"),
    ("T5Tokenizer", T5, "<pad>"),
    ("LlamaTokenizer", LLAMA, "<pad>"),
])  # fmt: skip
def test_tokenizer_json(strings, reference, name, files, pad, tmp_path):
    theirs = reference(name, files, ("<more>",))
    theirs.save_pretrained(tmp_path)
    config = TokenizerJson(str(Path(tmp_path) / "tokenizer.json"), pad, added=("<image>",))
    ours = config.open()
    assert ours.vocab_size == len(theirs) + 1
    assert_same([*strings, "a <more> dog"], ours, ids(theirs))


def test_clip(strings):
    theirs = open_clip().SimpleTokenizer()
    ours = ClipBpe(path("clip/bpe_simple_vocab_16e6.txt.gz")).open()
    # The two engines of regular expressions know different versions of Unicode; OpenCLIP writes its marks otherwise.
    texts = [text for text in strings if "<|" not in text and all(unicodedata.category(c) != "Cn" for c in text)]
    assert len(texts) > 9_000
    assert_same(texts, ours, theirs.encode)
