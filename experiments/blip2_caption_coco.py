r"""BLIP-2 fine-tuned to caption COCO (Li et al. 2023, section 4.2): `:opt2_7b`, `:opt6_7b`, `:flant5xl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_caption_coco.py:opt2_7b
    python -m vlmax.train --config experiments/blip2_caption_coco.py:tiny

Image encoder, Q-Former and projection train; the frozen language model goes on from "a photo of". Numbers are the
paper's (table 7): 5 epochs in batches of 256, learning rate 1e-5 after 1,000 steps of warm-up, betas 0.9 and 0.999,
decay 0.05, pictures of 364 pixels, 5 beams. The layer-wise decay of the encoder's rate is 1 for Flan-T5 XL and OPT-2.7B
and 0.95 for OPT-6.7B, as we read the table's columns; it reaches the optimizer here, which in the public code it does
not. From that code (LAVIS, caption_coco_ft.yaml): the cosine ends at 0, crops of (0.5, 1) with flips, captions of 8 to
30 tokens, and an epoch is the 566,747 captions of Karpathy's training split.

It reads the checkpoint of the second stage, `data/blip2-opt-2.7b` for the image encoder in full precision, the language
model's folder, and COCO's pictures in `data/coco` (train2014/, val2014/) with Karpathy's `dataset_coco.json`.

| variant | COCO BLEU-4 / CIDEr | NoCaps CIDEr / SPICE (paper, table 3) |
|---|---|---|
| opt2_7b (base) | 43.7 / 145.8 | 119.7 / 15.4 |
| opt6_7b | 43.5 / 145.2 | 121.0 / 15.3 |
| flant5xl | 42.4 / 144.5 | 121.6 / 15.8 |

`:tiny` is the same code on `shapes`, from the runs of `clip_shapes.py` and `blip2_stage2_opt.py:tiny`.
"""

import dataclasses

from vlmax.data.image_prompts import CaptionAfter, ImagePair, ImagePrompt
from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.texts import PackedPairs
from vlmax.data.tokenizers import SentencePiece, TrainedBpe, opt
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.scores.shapes import TrueWords
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.decoders.opt import OPT, opt_2_7b, opt_6_7b
from vlmax.models.decoders.t5 import flan_t5_xl
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText
from vlmax.training.groups import LayerDecay
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "opt2_7b", "opt6_7b", "flant5xl", "tiny")
BATCH, EPOCHS, CAPTIONS = 256, 5, 566_747
PIXELS, PROMPT = 364, "a photo of"
LAYER_DECAY = {"opt2_7b": 1.0, "opt6_7b": 0.95, "flant5xl": 1.0}


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `opt2_7b`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    model = "opt2_7b" if variant == "base" else variant
    image = ImageTransform(RandomResizedCrop(PIXELS, scale=(0.5, 1.0)), flip=0.5)
    if model == "flant5xl":
        folder = "data/flan-t5-xl"
        tokenizer = SentencePiece(f"{folder}/spiece.model", extra_ids=100)
        text, prompting = TextToText(flan_t5_xl(), 16, 32), Prompting(tokenizer, closed=True)
        preprocess = ImagePair(image, PackedPairs(tokenizer, 16, 32, learn="answer"), CaptionAfter(PROMPT))
    else:
        folder = f"data/opt-{model[3:].replace('_', '.')}"
        tokenizer = opt(f"{folder}/vocab.json", f"{folder}/merges.txt")
        text = Causal(opt_6_7b() if model == "opt6_7b" else opt_2_7b(), 40)
        prompting = Prompting(tokenizer, end=("\n",))
        preprocess = ImagePrompt(image, tokenizer, length=40, asks=CaptionAfter(PROMPT), end="\n")
    run = f"runs/blip2_stage2_{model}"
    coco = {"annotations": "data/coco/dataset_coco.json", "images": ("data/coco",)}
    return Experiment(
        name=f"blip2_caption_coco_{model}",
        system=ImagePrefix(
            image=eva_vit_g14(image=PIXELS, remat="full"),
            text=text,
            connector=QFormer(text=False, predicts=False, dropout=0.1),
            lock=("text",),
        ),
        data=Data(
            sources=(Weighted(Karpathy(**coco, name="coco")),),
            preprocess=preprocess,
            batch_size=BATCH,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.999, weight_decay=0.05),
            Cosine(peak=1e-5, warmup_steps=1000),
            layer_decay=encoder_decay(LAYER_DECAY[model]),
        ),
        steps=EPOCHS * CAPTIONS // BATCH,
        init=(
            Pretrained("data/blip2-opt-2.7b", "image", take="image", resize=("positions/embedding",)),
            Pretrained(run, "connector", take="connector"),
            Pretrained(run, "projection", take="projection"),
            Pretrained(folder, "text"),
        ),
        evaluation_image=ImageTransform(Squash(PIXELS)),
        evaluations=(
            Captioning(
                Karpathy(**coco, splits=("test",), name="coco-test"),
                prompting,
                prompt=PROMPT,
                settings=Generation(max_new_tokens=30, min_new_tokens=8, beams=5),
            ),
        ),
        evaluate_every=CAPTIONS // BATCH,
        checkpoints=Checkpoints(every_steps=500),
    )


def encoder_decay(rate: float) -> tuple[LayerDecay, ...]:
    """Of the learning rate from each layer of the image encoder to the one before it."""
    stem = r"image/(class_token|patch_embedding/.*|positions/.*)"
    return () if rate == 1 else (LayerDecay(r"image/transformer/layers/.*", stem, rate),)


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`."""
    image, scenes = ImageTransform(Squash(size)), Shapes("train", size=size, kinds=("single", "group"))
    tokenizer, prompt = TrainedBpe(ShapesText("train"), vocab_size=512), "a picture of"
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=size)
    former = QFormer(width=128, depth=4, heads=4, mlp=256, queries=8, cross_width=encoder.width, unroll=4)
    run = "runs/blip2_stage2_opt_tiny"
    return Experiment(
        name="blip2_caption_tiny",
        system=ImagePrefix(
            image=encoder,
            text=Causal(OPT(width=128, heads=4, vocab=512, depth=4, mlp=512, context=256, unroll=4), 24),
            connector=dataclasses.replace(former, predicts=False, text=False),
            lock=("text",),
            chunk=4096,
            dtype="float32",
        ),
        data=Data(
            sources=(Weighted(scenes),),
            preprocess=ImagePrompt(image, tokenizer, length=24, asks=CaptionAfter(prompt)),
            batch_size=64,
        ),
        optimizer=Optimizer(AdamW(weight_decay=0.05), Cosine(peak=3e-4, warmup_steps=20), clip_norm=1.0),
        steps=200,
        init=(
            Pretrained("runs/clip_shapes", "image", take="image"),
            Pretrained(run, "connector", take="connector"),
            Pretrained(run, "projection", take="projection"),
            Pretrained(run, "text", take="text"),
        ),
        evaluation_image=image,
        evaluations=(
            Captioning(
                Shapes("test", count=256, size=size, kinds=("single", "group")),
                Prompting(tokenizer),
                prompt=prompt,
                settings=Generation(max_new_tokens=20),
                scores=(TrueWords(),),
            ),
        ),
        checkpoints=Checkpoints(every_steps=100),
    )
