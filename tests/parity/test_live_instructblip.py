"""InstructBLIP of transformers, whose Q-Former reads the instruction, into our folders and out again."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch

from tests.parity.blip import (
    FORMER,
    LANGUAGE,
    TIED,
    VISION,
    close_rows,
    left,
    logits,
    pictures,
    texts,
    untied,
    until,
    written,
    written_anew,
)
from tests.parity.interop import randomise, there_and_back
from tests.parity.test_live_blip2 import BEGIN, IMAGE, QUERIES, SHAPES, begun
from tests.parity.torch_imports import transformers


def loaded(kind, shape, folder):
    vision, former = SHAPES[shape]
    config = transformers().InstructBlipConfig(
        vision_config={**VISION, **vision},
        qformer_config={**FORMER, **former},
        text_config={"model_type": kind, **LANGUAGE[kind]},
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    model = untied(randomise(transformers().InstructBlipForConditionalGeneration(config)))
    system, variables = there_and_back(model, folder, but=TIED if kind == "t5" else None)
    if kind != "t5":
        written_anew(model, folder)
    return model, system, variables, *pictures(config.vision_config.image_size)


def asked():
    """An instruction in the Q-Former's tokens, as both read it."""
    tokens, valid = texts(40, (6, 3, 8), seed=4)
    return tokens, {"qformer_input_ids": tokens, "qformer_attention_mask": valid}


@pytest.mark.parametrize("shape", SHAPES)
def test_with_llama(shape, tmp_path):
    model, system, variables, pixels, theirs = loaded("llama", shape, tmp_path)
    instruction, options = asked()
    features = {"image": pixels, "instruction": instruction.numpy().astype(np.int32)}
    tokens, valid = texts(IMAGE, (7, 4, 6))
    tokens[:, 0] = BEGIN
    inputs, mask = begun(tokens, valid)
    with torch.no_grad():
        wanted = model(pixel_values=theirs, input_ids=inputs, attention_mask=mask, **options).logits
    close_rows(logits(system, variables, {**features, **left(tokens, valid)}), wanted, mask)

    even = tokens[:, :4]
    inputs, mask = begun(even, torch.ones_like(even))
    end = model.config.text_config.eos_token_id
    for beams in (1, 3):
        settings = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False}
        found = model.generate(pixel_values=theirs, input_ids=inputs, attention_mask=mask, **options, **settings)
        new = found[:, inputs.shape[1] :] if found.shape[1] > 9 else found
        batch = {**features, **left(even, torch.ones_like(even))}
        ours = written(system, variables, batch, end, max_new_tokens=9, beams=beams)
        assert ours == [until(row.tolist(), end) for row in new]


def test_with_t5(tmp_path):
    model, system, variables, pixels, theirs = loaded("t5", "small", tmp_path)
    instruction, options = asked()
    features = {"image": pixels, "instruction": instruction.numpy().astype(np.int32)}
    tokens, valid = texts(IMAGE, (7, 4, 6))
    inputs, mask = begun(tokens, valid)
    for beams in (1, 3):
        settings = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False}
        found = model.generate(pixel_values=theirs, input_ids=inputs, attention_mask=mask, **options, **settings)
        ours = written(system, variables, {**features, **left(tokens, valid)}, 1, max_new_tokens=9, beams=beams)
        assert ours == [until(row[1:].tolist(), 1) for row in found]
