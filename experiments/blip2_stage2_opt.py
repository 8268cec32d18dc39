r"""BLIP-2's second stage (Li et al. 2023) with OPT: `:opt2_7b`, `:opt6_7b`, `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_stage2_opt.py:opt2_7b
    python -m vlmax.train --config experiments/blip2_stage2_opt.py:tiny

The Q-Former of the first stage and a linear map learn to put an image before a text so that a frozen OPT goes on with
its caption. Numbers are the paper's (section 3.4): 80,000 steps in batches of 1,920, learning rate from 1e-4 to 5e-5
after 2,000 steps of warm-up, betas 0.9 and 0.98, decay 0.05. Where it is silent it is the public code (LAVIS,
pretrain_stage2.yaml, blip2_opt.py): 32 tokens of text, no prompt, a line break ends a caption and is learned.

It reads the data of `blip2_stage1.py`, that run's checkpoint, and `data/opt-2.7b`, Hugging Face's folder of
facebook/opt-2.7b. `opt6_7b` and `vitl` (with OPT-2.7B) are the paper's other models.

| variant | hardware and time, as published | zero-shot VQAv2 val, OK-VQA, GQA (paper, table 2) |
|---|---|---|
| opt2_7b (base) | less than 9 days with the first stage, 16 A100 40 GB | 53.5, 31.7, 34.6 |
| opt6_7b | | 54.3, 36.4, 36.4 |
| vitl | | 50.1, 30.2, 33.9 |

`:tiny` is the same code on `shapes`: its frozen parts come from the runs of

    python -m vlmax.train --config experiments/lm_shapes.py:opt
    python -m vlmax.train --config experiments/blip2_stage1.py:tiny

Its scores are the share of captions of which every word is true: of new scenes, of scenes with combinations of colour
and shape that neither image encoder nor language model has seen, and, `blind`, of the first with the image withheld.
After six minutes of one CPU core: 0.998, 0.93 and 0.00, by beams of 5 without length penalty, the likeliest caption.
That is mostly one which leaves the background out: this language model has not learned to say a background again, so
that greedy captions, some of which name one, are true in 0.84 and 0.78 of the cases.
"""

from vlmax.data.image_prompts import ImagePrompt
from vlmax.data.images import CentreCrop, ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.sources.shards import Shards
from vlmax.data.sources.withheld import Withheld
from vlmax.data.tokenizers import TrainedBpe, opt
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.scores.shapes import TrueWords
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import TEXT_BRANCH, QFormer
from vlmax.models.decoders.opt import OPT, opt_2_7b, opt_6_7b
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14, penultimate_vit_l14
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "opt2_7b", "opt6_7b", "vitl", "tiny")
SIZE = 48  # pixels, of `tiny`
KINDS: tuple[Kind, ...] = ("single", "group")


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `opt2_7b`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    vit, size = ("vitl", "2_7b") if variant == "vitl" else ("vitg", "6_7b" if variant == "opt6_7b" else "2_7b")
    image = penultimate_vit_l14() if vit == "vitl" else eva_vit_g14()
    folder = f"data/opt-{size.replace('_', '.')}"
    tokenizer = opt(f"{folder}/vocab.json", f"{folder}/merges.txt")
    crop = RandomResizedCrop(224, scale=(0.5, 1.0), interpolation="bicubic")
    return Experiment(
        name=f"blip2_stage2_opt{size}" + ("_vitl" if vit == "vitl" else ""),
        system=ImagePrefix(
            image=image,
            text=Causal(opt_6_7b() if size == "6_7b" else opt_2_7b(), 32),
            connector=QFormer(cross_width=image.width, text=False, predicts=False, dropout=0.1),
        ),
        data=Data(
            sources=(Weighted(Shards(("data/blip2/*.tar",))),),
            preprocess=ImagePrompt(ImageTransform(crop, flip=0.5), tokenizer, length=32, end="\n"),
            batch_size=1920,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, weight_decay=0.05),
            Cosine(peak=1e-4, warmup_steps=2000, end=5e-5),
        ),
        steps=80_000,
        init=(
            Pretrained(f"runs/blip2_stage1_{vit}", "image", take="image"),
            Pretrained(f"runs/blip2_stage1_{vit}", "connector", take="qformer", leave=TEXT_BRANCH),
            Pretrained(folder, "text"),
        ),
        evaluation_image=ImageTransform(CentreCrop(224)),
        evaluations=(
            Captioning(
                Karpathy("data/coco/dataset_coco.json", ("data/coco",), ("test",), name="coco"),
                Prompting(tokenizer, end=("\n",)),
                name="coco",
                prompt="a photo of",
                settings=Generation(max_new_tokens=30, beams=5),
            ),
        ),
        evaluate_every=20_000,
        checkpoints=Checkpoints(every_steps=1000, keep_every=20_000),
    )


def tiny() -> Experiment:
    """The same code on `shapes`."""
    image, train = ImageTransform(Squash(SIZE)), Shapes("train", size=SIZE, kinds=KINDS)
    tokenizer = TrainedBpe(ShapesText("train"), vocab_size=512)
    language = OPT(width=128, heads=4, vocab=512, depth=4, mlp=512, context=256, unroll=4)
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=SIZE)
    likeliest = Generation(max_new_tokens=16, beams=5, length_penalty=0.0)
    captions = {"settings": likeliest, "scores": (TrueWords(),)}
    new = Shapes("train", count=512, size=SIZE, kinds=KINDS, seed=1)
    return Experiment(
        name="blip2_stage2_opt_tiny",
        system=ImagePrefix(
            image=encoder,
            text=Causal(language, 16),
            connector=QFormer(
                width=128,
                depth=4,
                heads=4,
                mlp=256,
                queries=8,
                cross_width=encoder.width,
                text=False,
                predicts=False,
                unroll=4,
            ),
            chunk=4096,
            dtype="float32",
        ),
        data=Data(
            sources=(Weighted(train),),
            preprocess=ImagePrompt(image, tokenizer, length=16),
            batch_size=64,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, weight_decay=0.05),
            Cosine(peak=1e-3, warmup_steps=50, end=5e-5),
            clip_norm=1.0,
        ),
        steps=2000,
        init=(
            Pretrained("runs/blip2_stage1_tiny", "image", take="image"),
            Pretrained("runs/blip2_stage1_tiny", "connector", take="qformer", leave=TEXT_BRANCH),
            Pretrained("runs/lm_shapes_opt", "text"),
        ),
        evaluation_image=image,
        evaluations=(
            Captioning(new, Prompting(tokenizer), name="captions", **captions),
            Captioning(
                Shapes("test", count=512, size=SIZE, kinds=KINDS), Prompting(tokenizer), name="unseen", **captions
            ),
            Captioning(Withheld(new), Prompting(tokenizer), name="blind", **captions),
        ),
        checkpoints=Checkpoints(every_steps=250),
    )
