"""What is wrong with a checkpoint is said: the tensor, both shapes, the likely reason, the nearest names."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.interop import torch_file
from tests.interop.models import LANGUAGE, MODELS, random_arrays, same
from tests.interop.test_safetensors import sources
from vlmax.errors import InputError
from vlmax.interop import safetensors
from vlmax.interop.converting import convert
from vlmax.interop.exporting import export, save
from vlmax.interop.families import of_config
from vlmax.interop.loading import open_model
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.encoders.vit import ViT
from vlmax.models.layers.embeddings import LinearScaling, Rotary
from vlmax.systems.clip import CLIP, Sigmoid


@pytest.fixture
def model(tmp_path):
    """A folder with a small LLaMA."""
    _, config = MODELS["llama"]
    export(tmp_path / "model", config, random_arrays(config))
    return tmp_path / "model"


def rewrite(folder, change, name="model"):
    """Changes the tensors of a folder."""
    path = folder / f"{name}.safetensors"
    arrays = {tensor: np.array(stored.values()) for tensor, stored in safetensors.read(path).items()}
    change(arrays)
    safetensors.write(path, sources(arrays))


def configure(folder, **fields):
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, **fields}))


def refused(folder, *words, family=None):
    with pytest.raises(InputError) as caught:
        open_model(folder, family)
    assert str(folder) in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_no_configuration(tmp_path, model):
    refused(tmp_path / "nothing", "no such folder")
    (model / "config.json").unlink()
    refused(model, "no config.json", "llama", "clip_vision_model", "openai", "t5")


def test_an_unknown_family(model):
    configure(model, model_type="lama")
    refused(model, "model_type is 'lama'", "did you mean 'llama'", "known: clip,")
    refused(model, "'huggingface' is not known", family="huggingface")


def test_a_configuration_that_is_no_json(model):
    (model / "config.json").write_text("{")
    refused(model, "config.json: it is no JSON file")


def test_no_weights(model):
    (model / "model.safetensors").unlink()
    refused(model, "no weights", "model.safetensors", "pytorch_model.bin")


def test_a_missing_tensor(model):
    rewrite(model, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight"))
    refused(
        model,
        "model.layers.1.mlp.up_proj.weight [24, 16] is not there",
        "transformer/layers/mlp/up/kernel, layer 1 stays empty",
    )


def test_a_tensor_too_many(model):
    def rename(arrays):
        arrays["model.layers.0.mlp.upp_proj.weight"] = arrays.pop("model.layers.0.mlp.up_proj.weight")

    rewrite(model, rename)
    refused(
        model,
        "model.layers.0.mlp.upp_proj.weight [24, 16] belongs to nothing",
        "did you mean 'model.layers.0.mlp.up_proj.weight'",
        "did you mean 'model.layers.0.mlp.upp_proj.weight'",
    )


def test_more_layers_than_the_configuration_says(model):
    configure(model, num_hidden_layers=1)
    refused(model, "model.layers.1.input_layernorm.weight [16] belongs to nothing in the model")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 29}, ("model.embed_tokens.weight is [23, 16]", "[29, 16]", "another vocabulary size")),
        ({"intermediate_size": 32}, ("mlp.gate_proj.weight is [24, 16]", "[32, 16]", "feed-forward")),
        ({"num_key_value_heads": 1}, ("self_attn.k_proj.weight is [16, 16]", "[4, 16]", "number or width of heads")),
        ({"head_dim": 8}, ("self_attn.q_proj.weight is [16, 16]", "[32, 16]", "number or width of heads")),
    ],
)
def test_another_shape(model, fields, words):
    configure(model, **fields)
    refused(model, *words)


def test_another_width_of_the_model(model):
    configure(model, hidden_size=32, head_dim=4)
    refused(model, "model.norm.weight is [16]", "[32]", "another width of the model")


def test_a_transposed_matrix(model):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(model, lambda arrays: arrays.update({name: arrays[name].T.copy()}))
    refused(model, f"{name} is [16, 24]", "[24, 16]", "the matrix is transposed")


def test_quantised_weights(model):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(model, lambda arrays: arrays.update({name: arrays[name].astype(np.int8)}))
    refused(model, f"{name} (I8)", "fewer bits")


def test_a_dtype_that_is_not_known(model):
    header = json.dumps({"model.norm.weight": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    refused(model, "its tensors are not those of the model")


def test_a_tied_matrix_stored_twice(model):
    configure(model, tie_word_embeddings=True)
    refused(model, "lm_head.weight", "model.embed_tokens.weight", "they differ", "tie_word_embeddings")
    rewrite(model, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"]}))
    assert open_model(model).config.tied


def test_a_damaged_shard(tmp_path):
    _, config = MODELS["llama"]
    export(tmp_path / "model", config, random_arrays(config), shard_bytes=4000)
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    refused(tmp_path / "model", shard.name, "cut off")
    shard.unlink()
    refused(tmp_path / "model", shard.name, "not beside it")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": "linear"}, "of another kind"),
        ({"hidden_size": "16"}, "of another kind"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}},
            "partial_rotary_factor is 0.5",
        ),
    ],
)
def test_what_our_model_cannot_express(model, fields, words):
    configure(model, **fields)
    refused(model, "config", words)


def test_of_two_descriptions_the_one_counts_that_transformers_takes(model, tmp_path):
    scaled = {"rope_type": "linear", "factor": 2.0}
    configure(model, rope_theta=5e5, rope_scaling=scaled, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    assert open_model(model).config.rotary == Rotary(5e5, LinearScaling(2.0))
    _, config = MODELS["clip"]
    export(tmp_path / "clip", config, random_arrays(config))
    found = json.loads((tmp_path / "clip" / "config.json").read_text())
    configure(tmp_path / "clip", text_config_dict={**found["text_config"], "hidden_act": "gelu"})
    opened = open_model(tmp_path / "clip").config
    assert (opened.text.activation, opened.image.activation) == ("gelu", "quick_gelu")


@pytest.mark.parametrize("family", ["bert", "open_clip"])
def test_a_family_that_is_another(model, tmp_path, family):
    refused(model, "config.json says 'llama', and the family was given as", repr(family), family=family)
    assert open_model(model, "llama").config == MODELS["llama"][1]
    list(convert(model, tmp_path / "ours"))
    refused(tmp_path / "ours", "it is of vlmax", repr(family), family=family)
    (tmp_path / "ours" / "params.safetensors").unlink()
    refused(tmp_path / "ours", "no weights, params.safetensors")


def test_windows_in_some_layers(model):
    configure(
        model, model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None
    )
    refused(model, "only some layers have a sliding window")


def test_a_missing_field(model):
    found = json.loads((model / "config.json").read_text())
    del found["num_attention_heads"]
    (model / "config.json").write_text(json.dumps(found))
    refused(model, "config.json has no 'num_attention_heads'")


def test_a_text_that_does_not_end_with_the_highest_id(tmp_path):
    _, config = MODELS["clip text"]
    export(tmp_path / "model", config, random_arrays(config))
    configure(tmp_path / "model", eos_token_id=5)
    refused(tmp_path / "model", "eos_token_id is 5 of 24")


def test_weights_alone(tmp_path):
    form, config = MODELS["clip, open_clip layout"]
    export(tmp_path / "model", config, random_arrays(config), form=form)
    refused(tmp_path / "model" / "open_clip_model.safetensors", "which activation they need", "--family openai")


BASE = {"width": 16, "depth": 1, "heads": 2, "mlp": 16}
PICTURE = {**BASE, "image": 8, "patch": 4}
RESNETS = MODELS["clip resnet, open_clip layout"][1]
TANH = dataclasses.replace(RESNETS.text, activation="gelu_tanh")


@pytest.mark.parametrize(
    ("config", "form", "words"),
    [
        (OPT(**LANGUAGE, norm_epsilon=1e-6), "huggingface", "norm_epsilon of 1e-06"),
        (T5(**LANGUAGE, gated=True, activation="quick_gelu"), "huggingface", "quick_gelu"),
        (BERT(**LANGUAGE, token_types=0), "huggingface", "without token types"),
        (BERT(**LANGUAGE, pooler=True), "huggingface", "both a pooler and a head"),
        (BERT(**LANGUAGE, causal=True, cross_width=8), "huggingface", "a context 8 wide"),
        (ViT(**PICTURE, positions="sincos2d"), "huggingface", "clip_vision|clip"),
        (ViT(**PICTURE, final_norm=False), "huggingface", "norms"),
        (ViT(**{**PICTURE, "image": (8, 12)}), "huggingface", "images of 8 x 12"),
        (MODELS["clip"][1], "siglip", "an image encoder of another kind"),
        (CLIP(ViT(**PICTURE), MODELS["clip text"][1], objective=Sigmoid()), "huggingface", "sigmoid"),
        (MODELS["clip resnet, open_clip layout"][1], "huggingface", "no ViT"),
        (dataclasses.replace(RESNETS, text=TANH), "open_clip", "the activation gelu_tanh"),
        (CLIP(MODELS["resnet"][1], MODELS["clip text"][1]), "open_clip", "a plain ResNet"),
        (LLaMA(**LANGUAGE), "gpt2", "no model like LLaMA"),
        (LLaMA(**LANGUAGE), "hugging_face", "did you mean 'huggingface'"),
    ],
)
def test_an_export_that_the_format_cannot_express(config, form, words, tmp_path):
    with pytest.raises(InputError, match=words):
        export(tmp_path / "model", config, {}, form=form)
    assert not (tmp_path / "model").exists()


def test_an_export_over_something(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="there is something already"):
        export(tmp_path, MODELS["llama"][1], {})


@pytest.mark.parametrize("write", [export, lambda to, config, arrays: save(to, config, of_config(config), arrays)])
def test_arrays_that_are_not_the_models(write, tmp_path):
    _, config = MODELS["llama"]
    arrays, up = random_arrays(config), "transformer/layers/mlp/up"
    with pytest.raises(InputError, match=r"up/lora/a \[2, 16, 4\] has no place in it; .*lora\.merge"):
        write(tmp_path / "model", config, {**arrays, f"{up}/lora/a": np.zeros((2, 16, 4))})
    with pytest.raises(InputError, match=r"up/kernel is \[2, 3\] and should be \[2, 16, 24\]"):
        write(tmp_path / "model", config, {**arrays, f"{up}/kernel": np.zeros((2, 3))})
    del arrays[f"{up}/kernel"]
    with pytest.raises(InputError, match=r"up/kernel \[2, 16, 24\] is missing"):
        write(tmp_path / "model", config, arrays)
    assert not (tmp_path / "model").exists()


def test_left_out_tensors_are_said(tmp_path):
    _, config = MODELS["bert"]
    arrays = random_arrays(config)
    export(tmp_path / "model", config, arrays)

    def add(tensors):
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 16), np.float32)
        tensors["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]
        tensors["bert.embeddings.LayerNorm.gamma"] = tensors.pop("bert.embeddings.LayerNorm.weight")
        tensors["bert.embeddings.LayerNorm.beta"] = tensors.pop("bert.embeddings.LayerNorm.bias")

    rewrite(tmp_path / "model", add)
    opened = open_model(tmp_path / "model", changes={"vocab_multiple": 8})
    assert opened.notes == [
        "vlmax has no head that tells whether a sentence follows: "
        "cls.seq_relationship.bias, cls.seq_relationship.weight"
    ]
    same(opened.arrays(), arrays)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_without_their_prefix_and_torch_files(prefix, tmp_path, model):
    arrays = {
        name.replace("model.", prefix, 1): np.array(stored.values())
        for name, stored in safetensors.read(model / "model.safetensors").items()
    }
    arrays[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
    (model / "model.safetensors").unlink()
    torch_file.write(model / "pytorch_model.bin", arrays)
    _, config = MODELS["llama"]
    same(open_model(model).arrays(), random_arrays(config))


def test_torch_files_with_an_index(tmp_path, model):
    arrays = {name: np.array(stored.values()) for name, stored in safetensors.read(model / "model.safetensors").items()}
    (model / "model.safetensors").unlink()
    names = sorted(arrays)
    halves = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, held in halves.items():
        torch_file.write(model / file, {name: arrays[name] for name in held})
    where = {name: file for file, held in halves.items() for name in held}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    _, config = MODELS["llama"]
    same(open_model(model).arrays(), random_arrays(config))
    torch_file.write(model / "b.bin", {name: arrays[name] for name in halves["b.bin"][1:]})
    refused(model, halves["b.bin"][0], "which no file holds")
