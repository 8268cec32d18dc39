"""The tokenizer beside a checkpoint: which files make which, and whether it belongs to the model."""

from __future__ import annotations

import dataclasses
import json

import pytest

import vlmax
from tests.interop.models import LANGUAGE, random_arrays
from tests.shared import shared
from vlmax.data.tokenizers import ByteBpe, ClipBpe, SentencePiece, TokenizerJson, WordPiece, train_bpe
from vlmax.data.tokenizers.sentence_piece import PieceTokenizer
from vlmax.errors import InputError
from vlmax.interop.exporting import export
from vlmax.interop.tokenizer import check_tokenizer, tokenizer_config, write
from vlmax.models.decoders.llama import LLaMA


def files(folder, options=None, **names):
    for name, content in names.items():
        (folder / name.replace("__", ".")).write_text(content)
    if options is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.mark.parametrize(("said", "pieces", "others"), [(True, True, True), (False, False, False), (None, True, False)])
def test_whether_a_prompt_has_a_beginning(said, pieces, others, tmp_path):
    files(tmp_path, {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": said}, vocab__json="", merges__txt="")
    assert tokenizer_config(tmp_path).begins is others
    files(tmp_path, tokenizer__model="")
    assert tokenizer_config(tmp_path).begins is pieces
    files(tmp_path, tokenizer__json="{}")
    assert tokenizer_config(tmp_path).begins is others


def test_none(tmp_path):
    assert tokenizer_config(tmp_path) is None


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        ({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}, ("<unk>", "<s>", "</s>")),
        ({"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": None}, ("<pad>", None, "<|im_end|>")),
        ({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}, ("[PAD]", "[CLS]", "[SEP]")),
        ({"bos_token": "<e>", "eos_token": "<e>"}, ("<e>", "<e>", "<e>")),
    ],
)
def test_tokenizer_json(options, marks, tmp_path):
    files(tmp_path, options, tokenizer__json="{}", tokenizer__model="also there")
    assert tokenizer_config(tmp_path) == TokenizerJson(str(tmp_path / "tokenizer.json"), *marks)


def test_marks_of_older_files(tmp_path):
    files(tmp_path, {}, tokenizer__json="{}", special_tokens_map__json='{"eos_token": "</s>"}')
    assert tokenizer_config(tmp_path) == TokenizerJson(str(tmp_path / "tokenizer.json"), "</s>", None, "</s>")


def test_no_padding_can_be_told(tmp_path):
    with pytest.raises(InputError, match="pad_token"):
        tokenizer_config(files(tmp_path, {}, tokenizer__json="{}"))


def test_pieces(tmp_path):
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    files(tmp_path, options, tokenizer__model="", added_tokens__json='{"<b>": 32001, "<a>": 32000}')
    wanted = SentencePiece(str(tmp_path / "tokenizer.model"), 0, added=("<a>", "<b>"), marks=True, legacy=False)
    assert tokenizer_config(tmp_path) == wanted


def test_added_tokens_with_other_ids_than_the_next_are_refused(tmp_path):
    files(tmp_path, added_tokens__json='{"<image>": 32005}')
    tokenizer = PieceTokenizer(None, 32001, 0, 1, 2, {"<image>": 32000})
    with pytest.raises(InputError, match=r"'<image>' the id 32005, and vlmax would give it 32000"):
        check_tokenizer(tokenizer, None, tmp_path)
    tokenizer.names["<image>"] = 32005
    check_tokenizer(tokenizer, None, tmp_path)


def test_t5_pieces(tmp_path):
    files(tmp_path, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, spiece__model="")
    assert tokenizer_config(tmp_path) == SentencePiece(str(tmp_path / "spiece.model"), None, extra_ids=100, marks=True)


def test_words_and_bytes(tmp_path):
    files(tmp_path, {"do_lower_case": False}, vocab__txt="")
    assert tokenizer_config(tmp_path) == WordPiece(str(tmp_path / "vocab.txt"), lower=False)
    (tmp_path / "vocab.txt").unlink()
    files(tmp_path, {"eos_token": "</s>", "bos_token": "</s>", "pad_token": "<pad>"}, vocab__json="", merges__txt="")
    paths = (str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert tokenizer_config(tmp_path) == ByteBpe(*paths, "</s>", "</s>", "<pad>")


def test_written_and_read_again(tmp_path):
    model = str(tmp_path / "a.model")
    (tmp_path / "a.model").write_bytes(b"not opened here")
    llama, t5 = SentencePiece(model, 0, marks=True, legacy=False), SentencePiece(model, None, 100, marks=True)
    for i, config in enumerate((llama, t5, dataclasses.replace(llama, begins=False))):
        (tmp_path / str(i)).mkdir()
        assert write(config, tmp_path / str(i)) is None
        (found,) = (path for path in (tmp_path / str(i)).glob("*.model"))
        assert tokenizer_config(tmp_path / str(i)) == dataclasses.replace(config, path=str(found))
    trained = train_bpe(["a red circle", "two blue squares"], 300, tmp_path / "t.json")
    (tmp_path / "trained").mkdir()
    assert write(trained, tmp_path / "trained") is None
    found = tokenizer_config(tmp_path / "trained")
    assert found == dataclasses.replace(trained, path=str(tmp_path / "trained" / "tokenizer.json"))
    assert found.open().encode("two red circles") == trained.open().encode("two red circles")


def test_what_cannot_be_written_is_said(tmp_path):
    assert "no tokenizer like" in write(SentencePiece("a.model", 1), tmp_path)
    merges = shared("data", "tokenizers", "clip", "bpe_simple_vocab_16e6.txt.gz")
    assert "ClipBpe does with a text" in write(ClipBpe(str(merges)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_loaded_with_the_model_and_held_against_it(tmp_path):
    config = LLaMA(**{**LANGUAGE, "vocab": 300})
    export(tmp_path / "model", config, random_arrays(config))
    train_bpe(["a red circle", "two blue squares"], 300, tmp_path / "model" / "tokenizer.json")
    marks = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    files(tmp_path / "model", marks)
    _, _, tokenizer = vlmax.load(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("two red circles")) == "two red circles"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad_id) == (298, 299, 297)
    train_bpe(["a red circle", "two blue squares"], 301, tmp_path / "model" / "tokenizer.json")
    with pytest.raises(InputError, match="301 ids and the model embeds 300: it belongs to another model"):
        vlmax.load(tmp_path / "model")
