"""BLIP, BLIP-2 and InstructBLIP out as Hugging Face's folders and in again."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import vlmax
from tests.interop.blip_models import FORMER, MODEL, SYSTEMS, prefixed
from tests.interop.models import LANGUAGE, random_arrays, same
from vlmax.data.tokenizers import train_bpe
from vlmax.errors import InputError
from vlmax.interop.converting import convert
from vlmax.interop.exporting import export, losses
from vlmax.interop.loading import open_model
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.systems.blip_model import MED
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA

MISSING = {
    "blip, retrieval": {"objective/temperature"},
    "blip-2, matching": {
        "objective/temperature",
        *(f"qformer/head_dense/{name}" for name in ("kernel", "bias")),
        *(f"qformer/head_norm/{name}" for name in ("scale", "bias")),
        "qformer/output_bias",
    },
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_bits_and_configuration(name, tmp_path):
    config = SYSTEMS[name]
    arrays = random_arrays(config)
    family = export(tmp_path / "first", config, arrays)
    opened = open_model(tmp_path / "first")
    assert opened.config == config and opened.family is family and not opened.notes
    assert set(opened.absent) == MISSING.get(name, set())
    found = opened.arrays()
    stored = {path: array for path, array in found.items() if path not in opened.absent}
    same(stored, {path: arrays[path] for path in stored})
    assert set(found) == set(arrays)
    if opened.absent:
        assert found["objective/temperature"] == np.float32(0.07)
        assert any("temperature" in note for note in losses(config, family))

    export(tmp_path / "second", opened.config, found, files=opened.files)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.parametrize("name", SYSTEMS)
def test_our_folder_holds_all_of_it(name, tmp_path):
    """Also where the Q-Former's vocabulary is larger than the language model's."""
    config = SYSTEMS[name]
    export(tmp_path / "theirs", config, random_arrays(config))
    told = list(convert(tmp_path / "theirs", tmp_path / "ours"))
    assert len(told) == 1 + (name in MISSING) + (name == "blip-2, matching"), told
    ours = open_model(tmp_path / "ours")
    assert ours.config == config and not ours.absent
    same(ours.arrays(), open_model(tmp_path / "theirs").arrays())


def test_what_an_image_is_normalised_by_travels(tmp_path):
    config = SYSTEMS["blip, caption"]
    grey = dataclasses.replace(config, model=dataclasses.replace(MODEL, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)))
    export(tmp_path / "model", grey, random_arrays(grey))
    assert open_model(tmp_path / "model").config == grey
    pixels = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert pixels["size"] == {"height": 12, "width": 12} and pixels["image_processor_type"] == "BlipImageProcessor"
    # transformers 5 writes it inside what describes the processor of images and texts
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"image_processor": pixels}))
    assert open_model(tmp_path / "model").config == grey


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(19))]


@pytest.fixture
def captioner(tmp_path):
    """A folder of BLIP's with BERT's tokenizer, which lacks [DEC] and [ENC] there."""
    config = SYSTEMS["blip, caption"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    export(tmp_path / "model", config, random_arrays(config), files=tmp_path / "files")
    return tmp_path / "model"


def test_the_tokenizer_gets_blip_s_marks(captioner):
    system, params, tokenizer = vlmax.load(captioner, dtype="float32")
    assert system.model.dtype == "float32" and tokenizer.encode("word0 [DEC] [ENC]") == [5, 24, 25]
    text = json.loads((captioner / "config.json").read_text())["text_config"]
    assert text["bos_token_id"] == 24 and text["sep_token_id"] == 3 and tokenizer.ends == (3,)
    batch = {
        "image": np.zeros((1, 12, 12, 3), np.uint8),
        "prompt": np.array([[24, 5]], np.int32),
        "prompt_valid": np.ones((1, 2), np.int32),
    }
    found = jax.eval_shape(lambda params: system.prompted(params, {}, batch), params["params"])
    assert found.context.shape == (1, MODEL.image.tokens, MODEL.image.width)


def test_a_tokenizer_of_another_model_is_refused(captioner):
    (captioner / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(InputError, match=r"the tokenizer has 27 ids and the text model embeds 26"):
        vlmax.load(captioner)


def test_the_token_of_an_image(tmp_path):
    """It comes after the tokenizer's in transformers, and needs a row."""
    files = tmp_path / "files"
    files.mkdir()
    size = train_bpe(["a red circle"], 280, files / "tokenizer.json").open().vocab_size
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (files / "tokenizer_config.json").write_text(json.dumps(names))
    roomy = prefixed(OPT(**{**LANGUAGE, "vocab": size + 1}))
    export(tmp_path / "model", roomy, random_arrays(roomy), files=files)
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert found["image_token_index"] == size and found["text_config"]["eos_token_id"] == size - 1
    processor = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    assert processor == {"processor_class": "Blip2Processor", "num_query_tokens": FORMER.queries}
    full = prefixed(OPT(**{**LANGUAGE, "vocab": size}))
    with pytest.raises(InputError, match=rf"<image>, which would be {size}, and .* has {size} rows"):
        export(tmp_path / "full", full, random_arrays(full), files=files)


def test_another_epsilon_is_said(tmp_path):
    connector = dataclasses.replace(SYSTEMS["blip-2, opt"].connector, cross_norm=1e-5)
    config = dataclasses.replace(SYSTEMS["blip-2, opt"], connector=connector)
    family = export(tmp_path / "model", config, random_arrays(config))
    (told,) = losses(config, family)
    assert "epsilon 1e-05" in told and "1e-06" in told


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blip, caption", {"architectures": ["BlipModel"]}, r"'BlipModel'; vlmax has systems for BlipForCond"),
        ("blip-2, matching", {"qformer_config": {}}, "use_qformer_text_input is False"),
        ("blip-2, opt", {"text_config": {"model_type": "gpt2"}}, r"language model is 'gpt2'; vlmax reads opt, t5"),
        ("blip-2, opt", {"text_config": {"model_type": "t5"}}, "has no 'd_model'|has no 'num_layers'"),
    ],
)
def test_configurations_that_cannot_be_read(name, change, message, tmp_path):
    config = SYSTEMS[name]
    export(tmp_path / "model", config, random_arrays(config))
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        open_model(tmp_path / "model")


def test_models_that_the_formats_lack(tmp_path):
    cases = {
        "GPT2 as the language model": dataclasses.replace(SYSTEMS["blip-2, opt"], text=_gpt2()),
        r"\[ENC\] that does not follow": BLIPRetrieval(MED(MODEL.image, MODEL.text, decode=25, encode=24)),
        "20 wide beside a text model 16 wide": BLIPVQA(MODEL),
        "without Q-Former": dataclasses.replace(SYSTEMS["blip-2, opt"], connector=None, text=_shorter()),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message):
            export(tmp_path / "model", config, {})


def _shorter():
    """With room for all of an image's tokens."""
    return dataclasses.replace(SYSTEMS["blip-2, opt"].text, length=8)


def _gpt2():
    return dataclasses.replace(SYSTEMS["blip-2, opt"].text, decoder=GPT2(**LANGUAGE))


def test_an_instruction_goes_with_instructblip(tmp_path):
    for name, kind in (("blip-2, opt", "blip-2"), ("instructblip, llama", "instructblip")):
        export(tmp_path / kind, SYSTEMS[name], random_arrays(SYSTEMS[name]))
        assert json.loads((tmp_path / kind / "config.json").read_text())["model_type"] == kind
    with pytest.raises(InputError, match="that reads instructions"):
        export(tmp_path / "other", SYSTEMS["instructblip, llama"], {}, form="blip-2")


def test_the_second_tokenizer_travels(tmp_path):
    (tmp_path / "files" / "qformer_tokenizer").mkdir(parents=True)
    (tmp_path / "files" / "qformer_tokenizer" / "vocab.txt").write_text("[PAD]\n")
    config = prefixed(LLaMA(**LANGUAGE), connector=SYSTEMS["instructblip, llama"].connector, instruction=20)
    export(tmp_path / "model", config, random_arrays(config), files=tmp_path / "files")
    assert (tmp_path / "model" / "qformer_tokenizer" / "vocab.txt").read_text() == "[PAD]\n"
