"""Tokens that end what a model writes: those of its generation config, beside the tokenizer's own."""

from __future__ import annotations

import json

import pytest

import vlmax
from tests.interop.models import LANGUAGE, random_arrays
from vlmax.data.tokenizers import train_bpe
from vlmax.decoding.text import marks_of
from vlmax.errors import InputError
from vlmax.interop.ends import with_ends
from vlmax.interop.exporting import export
from vlmax.models.decoders.llama import LLaMA

EOS = 299


@pytest.fixture
def tokenizer(tmp_path):
    return train_bpe(["a red circle"], 300, tmp_path / "trained.json").open()


@pytest.mark.parametrize(
    ("generation", "config", "wanted"),
    [
        ({"eos_token_id": [7, EOS, 9]}, {"eos_token_id": 8}, (EOS, 7, 9)),
        ({"eos_token_id": 7}, {}, (EOS, 7)),
        ({"max_length": 5}, {"eos_token_id": 8}, (EOS,)),
        (None, {"eos_token_id": [EOS, 8]}, (EOS, 8)),
        (None, {"eos_token_id": None}, (EOS,)),
        (None, None, (EOS,)),
    ],
)
def test_the_model_s_files_name_them(generation, config, wanted, tokenizer, tmp_path):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    found = with_ends(tokenizer, tmp_path)
    assert found.ends == wanted == marks_of(found).eos and tokenizer.ends == (EOS,)


@pytest.mark.parametrize("wrong", ["</s>", [2, "</s>"], [-1], True])
def test_what_is_no_token_is_refused(wrong, tokenizer, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is .*must be an id"):
        with_ends(tokenizer, tmp_path)


def test_a_loaded_tokenizer_has_them(tmp_path):
    config = LLaMA(**{**LANGUAGE, "vocab": 300})
    export(tmp_path / "model", config, random_arrays(config))
    train_bpe(["a red circle"], 300, tmp_path / "model" / "tokenizer.json")
    marks = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(marks))
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, EOS]}))
    _, _, tokenizer = vlmax.load(tmp_path / "model")
    assert marks_of(tokenizer).eos == (EOS, 5) and tokenizer.begin == (298,)
