"""Image and text encoders of transformers and OpenCLIP into our folders and out again."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import numpy as np
import torch

import vlmax
from tests.parity.interop import close, randomise, there_and_back
from tests.parity.torch_imports import open_clip, transformers
from vlmax.interop.converting import convert

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 12,
    "eos_token_id": 40,
    "bos_token_id": 39,
    "pad_token_id": 40,
}
ENCODERS = {
    "vit": ("ViT", VISION, {"add_pooling_layer": False}),
    "vit, no bias": ("ViT", {**VISION, "qkv_bias": False}, {"add_pooling_layer": False}),
    "vit, one layer": ("ViT", {**VISION, "num_hidden_layers": 1, "image_size": 32}, {"add_pooling_layer": False}),
    "dinov2": ("Dinov2", {**VISION, "mlp_ratio": 2}, {}),
    "dinov2, swiglu": ("Dinov2", {**VISION, "use_swiglu_ffn": True}, {}),
    "dinov2, registers": ("Dinov2WithRegisters", {**VISION, "num_register_tokens": 3}, {}),
    "clip image": ("CLIPVision", VISION, {}),
    "clip image, gelu": ("CLIPVision", {**VISION, "hidden_act": "gelu", "image_size": 8}, {}),
    "siglip image": ("SiglipVision", VISION, {}),
    "siglip image without head": ("SiglipVision", {**VISION, "vision_use_head": False}, {}),
}


def build(kind, fields, options):
    model_class = getattr(transformers(), f"{kind}Model")
    fields = {k: v for k, v in fields.items() if k != "intermediate_size" or not kind.startswith("Dino")}
    model = randomise(model_class(model_class.config_class(**fields), **options))
    if kind.startswith("Dino"):
        torch.nn.init.zeros_(model.embeddings.mask_token)  # for training alone: ours has none, and writes zeros
    return model


def pictures(size, batch=2):
    return torch.randn(batch, 3, size, size)


@pytest.mark.parametrize("name", ENCODERS)
def test_images(name, tmp_path):
    kind, fields, options = ENCODERS[name]
    model = build(kind, fields, options)
    ours, params = there_and_back(model, tmp_path, **options)
    images = pictures(fields["image_size"])
    with torch.no_grad():
        out = model(pixel_values=images)
    found = jax.jit(ours.apply)(params, images.permute(0, 2, 3, 1).numpy())
    if kind != "CLIPVision":  # whose tokens lack the final norm
        close(found.tokens, out.last_hidden_state)
    if kind.startswith("CLIP") or fields.get("vision_use_head", kind.startswith("Siglip")):
        close(found.pooled, out.pooler_output)


@pytest.mark.parametrize("depths", [(1, 2, 1, 3), (2, 1, 1, 1), (1, 1, 1, 1)])
def test_resnet(depths, tmp_path):
    config = transformers().ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=depths)
    model = randomise(transformers().ResNetModel(config))
    ours, params = there_and_back(model, tmp_path)
    images = pictures(64)
    with torch.no_grad():
        theirs = model(images).last_hidden_state
    close(ours.apply(params, images.permute(0, 2, 3, 1).numpy(), True).tokens, theirs.flatten(2).transpose(1, 2))


def texts(batch=3):
    """Each ends at another place."""
    tokens = torch.randint(0, 38, (batch, 12))
    for row in range(batch):
        tokens[row, 11 - 2 * row] = 40
        tokens[row, 12 - 2 * row :] = 0
    return tokens


@pytest.mark.parametrize("kind", ["CLIPText", "SiglipText"])
def test_texts(kind, tmp_path):
    model = build(kind, TEXT, {})
    ours, params = there_and_back(model, tmp_path)
    tokens = texts()
    with torch.no_grad():
        out = model(input_ids=tokens)
    found = ours.apply(params, tokens.numpy())
    close(found.tokens, out.last_hidden_state)
    close(found.pooled, out.pooler_output)


def features(system, params, images, tokens):
    """Of both sides, from pixels that are normalised already."""
    carried = {name: tree for name, tree in params.items() if name != "params"}
    system = dataclasses.replace(system, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    image = system.image_features(params["params"], carried, images.permute(0, 2, 3, 1).numpy())
    return image, system.text_features(params["params"], carried, tokens.numpy())


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}])
def test_clip(changes, tmp_path):
    config = transformers().CLIPConfig(
        vision_config={**VISION, **changes}, text_config={**TEXT, **changes}, projection_dim=20
    )
    model = randomise(transformers().CLIPModel(config))
    system, params = there_and_back(model, tmp_path)
    images, tokens = pictures(24), texts()
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=images)
    image, text = features(system, params, images, tokens)
    close(image, out.image_embeds)
    close(text, out.text_embeds)
    np.testing.assert_allclose(params["params"]["objective"]["log_scale"], model.logit_scale.item(), rtol=1e-6)


def test_siglip(tmp_path):
    text = {**TEXT, "hidden_size": 32}
    model = randomise(transformers().SiglipModel(transformers().SiglipConfig(vision_config=VISION, text_config=text)))
    system, params = there_and_back(model, tmp_path)
    images, tokens = pictures(24), texts()
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=images)
    image, found = features(system, params, images, tokens)
    close(image, out.image_embeds)
    close(found, out.text_embeds)
    scalars = params["params"]["objective"]
    similarities = found @ image.T * np.exp(scalars["log_scale"]) + scalars["bias"]
    close(similarities, out.logits_per_text)


OPEN_CLIP = {
    "ViT": {"image_size": 24, "layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 8},
    "ResNet": {"image_size": 64, "layers": [1, 2, 1, 2], "width": 8, "head_width": 64, "patch_size": None},
}


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip(kind, quick_gelu, tmp_path):
    """The layout that OpenAI's and OpenCLIP's weights have; ours is loaded by OpenCLIP, too."""
    text = {"context_length": 12, "vocab_size": 41, "width": 24, "heads": 2, "layers": 3}
    model_cfg = {"embed_dim": 20, "quick_gelu": quick_gelu, "vision_cfg": OPEN_CLIP[kind], "text_cfg": text}
    model = randomise(open_clip("model").CLIP(**model_cfg))
    (tmp_path / "theirs").mkdir()
    described = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps(described))
    torch.save(model.state_dict(), tmp_path / "theirs" / "open_clip_pytorch_model.bin")
    list(convert(tmp_path / "theirs", tmp_path / "ours"))
    list(convert(tmp_path / "ours", tmp_path / "out", "open_clip"))
    again = open_clip("factory").create_model(f"local-dir:{tmp_path / 'out'}")
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in model.state_dict().items())

    system, params, _ = vlmax.load(tmp_path / "out")
    assert system.mean == (0.1,) * 3
    images, tokens = pictures(OPEN_CLIP[kind]["image_size"]), texts()
    with torch.no_grad():
        image, found, _ = model(images, tokens)
    ours = features(system, params, images, tokens)
    close(ours[0], image)
    close(ours[1], found)
    if kind == "ViT":  # the same model in Hugging Face's layout
        list(convert(tmp_path / "ours", tmp_path / "hf", "huggingface"))
        clip = transformers().CLIPModel.from_pretrained(tmp_path / "hf")
        with torch.no_grad():
            close(ours[0], clip(input_ids=tokens, pixel_values=images).image_embeds)


class Node(torch.nn.Module):
    """A tree of modules with the names of a state dictionary, which TorchScript takes."""

    def forward(self) -> int:
        return 0


def tree(state):
    root = Node()
    for name, values in state.items():
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, Node())
            node = node._modules[parent]
        node.register_buffer(last, values)
    return root


def test_torchscript_as_openai_publishes_it(tmp_path):
    vision = {"image_size": 24, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 41, "width": 64, "heads": 1, "layers": 1}
    model = randomise(open_clip("model").CLIP(20, vision, text, quick_gelu=True))
    marks = {"input_resolution": 24, "context_length": 12, "vocab_size": 41}
    state = {**model.state_dict(), **{name: torch.tensor(value) for name, value in marks.items()}}
    torch.jit.save(torch.jit.script(tree(state)), tmp_path / "model.pt")
    system, params, _ = vlmax.load(tmp_path / "model.pt")
    images, tokens = pictures(24), texts()
    with torch.no_grad():
        image, found, _ = model(images, tokens)
    ours = features(system, params, images, tokens)
    close(ours[0], image)
    close(ours[1], found)
