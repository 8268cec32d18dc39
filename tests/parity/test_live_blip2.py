"""BLIP-2 of transformers: both stages, with every language model, into our folders and out again."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import numpy as np
import torch

from tests.parity.blip import (
    FORMER,
    LANGUAGE,
    TIED,
    TOKENS,
    VISION,
    close_rows,
    left,
    logits,
    pictures,
    prompted,
    texts,
    untied,
    until,
    written,
    written_anew,
)
from tests.parity.interop import close, randomise, there_and_back
from tests.parity.torch_imports import transformers

QUERIES, IMAGE, BEGIN = 5, TOKENS - 1, 2
SHAPES = {
    "small": ({}, {}),
    "another": (
        {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16, "hidden_size": 24, "layer_norm_eps": 1e-5},
        {"num_hidden_layers": 6, "cross_attention_frequency": 3, "hidden_act": "gelu_new"},
    ),
}


def configured(kind, shape, **more):
    vision, former = SHAPES[shape]
    text = {"model_type": kind, **LANGUAGE[kind]}
    return transformers().Blip2Config(
        vision_config={**VISION, **vision},
        qformer_config={**FORMER, **former, **more},
        text_config=text,
        num_query_tokens=QUERIES,
        image_text_hidden_size=20,
        image_token_index=IMAGE,
    )


def begun(tokens, valid):
    """Their inputs: the places of the image, then the text."""
    places = torch.full((len(tokens), QUERIES), IMAGE)
    return torch.cat([places, tokens], dim=1), torch.cat([torch.ones_like(places), valid], dim=1)


@pytest.mark.parametrize(("kind", "shape"), [("opt", "small"), ("opt", "another"), ("llama", "small")])
def test_second_stage_with_a_decoder(kind, shape, tmp_path):
    model = randomise(transformers().Blip2ForConditionalGeneration(configured(kind, shape)))
    system, variables = there_and_back(model, tmp_path)
    written_anew(model, tmp_path)
    pixels, theirs = pictures(model.config.vision_config.image_size)
    tokens, valid = texts(IMAGE, (7, 4, 6))
    tokens[:, 0] = BEGIN
    inputs, mask = begun(tokens, valid)
    with torch.no_grad():
        wanted = model(pixel_values=theirs, input_ids=inputs, attention_mask=mask).logits
    close_rows(logits(system, variables, {"image": pixels, **left(tokens, valid)}), wanted, mask)

    even = tokens[:, :4]
    inputs, mask = begun(even, torch.ones_like(even))
    batch = {"image": pixels, **left(even, torch.ones_like(even))}
    end = model.config.text_config.eos_token_id
    for beams in (1, 3):
        options = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False}
        found = model.generate(pixel_values=theirs, input_ids=inputs, attention_mask=mask, **options)
        new = found[:, inputs.shape[1] :] if found.shape[1] > 9 else found
        ours = written(system, variables, batch, end, max_new_tokens=9, beams=beams)
        assert ours == [until(row.tolist(), end) for row in new]


@pytest.mark.parametrize("shape", SHAPES)
def test_second_stage_with_t5(shape, tmp_path):
    model = untied(randomise(transformers().Blip2ForConditionalGeneration(configured("t5", shape))))
    system, variables = there_and_back(model, tmp_path, but=TIED)
    pixels, theirs = pictures(model.config.vision_config.image_size)
    tokens, valid = texts(IMAGE, (7, 4, 6))
    target = torch.randint(5, IMAGE, (3, 5), generator=torch.Generator().manual_seed(3))
    target[:, 0] = 0
    inputs, mask = begun(tokens, valid)
    with torch.no_grad():
        options = {"pixel_values": theirs, "input_ids": inputs, "attention_mask": mask}
        wanted = model(**options, decoder_input_ids=target).logits
    found, module = prompted(system, variables, {"image": pixels, **left(tokens, valid)}), system.decoder_module()

    @jax.jit
    def run(params):
        out = module.apply(params, found.inputs, target.numpy(), segments=found.valid)
        return module.apply(params, out.tokens, method="logits")

    close(run(system.decoder_params(variables["params"])), wanted)

    batch = {"image": pixels, **left(tokens, valid)}
    for beams in (1, 3):
        options = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False}
        theirs_written = model.generate(pixel_values=theirs, input_ids=inputs, attention_mask=mask, **options)
        ours = written(system, variables, batch, 1, max_new_tokens=9, beams=beams)
        assert ours == [until(row[1:].tolist(), 1) for row in theirs_written]


@pytest.mark.parametrize("shape", SHAPES)
def test_first_stage(shape, tmp_path):
    config = configured("opt", shape, use_qformer_text_input=True)
    config.image_token_index = None
    model = randomise(transformers().Blip2ForImageTextRetrieval(config))
    notes = ("the temperature", "the Q-Former's head")
    system, variables = there_and_back(model, tmp_path, notes=notes)
    written_anew(model, tmp_path)
    pixels, theirs = pictures(config.vision_config.image_size)
    tokens, valid = texts(40, (7, 4, 6))
    options = {"pixel_values": theirs, "input_ids": tokens, "attention_mask": valid}
    with torch.no_grad():
        matched = model(**options, use_image_text_matching_head=True).logits_per_image
        contrast = model(**options, use_image_text_matching_head=False)

    @jax.jit
    def run(params, text):
        image, words = system.image_features(params, {}, pixels), system.text_features(params, {}, text)
        pairs = system.image_tokens(params, {}, pixels), text
        return image, words, system.match(params, {}, *pairs), system.match_probability(params, {}, *pairs)

    image, words, match, probability = run(variables["params"], tokens.numpy().astype(np.int32))
    close(image, contrast.image_embeds)
    close(words, contrast.text_embeds)
    close(np.einsum("bqe,te->bqt", image, words).max(axis=1), contrast.logits_per_image)
    close(match, matched[:, 1])
    close(probability, matched.softmax(dim=1)[:, 1])
