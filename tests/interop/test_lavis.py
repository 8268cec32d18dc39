"""The files of BLIP's and LAVIS's authors: whole systems, and stages that lack what was frozen."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import vlmax
from tests.interop import torch_file
from tests.interop.blip_models import ALIGNED, EVA_88, FORMER_64, MODEL_64, write_pth
from tests.interop.models import same
from vlmax.errors import InputError
from vlmax.interop import blip_pth, lavis, torch_files
from vlmax.interop.converting import convert
from vlmax.interop.loading import open_model
from vlmax.interop.pretrained import Pretrained, plan
from vlmax.models.connectors.qformer import TEXT_BRANCH, QFormer
from vlmax.models.decoders.opt import OPT
from vlmax.models.encoders.vit import eva_vit_g14, penultimate_vit_l14
from vlmax.systems.blip import BLIP
from vlmax.systems.blip2 import BLIP2
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_nlvr2 import BLIPNLVR2
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal

LEAN = dataclasses.replace(FORMER_64, text=False, predicts=False, vocab=QFormer.vocab, context=QFormer.context)
RETRIEVAL = dataclasses.replace(BLIPRetrieval.alignment, embed=ALIGNED.embed)
BLIPS = {
    "pretraining": BLIP(MODEL_64, ALIGNED),
    "caption": BLIPCaption(MODEL_64),
    "questions": BLIPVQA(MODEL_64),
    "retrieval": BLIPRetrieval(MODEL_64, RETRIEVAL),
    "two images": BLIPNLVR2(MODEL_64),
}


@pytest.mark.parametrize("name", BLIPS)
def test_blip(name, tmp_path):
    config = BLIPS[name]
    held = write_pth(tmp_path / "model.pth", config, blip_pth.FAMILY)
    opened = open_model(tmp_path / "model.pth")
    assert opened.config == config and not opened.absent and not opened.notes
    same(opened.arrays(), held)


def rewritten(path, change):
    """The file with other tensors."""
    torch_file.write(path, change({name: np.array(tensor.values()) for name, tensor in torch_files.read(path).items()}))


def test_what_training_alone_needs_is_left_out(tmp_path):
    """Momentum twins and queues; and what decoder and encoder share is stored twice."""
    path = tmp_path / "model.pth"
    held = write_pth(path, BLIPS["pretraining"], blip_pth.FAMILY)

    def as_saved(found):
        shared = {
            name.replace("text_encoder.", "text_decoder.bert."): array
            for name, array in found.items()
            if name.startswith("text_encoder.")
        }
        twins = {f"visual_encoder_m.{i}": np.zeros(2, np.float32) for i in range(3)}
        queues = {"image_queue": np.zeros((12, 4), np.float32), "queue_ptr": np.zeros(1, np.int64)}
        word = found["text_encoder.embeddings.word_embeddings.weight"]
        head = {"text_decoder.cls.predictions.decoder.weight": word}
        return {**shared, **head, **twins, **queues, **found}

    rewritten(path, as_saved)
    opened = open_model(path)
    assert len(opened.notes) == 1 and "momentum" in opened.notes[0]
    same(opened.arrays(), held)

    def torn(found):
        name = "text_decoder.bert.encoder.layer.0.intermediate.dense.bias"
        return {**found, name: found[name] + 1}

    rewritten(path, torn)
    with pytest.raises(InputError, match=r"intermediate.dense.bias \(tied\), but the checkpoint holds both"):
        open_model(path)


def test_blip_out_to_hugging_face(tmp_path):
    config = BLIPS["caption"]
    held = write_pth(tmp_path / "model.pth", config, blip_pth.FAMILY)
    list(convert(tmp_path / "model.pth", tmp_path / "out", "huggingface"))
    opened = open_model(tmp_path / "out")
    assert opened.config == config
    same(opened.arrays(), held)
    with pytest.raises(InputError, match="there is no format 'blip_pth'"):
        list(convert(tmp_path / "out", tmp_path / "again", "blip_pth"))


FIRST = BLIP2(EVA_88, dataclasses.replace(FORMER_64, cross_width=88), embed=12, decode=39)


def test_first_stage_with_its_encoder(tmp_path):
    """As after a fine-tuning for retrieval; the keys of EVA have no bias."""
    held = write_pth(tmp_path / "model.pth", FIRST, lavis.FAMILY)
    opened = open_model(tmp_path / "model.pth")
    assert opened.config == FIRST
    assert set(opened.absent) == {"image/transformer/layers/attention/key/bias"}
    found = opened.arrays()
    assert not np.any(found.pop("image/transformer/layers/attention/key/bias"))
    same(found, held)
    system, _, tokenizer = vlmax.load(tmp_path / "model.pth", dtype="float32")
    assert system == dataclasses.replace(FIRST, dtype="float32") and tokenizer is None


def test_first_stage_without_the_frozen_encoder(tmp_path):
    config = BLIP2(eva_vit_g14(), FORMER_64, embed=12, decode=39)
    held = write_pth(tmp_path / "model.pth", config, lavis.FAMILY, ("image",))
    opened = open_model(tmp_path / "model.pth")
    assert opened.config == config and all(path.startswith("image/") for path in opened.absent)
    with pytest.raises(InputError, match=r"lacks the image encoder, frozen \(image\), so that it is no whole model"):
        vlmax.load(tmp_path / "model.pth")

    text = Causal(OPT(width=16, depth=1, heads=2, mlp=8, vocab=40, context=40), 8)
    init = Pretrained(str(tmp_path / "model.pth"), "connector", take="qformer", leave=TEXT_BRANCH)
    former = {path.removeprefix("qformer/"): x.shape for path, x in held.items() if path.startswith("qformer/")}
    lean = {path: size for path, size in former.items() if not any(re.fullmatch(rule, path) for rule in TEXT_BRANCH)}
    shapes = {f"connector/{path}": size for path, size in lean.items()}
    found = plan(init, "init[0]", ImagePrefix(eva_vit_g14(), text, LEAN), shapes)
    assert found.paths == {f"connector/{path}": f"qformer/{path}" for path in lean} and not found.fitted


def second(kind, width=None, **changes):
    text = next(text for text in lavis.LANGUAGE[kind] if width in (None, text.decoder.embed_width))
    return ImagePrefix(eva_vit_g14(), text, **{"connector": LEAN, **changes})


INSTRUCTED = dataclasses.replace(FORMER_64, predicts=False)
FROZEN = ("image", "text")
STAGES = {
    "opt 2.7b": second("opt_proj"),
    "opt 6.7b": second("opt_proj", 4096),
    "t5 xl": second("t5_proj"),
    "vicuna 13b": second("llm_proj", 5120, connector=INSTRUCTED, instruction=60),
    "t5, instructed": second("t5_proj", connector=INSTRUCTED, instruction=60),
    "opt, clip": ImagePrefix(
        penultimate_vit_l14(), lavis.LANGUAGE["opt_proj"][0], dataclasses.replace(LEAN, cross_width=1024)
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_second_stage(name, tmp_path):
    """Which holds neither of the frozen parts."""
    config = STAGES[name]
    held = write_pth(tmp_path / "model.pth", config, lavis.FAMILY, FROZEN)
    opened = open_model(tmp_path / "model.pth")
    assert opened.config == config
    assert {path.split("/")[0] for path in opened.absent} == {"image", "text"}
    shardings = opened.outline.shardings(None)
    same(opened.read({path: shardings[path] for path in held}), held)
    lacks = r"lacks the image encoder, frozen \(image\) and the language model, frozen \(text\)"
    with pytest.raises(InputError, match=lacks):
        vlmax.load(tmp_path / "model.pth")
    with pytest.raises(InputError, match=lacks):
        list(convert(tmp_path / "model.pth", tmp_path / "out"))


def test_a_file_of_another_stage(tmp_path):
    """It is said which stage it is, and what is missing."""
    write_pth(tmp_path / "model.pth", STAGES["opt 2.7b"], lavis.FAMILY, FROZEN)
    init = Pretrained(str(tmp_path / "model.pth"), "qformer", take="qformer")
    with pytest.raises(InputError) as caught:
        plan(init, "init[0]", FIRST, {"qformer/query_tokens": (3, 64)})
    told = str(caught.value)
    for part in (
        "init[0].take: nothing lies under 'qformer'",
        "of the format lavis, a system ImagePrefix",
        "with the parts image encoder (image), connector (connector), projection (projection), language model (text)",
        "it lacks the image encoder, frozen (image), the language model, frozen (text)",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {"Qformer.x": np.zeros(2, np.float32)}, "there is no 'query_tokens', which LAVIS's BLIP-2 has"),
        (
            lambda found: {**found, "opt_proj.weight": np.zeros((7, 64), np.float32)},
            "gives vectors 7 wide, and the language models behind that name are 2560 or 4096 wide",
        ),
        (
            lambda found: {n: a for n, a in found.items() if n != "ln_vision.bias"},
            "ln_vision.bias.*is not there",
        ),
        (lambda found: {"weight": np.zeros(2, np.float32)}, "its tensors do not say what model they are"),
    ],
)
def test_files_that_are_something_else(change, message, tmp_path):
    write_pth(tmp_path / "model.pth", STAGES["opt 2.7b"], lavis.FAMILY, FROZEN)
    rewritten(tmp_path / "model.pth", change)
    with pytest.raises(InputError, match=message):
        open_model(tmp_path / "model.pth")


def test_blip_without_a_tensor(tmp_path):
    write_pth(tmp_path / "model.pth", BLIPS["caption"], blip_pth.FAMILY)
    rewritten(tmp_path / "model.pth", lambda found: {n: a for n, a in found.items() if "patch_embed" not in n})
    with pytest.raises(InputError, match=r"there is no tensor 'visual_encoder\.patch_embed\.proj\.weight'"):
        open_model(tmp_path / "model.pth")
