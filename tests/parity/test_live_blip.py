"""BLIP of transformers: captions, questions and retrieval, into our folders and out again."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import numpy as np
import torch

from tests.parity.blip import VISION, close_rows, left, logits, pictures, texts, until, written, written_anew
from tests.parity.interop import close, randomise, there_and_back
from tests.parity.torch_imports import transformers

VOCAB, DEC, ENC, SEP = 43, 41, 42, 4
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 50,
    "bos_token_id": DEC,
    "eos_token_id": 2,
    "sep_token_id": SEP,
    "pad_token_id": 0,
}
SHAPES = {
    "small": ({}, {}),
    "another": (
        {"num_hidden_layers": 3, "image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6, "hidden_size": 24},
        {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu_new"},
    ),
}
TEMPERATURE = ("the temperature",)


def loaded(kind, shape, folder, notes=()):
    vision, text = SHAPES[shape]
    if kind == "BlipForQuestionAnswering":  # where transformers has one width for image and question
        vision = {**vision, "hidden_size": {**TEXT, **text}["hidden_size"]}
    config = transformers().BlipConfig(
        vision_config={**VISION, **vision}, text_config={**TEXT, **text}, image_text_hidden_size=20
    )
    model = randomise(getattr(transformers(), kind)(config))
    if hasattr(model, "text_decoder"):
        head = model.text_decoder.cls.predictions
        assert head.decoder.weight is model.text_decoder.bert.embeddings.word_embeddings.weight
    system, variables = there_and_back(model, folder, notes=notes)
    written_anew(model, folder)
    pixels, theirs = pictures(config.vision_config.image_size)
    return model, system, variables, pixels, theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_captions(shape, tmp_path):
    model, system, variables, pixels, theirs = loaded("BlipForConditionalGeneration", shape, tmp_path)
    tokens, valid = texts(DEC, (7, 4, 6))
    tokens[:, 0] = DEC
    with torch.no_grad():
        wanted = model(pixel_values=theirs, input_ids=tokens, attention_mask=valid).logits
    batch = {"image": pixels, **left(tokens, valid)}
    close_rows(logits(system, variables, batch), wanted, valid)

    prompt = tokens[:, :4]
    batch = {"image": pixels, **left(prompt, torch.ones_like(prompt))}
    for beams in (1, 3):
        options = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False}
        ended = torch.cat([prompt, torch.full((3, 1), SEP)], dim=1)  # whose last token transformers drops
        found = model.generate(pixel_values=theirs, input_ids=ended, **options)
        ours = written(system, variables, batch, SEP, max_new_tokens=9, beams=beams)
        assert ours == [until(row[4:].tolist(), SEP) for row in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_questions(shape, tmp_path):
    model, system, variables, pixels, theirs = loaded("BlipForQuestionAnswering", shape, tmp_path)
    question, asked = texts(DEC, (5, 5, 5))  # transformers lets the decoder attend to a question's padding
    question[:, 0] = ENC
    answer, given = texts(DEC, (5, 4, 2), seed=2)
    answer[:, 0] = DEC
    with torch.no_grad():
        image = model.vision_model(theirs).last_hidden_state
        states = model.text_encoder(
            input_ids=question,
            attention_mask=asked,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.long),
        ).last_hidden_state
        wanted = model.text_decoder(
            input_ids=answer, attention_mask=given, encoder_hidden_states=states, encoder_attention_mask=asked
        ).logits

    module = system.decoder_module()

    @jax.jit
    def answered(params):
        found = system.prompted(params, {}, {"image": pixels, **left(question, asked)})
        decoder = system.decoder_params(params)
        out = module.apply(
            decoder,
            answer.numpy(),
            segments=given.numpy(),
            context=found.context,
            context_segments=found.context_valid,
        )
        return module.apply(decoder, out.tokens, method="logits")

    ours = zip(np.asarray(answered(variables["params"])), given.sum(1).tolist(), strict=True)
    close_rows(np.stack([np.roll(row, -count, axis=0) for row, count in ours]), wanted, given)

    batch = {"image": pixels, **left(question, asked)}
    for beams in (1, 3):
        options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
        found = model.generate(input_ids=question, pixel_values=theirs, attention_mask=asked, **options)
        ours = written(system, variables, batch, SEP, max_new_tokens=8, beams=beams)
        assert ours == [until(row[1:].tolist(), SEP) for row in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_retrieval(shape, tmp_path):
    model, system, variables, pixels, theirs = loaded("BlipForImageTextRetrieval", shape, tmp_path, TEMPERATURE)
    tokens, valid = texts(DEC, (7, 4, 6))
    tokens[:, 0] = 3
    marked = torch.cat([torch.full((3, 1), ENC), tokens[:, 1:]], dim=1)
    options = {"pixel_values": theirs, "attention_mask": valid}
    with torch.no_grad():
        matched = model(input_ids=marked, use_itm_head=True, **options).itm_score
        similar = model(input_ids=tokens, use_itm_head=False, **options).itm_score

    @jax.jit
    def run(params, text):
        image = system.image_features(params, {}, pixels)
        pairs = system.image_tokens(params, {}, pixels), text
        probability = system.match_probability(params, {}, *pairs)
        return image @ system.text_features(params, {}, text).T, system.match(params, {}, *pairs), probability

    ours = run(variables["params"], tokens.numpy().astype(np.int32))
    close(ours[0], similar)
    close(ours[1], matched[:, 1])
    close(ours[2], matched.softmax(dim=1)[:, 1])
