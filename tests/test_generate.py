"""The front door, with a model in place of a checkpoint."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import vlmax
from tests.decoding.tiny import MODELS, parameters
from vlmax import generate
from vlmax.data.tokenizers import train_bpe
from vlmax.decoding.settings import Generation
from vlmax.decoding.text import continue_texts

WORDS = ["--checkpoint", "there", "--max-new-tokens", "8"]


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """What `vlmax.load` gives."""
    tokenizer = train_bpe(["a red circle"], 300, tmp_path / "tokenizer.json").open()
    config = dataclasses.replace(MODELS["llama"], vocab=300, width=32, heads=8, kv_heads=8)
    model, params = config.build(), parameters(config)
    asked = []

    def load(path, *, mesh, dtype):
        asked.append((path, dict(mesh.shape), dtype))
        return model, params, tokenizer

    monkeypatch.setattr(vlmax, "load", load, raising=False)
    return model, params, tokenizer, asked


def test_prompts_are_continued(loaded, capsys):
    model, params, tokenizer, asked = loaded
    generate.main([*WORDS, "--prompt", "a red", "a"])
    texts = continue_texts(model, params, tokenizer, ["a red", "a"], Generation(max_new_tokens=8))
    assert capsys.readouterr().out == f"[0] {texts[0]}\n[1] {texts[1]}\n"
    assert asked == [("there", {"data": 1, "fsdp": 1, "tensor": 8, "sequence": 1}, None)]


def test_one_text_is_streamed(loaded, capsys):
    model, params, tokenizer, _ = loaded
    generate.main([*WORDS, "--prompt", "a red", "--stream"])
    texts = continue_texts(model, params, tokenizer, ["a red"], Generation(max_new_tokens=8))
    assert capsys.readouterr().out == f"{texts[0]}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "b", "--stream"], "2 prompts; give one"),
        (["--prompt", "a", "--beams", "2", "--stream"], "set beams to 1"),
    ],
)
def test_what_cannot_be_is_said(loaded, capsys, words, message):
    with pytest.raises(SystemExit) as leaving:
        generate.main([*WORDS, *words])
    assert leaving.value.code == 2 and message in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused(loaded, monkeypatch, capsys):
    monkeypatch.setattr(vlmax, "load", lambda path, **_: (*loaded[:2], None))
    with pytest.raises(SystemExit) as leaving:
        generate.main([*WORDS, "--prompt", "a"])
    assert leaving.value.code == 2 and "no tokenizer beside the model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--prompt", "a", "--beam", "2"], ["--prompt", "a", "--beams", "0"], []])
def test_a_wrong_command_line_leaves_with_2(words):
    done = subprocess.run([sys.executable, "-m", "vlmax.generate", *WORDS, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
