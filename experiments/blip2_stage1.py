r"""BLIP-2's first stage (Li et al. 2023): a Q-Former on a frozen image encoder; `:vitg`, `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_stage1.py:vitg
    python -m vlmax.train --config experiments/blip2_stage1.py:tiny

The first on every host of a pod. Numbers are the paper's (section 3.4): 250,000 steps, batches of 1,680 (ViT-L: 2,320),
AdamW with betas 0.9 and 0.98 and decay 0.05, learning rate to 1e-4 after 2,000 steps of warm-up. Where the paper is
silent it is the public code (LAVIS, pretrain_stage1.yaml): the rate ends at 1e-5, crops of (0.5, 1) of the area with
flips, 32 tokens of text, label smoothing 0.1, dropout 0.1, no decay on biases and norms.

What it reads: `data/blip2/*`, shards of image-text pairs. The paper's are 129 million: COCO, Visual Genome, CC3M,
CC12M, SBU and 115 million of LAION, with the two best of ten captions by BLIP of each web picture (of which a step
draws one); they are not published, and `python -m vlmax.bootstrap` makes their like. `data/bert-base-uncased` is
Hugging Face's folder. The image encoder comes from `data/blip2-opt-2.7b`, Hugging Face's folder of
Salesforce/blip2-opt-2.7b, which holds EVA's ViT-g as all of BLIP-2 reads it, and for ViT-L from
`data/clip-vit-large-patch14`.

| variant | hardware and time, as published | zero-shot Flickr30k, TR / IR R@1 (paper, table 5) |
|---|---|---|
| vitg (base) | 16 A100 40 GB, less than 6 days | 97.6 / 89.7 |
| vitl | | 96.9 / 88.6 |

`:tiny` is the same code on `shapes`, on the frozen image encoder of the quickstart, whose run must be there first:

    python -m vlmax.train --config experiments/clip_shapes.py
    python -m vlmax.train --config experiments/blip2_stage1.py:tiny

Eleven minutes of one CPU core. On 256 scenes with combinations of colour and shape that training never shows R@1 is
1.00 both ways by ITC alone, and 0.996 re-ranked.
"""

import dataclasses

from vlmax.data.images import CentreCrop, ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.sources.shards import Shards
from vlmax.data.tokenizers import TrainedBpe, WithTokens, WordPiece
from vlmax.evaluation.reranking import Reranking
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14, penultimate_vit_l14
from vlmax.systems.blip2 import BLIP2
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "vitg", "vitl", "tiny")
BERT = Pretrained(
    "data/bert-base-uncased",
    "qformer",
    fresh=("query_tokens", "context_norm/.*", ".*/cross_layers/.*"),
    copies=((r"(.*)/query_(mlp.*)", r"\1/\2"),),  # the queries' feed-forward parts begin as the text's
    leave=("token_types/.*",),
    grow=("vocabulary/embedding", "output_bias"),  # [DEC]
)
VIT_G = Pretrained("data/blip2-opt-2.7b", "image", take="image")
VIT_L = Pretrained(
    "data/clip-vit-large-patch14",
    "image",
    take="image",
    leave=("final_norm/.*",),
    shorten=("transformer/layers/.*",),  # all but the last
)
SIZE = 48  # pixels, of `tiny`
KINDS: tuple[Kind, ...] = ("single", "group")


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `vitg`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    large = variant == "vitl"
    image = penultimate_vit_l14() if large else eva_vit_g14()
    crop = RandomResizedCrop(224, scale=(0.5, 1.0), interpolation="bicubic")
    return Experiment(
        name=f"blip2_stage1_{'vitl' if large else 'vitg'}",
        system=BLIP2(image=image, qformer=QFormer(cross_width=image.width, vocab_multiple=64, dropout=0.1)),
        data=Data(
            sources=(Weighted(Shards(("data/blip2/*.tar",))),),
            preprocess=ImageText(
                ImageTransform(crop, flip=0.5),
                WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]",)),
                length=32,
            ),
            batch_size=2320 if large else 1680,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, weight_decay=0.05),
            Cosine(peak=1e-4, warmup_steps=2000, end=1e-5),
        ),
        steps=250_000,
        init=(VIT_L if large else VIT_G, BERT),
        evaluation_image=ImageTransform(CentreCrop(224)),
        evaluations=(
            Reranking(
                Karpathy("data/flickr30k/dataset_flickr30k.json", ("data/flickr30k/images",), ("test",), "flickr30k"),
                name="flickr30k",
                k_test=128,
            ),
        ),
        evaluate_every=25_000,
        checkpoints=Checkpoints(every_steps=1000, keep_every=50_000),
    )


def tiny() -> Experiment:
    """The same code on `shapes`, on the frozen image encoder of `clip_shapes`."""
    train, image = Shapes("train", size=SIZE, kinds=KINDS), ImageTransform(Squash(SIZE))
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=SIZE)
    tokenizer = WithTokens(TrainedBpe(train, vocab_size=512), ("[DEC]",))
    return Experiment(
        name="blip2_stage1_tiny",
        system=BLIP2(
            image=encoder,
            qformer=QFormer(
                width=128,
                depth=4,
                heads=4,
                mlp=256,
                queries=8,
                cross_width=encoder.width,
                vocab=513,
                context=20,
                unroll=4,
            ),
            embed=64,
            length=16,
            pad=509,
            decode=512,
            chunk=4096,
            dtype="float32",
        ),
        data=Data(
            # Captions that say all there is to say: what a looser one leaves out, the queries would not carry either.
            sources=(Weighted(dataclasses.replace(train, captions="full")),),
            preprocess=ImageText(image, tokenizer, length=16, group="group"),
            batch_size=64,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, weight_decay=0.05),
            Cosine(peak=1.5e-3, warmup_steps=50, end=1e-5),
            clip_norm=1.0,
        ),
        steps=1000,
        init=(Pretrained("runs/clip_shapes", "image", take="image"),),
        evaluation_image=image,
        evaluations=(
            Reranking(
                Shapes("test", count=256, size=SIZE, kinds=KINDS, captions="full", distinct=True),
                name="unseen",
                captions=1,
                k_test=16,
            ),
        ),
        checkpoints=Checkpoints(every_steps=250),
    )
