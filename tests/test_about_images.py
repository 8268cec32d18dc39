"""Texts about image files, from folders and from a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import vlmax
from tests.interop.blip_models import SYSTEMS, prefixed
from tests.interop.models import LANGUAGE, random_arrays
from vlmax import about_images, generate
from vlmax.data.image_prompts import Instruction
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.preprocess import ImageOnly
from vlmax.data.tokenizers import WithTokens, WordPiece, train_bpe
from vlmax.decoding.settings import Generation
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.writing import Writer
from vlmax.interop.exporting import export
from vlmax.models.decoders.llama import LLaMA
from vlmax.sharding.mesh import Mesh
from vlmax.training.restored import Restored

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(19))]
FLAGS = ["--max-new-tokens", "5", "--mesh.data", "8", "--mesh.tensor", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures, a text file, and a folder with BERT's tokenizer."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels[..., ::-1])
    (folder / "a.txt").write_text("no picture")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def captioner(files, tmp_path_factory):
    config = SYSTEMS["blip, caption"]
    folder, arrays = tmp_path_factory.mktemp("models") / "captioner", random_arrays(config)
    for path in arrays:
        if path.endswith("bias"):
            arrays[path] *= 0  # which would say what is written, whatever the picture
    arrays["decoder/transformer/layers/cross_attention/out/kernel"] *= 10
    export(folder, config, arrays, files=files)
    return folder


def told(capsys, folder: Path, *words: str) -> str:
    generate.main(["--checkpoint", str(folder), *FLAGS, *words])
    return capsys.readouterr().out


def refused(capsys, folder: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        told(capsys, folder, *words)
    assert leaving.value.code == 2
    return capsys.readouterr().err


def straight(folder: Path, files: Path, names, prompts, tokenizer) -> list[str]:
    """What the captioner writes, without the front door."""
    system, variables, _ = vlmax.load(folder)
    prompting = Prompting(tokenizer, begin="[DEC]")
    rows = [prompting.tokens(prompt) for prompt in prompts]
    batch = {
        "image": np.stack([cv2.imread(str(files / name))[..., ::-1] for name in names]),
        "prompt": np.array(rows, np.int32),
        "prompt_valid": np.ones((len(rows), len(rows[0])), np.int32),
        "valid": np.ones(len(rows), bool),
    }
    writer = Writer(system, variables["params"], {})
    found = writer.generate(batch, Generation(max_new_tokens=5), prompting.marks())
    return [prompting.written(tokens) for tokens in found.tokens]


def test_captions_of_files(captioner, files, capsys):
    tokenizer = WithTokens(WordPiece(str(files / "vocab.txt")))
    names = ["0.png", "1.png"]
    images = [str(files / name) for name in names]
    first, second = straight(captioner, files, names, ["", ""], tokenizer)
    assert told(capsys, captioner, "--image", *images) == f"[0] {first}\n[1] {second}\n"
    assert first and first != second and {*first.split(), *second.split()} <= {*WORDS}
    (asked,) = straight(captioner, files, names[:1], ["word3 word4"], tokenizer)
    assert told(capsys, captioner, "--image", images[0], "--prompt", "word3 word4") == f"{asked}\n"


def test_a_run_is_asked_as_in_its_evaluation(captioner, files, capsys, monkeypatch):
    """Its own tokenizer, prompt and transform."""
    system, variables, _ = vlmax.load(captioner, mesh=Mesh(data=8).build())
    tokenizer = WithTokens(WordPiece(str(files / "vocab.txt")))
    prompts = {"prompting": Prompting(tokenizer, begin="[DEC]"), "prompt": "word7", "instruction": None}
    transform = ImageTransform(Squash(12))
    run = Restored(captioner, 3, system, ImageOnly(transform), transform, prompts, None, variables["params"], {})
    monkeypatch.setattr(about_images, "is_run", lambda path: True)
    monkeypatch.setattr(about_images, "restore", lambda path, mesh: run)
    (wanted,) = straight(captioner, files, ["1.png"], ["word7"], tokenizer)
    assert told(capsys, captioner, "--image", str(files / "1.png")) == f"{wanted}\n"


@pytest.fixture(scope="module")
def instructed(files, tmp_path_factory):
    """A folder of InstructBLIP's, with both tokenizers."""
    beside = tmp_path_factory.mktemp("beside")
    (beside / "qformer_tokenizer").mkdir()
    (beside / "qformer_tokenizer" / "vocab.txt").write_bytes((files / "vocab.txt").read_bytes())
    train_bpe(["a red circle"], 280, beside / "tokenizer.json")
    marks = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (beside / "tokenizer_config.json").write_text(json.dumps(marks))
    config = prefixed(
        LLaMA(**{**LANGUAGE, "vocab": 290}), connector=SYSTEMS["instructblip, llama"].connector, instruction=20
    )
    folder = tmp_path_factory.mktemp("models") / "instructed"
    export(folder, config, random_arrays(config), files=beside)
    return folder


def test_an_instruction_is_read_twice(instructed, files, capsys, monkeypatch):
    """By the language model, and by the Q-Former in its own tokens."""
    given = []
    fixed = Instruction.fixed

    def noted(self, text):
        row = fixed(self, text)
        given.append(row[0].tolist())
        return row

    monkeypatch.setattr(Instruction, "fixed", noted)
    told(capsys, instructed, "--image", str(files / "0.png"), "--prompt", "word3")
    assert given == [[2, 8, 3, *[0] * 17]]


def test_without_the_second_tokenizer(instructed, files, capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in instructed.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    assert "reads instructions, and its tokenizer is not there" in refused(
        capsys, folder, "--image", str(files / "0.png"), "--prompt", "word3"
    )


def test_what_cannot_be_is_said(captioner, files, capsys, tmp_path):
    picture = str(files / "0.png")
    cases = {
        "there is nothing to continue": [],
        "not one about an image": ["--image", picture, "--stream"],
        "there.png: it cannot be read": ["--image", str(files / "there.png")],
        "a.txt: it is no image": ["--image", str(files / "a.txt")],
        "2 prompts for 1 images": ["--image", picture, "--prompt", "a", "b"],
        "holds a BLIPCaption, which writes about images": ["--prompt", "a"],
    }
    for message, words in cases.items():
        assert message in refused(capsys, captioner, *words)
    retrieval = SYSTEMS["blip, retrieval"]
    export(tmp_path / "retrieval", retrieval, random_arrays(retrieval), files=files)
    assert "BLIPRetrieval writes nothing about an image" in refused(capsys, tmp_path / "retrieval", "--image", picture)
    bare = dataclasses.replace(SYSTEMS["blip, caption"], label_smoothing=0.0)
    export(tmp_path / "bare", bare, random_arrays(bare))
    assert "there is no tokenizer beside the system" in refused(capsys, tmp_path / "bare", "--image", picture)
