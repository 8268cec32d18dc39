"""The tokenizer that lies beside a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import processors

from vlmax.data.tokenizers import (
    ByteBpe,
    SentencePiece,
    Tokenizer,
    TokenizerConfig,
    TokenizerJson,
    WithTokens,
    WordPiece,
)
from vlmax.data.tokenizers.sentence_piece import PieceTokenizer
from vlmax.data.tokenizers.tokenizer import FastTokenizer
from vlmax.errors import InputError
from vlmax.interop.families import read_json


def tokenizer_config(folder: Path) -> TokenizerConfig | None:
    """What opens the tokenizer in a folder; None where there is none.

    Where the files name no padding token, as LLaMA's do not, `<unk>` fills rows, and where there is none, the end mark.
    Begin and end are BERT's `[CLS]` and `[SEP]` where the files call them so.
    """
    options = _options(folder)
    marks = {name: _text(options.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk", "cls", "sep")}
    bos, eos = marks["bos"] or marks["cls"], marks["eos"] or marks["sep"]
    if (folder / "tokenizer.json").is_file():
        pad = marks["pad"] or marks["unk"] or eos
        if pad is None:
            raise InputError(
                f"opening the tokenizer in {folder}: tokenizer_config.json names no padding, end or unknown token; add "
                "`pad_token` to it"
            )
        # Where tokenizer.json itself says how a prompt begins, its word counts, as in transformers.
        return TokenizerJson(str(folder / "tokenizer.json"), pad, bos, eos, begins=_begins(options, False))
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            return _pieces(folder, name, options)
    if (folder / "vocab.txt").is_file():
        return WordPiece(str(folder / "vocab.txt"), lower=options.get("do_lower_case", True))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        plain = "<|endoftext|>"
        return ByteBpe(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            bos or plain,
            eos or plain,
            marks["pad"] or eos or plain,
            begins=_begins(options, False),
        )
    return None


def _pieces(folder: Path, name: str, options: dict[str, Any]) -> SentencePiece:
    extra = options.get("extra_ids", 100 if name == "spiece.model" and options.get("eos_token") == "</s>" else 0)
    added = _read(folder / "added_tokens.json")
    names = (token for token in sorted(added, key=lambda token: added[token]) if not token.startswith("<extra_id_"))
    pad, legacy = None if name == "spiece.model" else 0, options.get("legacy", True) is not False
    begins = _begins(options, True)
    return SentencePiece(str(folder / name), pad, extra, tuple(names), marks=True, legacy=legacy, begins=begins)


def _options(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json."""
    return {**_read(folder / "special_tokens_map.json"), **_read(folder / "tokenizer_config.json")}


def _begins(options: dict[str, Any], unless_told: bool) -> bool:
    """Whether a prompt begins with the mark of the beginning."""
    found = options.get("add_bos_token")
    return unless_told if found is None else bool(found)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(token: Any) -> str | None:
    """A token, which the files write as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def write(config: TokenizerConfig, folder: Path) -> str | None:
    """Writes the files that `tokenizer_config` reads; none where they cannot say what it does, and gives the reason."""
    if isinstance(config, SentencePiece):
        return _write_pieces(config, folder)
    tokenizer = config.open()
    if not isinstance(tokenizer, FastTokenizer) or tokenizer.clean is not None:
        return f"what {type(config).__name__} does with a text has no place in a tokenizer.json; take the model's own"
    if isinstance(_root(config), WordPiece):
        _put_around(tokenizer)
    tokenizer.fast.save(str(folder / "tokenizer.json"))
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad_id}
    marks = {name: tokenizer.fast.id_to_token(i) for name, i in ids.items() if i is not None}
    _write_options(folder, {"tokenizer_class": "PreTrainedTokenizerFast", **marks})
    return None


def _root(config: TokenizerConfig) -> TokenizerConfig:
    """The tokenizer that tokens were added to."""
    return _root(config.tokenizer) if isinstance(config, WithTokens) else config


def _put_around(tokenizer: FastTokenizer) -> None:
    """Tells BERT's tokenizer its marks, which transformers' puts round every text."""
    begin, end = (str(tokenizer.fast.id_to_token(mark)) for mark in (tokenizer.bos, tokenizer.eos) if mark is not None)
    tokens = [(mark, tokenizer.fast.token_to_id(mark)) for mark in (begin, end)]
    tokenizer.fast.post_processor = processors.TemplateProcessing(single=[begin, "$A", end], special_tokens=tokens)


def _write_pieces(config: SentencePiece, folder: Path) -> str | None:
    t5 = config.extra_ids > 0
    readable = SentencePiece(
        config.path, None if t5 else 0, 100 if t5 else 0, config.added, True, config.legacy, config.begins
    )
    if config != readable:
        return f"transformers has no tokenizer like {config}; take the model's own"
    shutil.copyfile(config.path, folder / ("spiece.model" if t5 else "tokenizer.model"))
    llama = {"bos_token": "<s>", "pad_token": "<unk>", "add_bos_token": config.begins}
    marks = {"pad_token": "<pad>"} if t5 else llama
    kind = "T5Tokenizer" if t5 else "LlamaTokenizer"
    options = {"tokenizer_class": kind, "eos_token": "</s>", "unk_token": "<unk>", "legacy": config.legacy}
    _write_options(folder, {**options, **marks})
    if config.added:
        names = config.open().names  # type: ignore[attr-defined]
        (folder / "added_tokens.json").write_text(json.dumps({token: names[token] for token in config.added}))
    return None


def _write_options(folder: Path, options: dict[str, Any]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2, ensure_ascii=False) + "\n", "utf-8")


def marks(folder: Path) -> dict[str, int]:
    """Ids of the marks, named as config.json names them, of the tokenizer in a folder; {} where there is none."""
    config = tokenizer_config(folder)
    if config is None:
        return {}
    tokenizer = config.open()
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad_id}
    return {name: i for name, i in ids.items() if i is not None}


def check_tokenizer(tokenizer: Tokenizer, config: Any, where: Path) -> None:
    """Raises InputError where ids pass the model's embeddings: a tokenizer of another model.

    Also where added tokens of a SentencePiece model would get other ids than its folder gives them.
    """
    if isinstance(tokenizer, PieceTokenizer):
        _check_added(tokenizer.names, where)
    if hasattr(config, "check_tokenizer"):
        return config.check_tokenizer(tokenizer)
    vocab = getattr(config, "vocab", None)
    if vocab is not None and tokenizer.vocab_size > vocab:
        raise InputError(
            f"opening the tokenizer in {where}: it has {tokenizer.vocab_size} ids and the model embeds {vocab}: it "
            "belongs to another model, or tokens were added to it; take the model's own"
        )


def _check_added(names: Mapping[str, int], where: Path) -> None:
    """Raises InputError where a folder gives an added token another id than vlmax does."""
    for token, i in _read(where / "added_tokens.json").items():
        if names.get(token) != i:
            raise InputError(
                f"opening the tokenizer in {where}: added_tokens.json gives {token!r} the id {i}, and vlmax would "
                f"give it {names.get(token)}, the next free one; add a tokenizer.json, which says all ids"
            )
