"""Tokenizers of transformers and OpenCLIP, from the files of the shared data. Needs torch."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.parity.torch_imports import open_clip, transformers
from tests.shared import shared

Encode = Callable[[str], list[int]]

BERT = {"bert-base-uncased/vocab.txt": "vocab.txt"}
GPT2 = {"gpt2/vocab.json": "vocab.json", "gpt2/merges.txt": "merges.txt"}
OPT = {"opt/vocab.json": "vocab.json", "opt/merges.txt": "merges.txt"}
T5 = {"t5/spiece.model": "spiece.model"}
LLAMA = {"sentencepiece-c4-32k/bpe_32k_c4.model": "tokenizer.model"}
OPT_MARKS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
LLAMA_MARKS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def reference(folder: Path, name: str, files: dict[str, str], added: tuple[str, ...] = (), **fields: Any) -> Any:
    """The tokenizer `name` of transformers, opened in `folder` from copies of files, with tokens added to it."""
    for source, target in files.items():
        shutil.copyfile(shared("data", "tokenizers", *source.split("/")), folder / target)
    tokenizer = getattr(transformers(), name).from_pretrained(folder, **fields)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)}, replace_extra_special_tokens=False)
    return tokenizer


def ids(tokenizer: Any) -> Encode:
    """The ids of a text alone."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def inner(tokenizer: Any, legacy: bool = True) -> Encode:
    """The pieces of transformers' LLaMA behind the normalisation that published tokenizer.json files have.

    Made from tokenizer.model alone, transformers 5 puts no space before a text that begins with one; SentencePiece,
    with which LLaMA was trained, and those files do.
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


def clip() -> Encode:
    """OpenCLIP's, which writes the marks of begin and end in another way."""
    encode = open_clip().SimpleTokenizer().encode
    return lambda text: encode(
        text.replace("<|startoftext|>", "<start_of_text>").replace("<|endoftext|>", "<end_of_text>")
    )


def clip_is_certain(text: str) -> bool:
    """False where a character has no meaning yet: OpenCLIP's tokens then depend on its version of Unicode."""
    return all(unicodedata.category(letter) != "Cn" for letter in text)


def references(folder: Path) -> dict[str, Encode]:
    """One of each family."""

    def opened(name: str, files: dict[str, str], **fields: Any) -> Any:
        inside = folder / next(iter(files)).split("/")[0]
        inside.mkdir()
        return reference(inside, name, files, **fields)

    return {
        "clip": clip(),
        "bert": ids(opened("BertTokenizer", BERT)),
        "gpt2": ids(opened("GPT2Tokenizer", GPT2)),
        "opt": ids(opened("GPT2Tokenizer", OPT, **OPT_MARKS)),
        "t5": ids(opened("T5Tokenizer", T5)),
        "llama": inner(opened("LlamaTokenizer", LLAMA, **LLAMA_MARKS)),
    }
