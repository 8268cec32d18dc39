r"""BLIP-2's first stage fine-tuned on COCO for retrieval (Li et al. 2023, section 4.4): `:vitg`, `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_retrieval_coco.py:vitg
    python -m vlmax.train --config experiments/blip2_retrieval_coco.py:tiny

All of the first stage trains with its three losses, the image encoder, too. Numbers are the paper's (table 9): 5 epochs
in batches of 224, learning rate 1e-5 (ViT-L: 5e-6) after 1,000 steps of warm-up, betas 0.9 and 0.999 (ViT-L: 0.98),
decay 0.05, pictures of 364 pixels, layer-wise decay 0.95 of the encoder's rate, which reaches the optimizer here and in
the public code (LAVIS) does not. From that code: captions of the same image share the contrastive target and are no
negatives, 128 candidates are re-ranked, the cosine ends at 0, crops of (0.5, 1) with flips.

It reads the checkpoint of `blip2_stage1.py`, and the image encoder in full precision from where that takes it; COCO's
pictures in `data/coco` with Karpathy's `dataset_coco.json`, Flickr30k's in `data/flickr30k`.

| variant | COCO, fine-tuned, TR / IR R@1 | Flickr30k, without further training, TR / IR R@1 (paper, table 5) |
|---|---|---|
| vitg (base) | 85.4 / 68.3 | 97.6 / 89.7 |
| vitl | 83.5 / 66.3 | 96.9 / 88.6 |

`:tiny` is the same code on `shapes`, from the runs of `clip_shapes.py` and `blip2_stage1.py:tiny`.
"""

import dataclasses

from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe, WithTokens, WordPiece
from vlmax.evaluation.reranking import Reranking
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14, penultimate_vit_l14
from vlmax.systems.blip2 import BLIP2
from vlmax.training.groups import LayerDecay
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "vitg", "vitl", "tiny")
BATCH, EPOCHS, CAPTIONS, PIXELS = 224, 5, 566_747, 364
STEM = r"image/(class_token|patch_embedding/.*|positions/.*|pre_norm/.*)"


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `vitg`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    vit = "vitl" if variant == "vitl" else "vitg"
    build = penultimate_vit_l14 if vit == "vitl" else eva_vit_g14
    image = build(image=PIXELS, remat="full")
    encoder = Pretrained("data/blip2-opt-2.7b", "image", take="image", resize=("positions/embedding",))
    if vit == "vitl":
        layers = {"leave": ("final_norm/.*",), "shorten": ("transformer/layers/.*",)}
        encoder = dataclasses.replace(encoder, path="data/clip-vit-large-patch14", **layers)
    coco = {"annotations": "data/coco/dataset_coco.json", "images": ("data/coco",)}
    return Experiment(
        name=f"blip2_retrieval_coco_{vit}",
        system=BLIP2(
            image=image,
            qformer=QFormer(cross_width=image.width, vocab_multiple=64, dropout=0.1),
            lock_image=False,
        ),
        data=Data(
            sources=(Weighted(Karpathy(**coco, name="coco")),),
            preprocess=ImageText(
                ImageTransform(RandomResizedCrop(PIXELS, scale=(0.5, 1.0)), flip=0.5),
                WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]",)),
                length=32,
                group="image_id",
            ),
            batch_size=BATCH,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98 if vit == "vitl" else 0.999, weight_decay=0.05),
            Cosine(peak=5e-6 if vit == "vitl" else 1e-5, warmup_steps=1000),
            layer_decay=(
                LayerDecay(
                    r"image/transformer/layers/.*", STEM if vit == "vitl" else STEM.replace("|pre_norm/.*", ""), 0.95
                ),
            ),
        ),
        steps=EPOCHS * CAPTIONS // BATCH,
        init=(encoder, *rest(f"runs/blip2_stage1_{vit}")),
        evaluation_image=ImageTransform(Squash(PIXELS)),
        evaluations=(
            Reranking(Karpathy(**coco, splits=("test",), name="coco-test"), name="coco", k_test=128),
            Reranking(
                Karpathy("data/flickr30k/dataset_flickr30k.json", ("data/flickr30k/images",), ("test",), "flickr30k"),
                name="flickr30k",
                k_test=128,
            ),
        ),
        evaluate_every=CAPTIONS // BATCH,
        checkpoints=Checkpoints(every_steps=500),
    )


def rest(run: str) -> tuple[Pretrained, ...]:
    """All of the first stage but the image encoder."""
    parts = ("qformer", "image_projection", "text_projection", "matching", "objective")
    return tuple(Pretrained(run, part, take=part) for part in parts)


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`."""
    train, image = Shapes("train", size=size, kinds=("single", "group")), ImageTransform(Squash(size))
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=size)
    return Experiment(
        name="blip2_retrieval_tiny",
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
            lock_image=False,
            chunk=4096,
            dtype="float32",
        ),
        data=Data(
            sources=(Weighted(train),),
            preprocess=ImageText(
                image, WithTokens(TrainedBpe(train, vocab_size=512), ("[DEC]",)), length=16, group="group"
            ),
            batch_size=64,
        ),
        optimizer=Optimizer(AdamW(weight_decay=0.05), Cosine(peak=3e-4, warmup_steps=20), clip_norm=1.0),
        steps=200,
        init=(Pretrained("runs/clip_shapes", "image", take="image"), *rest("runs/blip2_stage1_tiny")),
        evaluation_image=image,
        evaluations=(
            Reranking(
                Shapes("test", count=256, size=size, kinds=("single", "group"), captions="full", distinct=True),
                name="unseen",
                captions=1,
                k_test=16,
            ),
        ),
        checkpoints=Checkpoints(every_steps=100),
    )
