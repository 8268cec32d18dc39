"""Our image encoders beside transformers' BLIP, BLIP-2 (EVA), plain ViT and DINOv2, and SigLIP without a head."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch

from tests.parity.huggingface import vit_config, vit_params
from tests.parity.image_encoders import assert_same
from tests.parity.make_golden import MODELS as FIRST_MODELS
from tests.parity.make_golden_images import MODELS
from tests.parity.reference_images import run
from tests.parity.torch_imports import transformers
from vlmax.models.layers.embeddings import resize_positions

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
LARGE = {"hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 8}
SHAPES = {
    "golden": {},
    "one layer, one head": SMALL,
    "deep, many patches": {**LARGE, "image_size": 67, "images": None},
    "one patch": {**SMALL, "image_size": 7, "patch_size": 7, "images": None},
    "another epsilon": {"layer_norm_eps": 1e-3},
}
FAMILIES = {
    "blip_vision": {"one mlp width": {"intermediate_size": 333}},
    "blip_2_vision": {"no bias": {"qkv_bias": False}},
    "instructblip_vision": {},
    "vit": {"no bias": {"qkv_bias": False}, "mlp": {"intermediate_size": 7}},
    "dinov2": {
        "at its own size": {"images": None},
        "larger images": {"images": (44, 51)},
        "SwiGLU": {"use_swiglu_ffn": True, "mlp_ratio": 4},
        "no bias": {"qkv_bias": False},
    },
    "dinov2_with_registers": {"at its own size": {"images": None}, "larger images": {"images": (44, 51)}},
}
CASES = [(kind, name, shape) for kind, more in FAMILIES.items() for name, shape in {**SHAPES, **more}.items()]


@pytest.mark.parametrize(("kind", "shape"), [pytest.param(k, s, id=f"{k}: {name}") for k, name, s in CASES])
def test_tokens_and_hidden_states(kind, shape):
    golden = MODELS["blip_2_vision" if kind == "instructblip_vision" else kind]
    assert_same(run(kind, seed=3, **{**golden, **shape}))


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("grids", [((37, 37), (16, 16)), ((5, 5), (9, 3)), ((6, 6), (7, 7))])
def test_positions_without_antialiasing_are_torchs(grids, offset):
    """With an offset as DINOv2 calls it: by the factor between the grids, not by their sizes."""
    old, new = grids
    table = torch.randn(1 + old[0] * old[1], 8)
    grid = table[1:].reshape(*old, 8).permute(2, 0, 1)[None]
    size = {"scale_factor": tuple((n + offset) / o for o, n in zip(old, new, strict=True))} if offset else {"size": new}
    theirs = torch.nn.functional.interpolate(grid, **size, mode="bicubic", align_corners=False)
    ours = resize_positions(table.numpy(), old, new, 1, antialias=False, offset=offset)
    np.testing.assert_array_equal(ours[0], table[0])
    np.testing.assert_allclose(ours[1:], theirs[0].permute(1, 2, 0).reshape(-1, 8), atol=2e-5)


def test_siglip_without_its_head_is_the_mean_over_the_same_tokens():
    config = transformers().SiglipVisionConfig(**FIRST_MODELS["siglip_vision"], vision_use_head=False)
    model = transformers().SiglipVisionModel(config).eval()
    images = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        theirs = model(pixel_values=images).last_hidden_state.numpy()
    weights = {name.removeprefix("vision_model."): p.detach().numpy() for name, p in model.named_parameters()}
    ours = dataclasses.replace(vit_config(config.to_dict()), pool="mean")
    out = ours.build().apply(vit_params(weights, ours), images.permute(0, 2, 3, 1).numpy())
    assert np.abs(out.tokens - theirs).max() <= 1e-4 * np.abs(theirs).max()
    np.testing.assert_allclose(out.pooled, theirs.mean(1), atol=1e-4 * np.abs(theirs).max())
