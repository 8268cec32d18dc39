"""OpenAI's own files: one file without a configuration, the sizes told from its tensors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.interop import torch_file
from tests.interop.models import random_arrays, same
from vlmax.errors import InputError
from vlmax.interop import safetensors
from vlmax.interop.exporting import export
from vlmax.interop.loading import open_model
from vlmax.models.encoders.resnet import ModifiedResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.systems.clip import CLIP

TEXT = TextEncoder(width=64, depth=2, heads=1, mlp=256, vocab=23, context=7, activation="quick_gelu")
VIT = ViT(width=64, depth=3, heads=1, mlp=256, image=16, patch=4, activation="quick_gelu")
RESNET = ModifiedResNet(stem=4, depths=(1, 2, 1, 2), heads=2, output=8, image=64)
MODELS = {
    "ViT": CLIP(VIT, TEXT, embed=12),
    "ResNet": CLIP(RESNET, TEXT, embed=8, image_projection=False),
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """A file as OpenAI's, and what is in it."""
    config = MODELS[request.param]
    arrays = random_arrays(config)
    export(tmp_path / "exported", config, arrays, form="open_clip")
    stored = safetensors.read(tmp_path / "exported" / "open_clip_model.safetensors")
    tensors = {name: np.array(tensor.values()) for name, tensor in stored.items()}
    return tmp_path / "model.pt", config, arrays, tensors


def test_the_file_says_what_it_is(model):
    path, config, arrays, tensors = model
    marks = {"input_resolution": 16, "context_length": 7, "vocab_size": 23}
    torch_file.write(path, {**tensors, **{name: np.asarray(value) for name, value in marks.items()}})
    opened = open_model(path)
    assert opened.config == config
    same(opened.arrays(), arrays)


def test_a_state_dictionary_is_read_where_the_user_says_so(model):
    path, config, arrays, tensors = model
    torch_file.write(path, {f"module.{name}": array for name, array in tensors.items()})
    with pytest.raises(InputError, match="--family openai"):
        open_model(path)
    opened = open_model(path, "openai")
    assert opened.config == config
    same(opened.arrays(), arrays)


def test_another_model_is_refused(tmp_path):
    torch_file.write(tmp_path / "model.pt", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"reading .*model\.pt: there is no tensor 'ln_final\.weight'"):
        open_model(tmp_path / "model.pt", "openai")


def test_open_clip_names_of_a_text_tower(model):
    path, config, arrays, tensors = model
    text = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    renamed = {f"text.{name}" if name.split(".")[0] in text else name: array for name, array in tensors.items()}
    folder = path.parent / "exported"
    safetensors.write(
        folder / "open_clip_model.safetensors",
        {name: (array.shape, array.dtype, lambda array=array: array) for name, array in renamed.items()},
    )
    opened = open_model(folder)
    assert opened.config == config
    same(opened.arrays(), arrays)
