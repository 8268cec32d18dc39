r"""BLIP-2's second stage (Li et al. 2023) with Flan-T5: `:xl`, `:xxl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_stage2_flant5.py:xl
    python -m vlmax.train --config experiments/blip2_stage2_flant5.py:tiny

As `blip2_stage2_opt.py`, but for a language model with an encoder: every text is parted at a random token, the encoder
reads the image's tokens and the prefix, and the decoder learns to write the suffix (paper, section 3.2; the public code
lacks this split). Numbers are the paper's (section 3.4): 80,000 steps in batches of 1,520, learning rate from 1e-4 to
5e-5 after 2,000 steps of warm-up, betas 0.9 and 0.98, decay 0.05; 32 tokens of prefix and suffix, as the public code
has.

It reads the data of `blip2_stage1.py`, that run's checkpoint, and `data/flan-t5-xl`, Hugging Face's folder of
google/flan-t5-xl.

| variant | hardware and time, as published | zero-shot VQAv2 val, OK-VQA, GQA (paper, table 2) |
|---|---|---|
| xl (base) | | 63.1, 40.7, 44.2 |
| xxl | 16 A100 40 GB, less than 3 days | 65.2, 45.9, 44.7 |

`:tiny` is the same code on `shapes`: its frozen parts come from the runs of

    python -m vlmax.train --config experiments/lm_shapes.py:t5
    python -m vlmax.train --config experiments/blip2_stage1.py:tiny

Its scores are those of `blip2_stage2_opt.py:tiny`; captions are written from an empty prefix. After ten minutes of one
CPU core: 0.99, 0.96 and, with the image withheld, 0.01, both greedy and by beams of 5.
"""

from vlmax.data.image_prompts import ImagePair
from vlmax.data.images import CentreCrop, ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.sources.shards import Shards
from vlmax.data.sources.withheld import Withheld
from vlmax.data.texts import PackedPairs
from vlmax.data.tokenizers import SentencePiece, TrainedBpe
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.scores.shapes import TrueWords
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import TEXT_BRANCH, QFormer
from vlmax.models.decoders.t5 import T5, flan_t5_xl, flan_t5_xxl
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import TextToText
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "xl", "xxl", "tiny")
SIZE = 48  # pixels, of `tiny`
KINDS: tuple[Kind, ...] = ("single", "group")


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `xl`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    size = "xxl" if variant == "xxl" else "xl"
    folder = f"data/flan-t5-{size}"
    tokenizer = SentencePiece(f"{folder}/spiece.model", extra_ids=100)
    crop = RandomResizedCrop(224, scale=(0.5, 1.0), interpolation="bicubic")
    return Experiment(
        name=f"blip2_stage2_flant5{size}",
        system=ImagePrefix(
            image=eva_vit_g14(),
            text=TextToText(flan_t5_xxl() if size == "xxl" else flan_t5_xl(), 32, 32),
            connector=QFormer(text=False, predicts=False, dropout=0.1),
        ),
        data=Data(
            sources=(Weighted(Shards(("data/blip2/*.tar",))),),
            preprocess=ImagePair(ImageTransform(crop, flip=0.5), PackedPairs(tokenizer, 32, 32)),
            batch_size=1520,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, weight_decay=0.05),
            Cosine(peak=1e-4, warmup_steps=2000, end=5e-5),
        ),
        steps=80_000,
        init=(
            Pretrained("runs/blip2_stage1_vitg", "image", take="image"),
            Pretrained("runs/blip2_stage1_vitg", "connector", take="qformer", leave=TEXT_BRANCH),
            Pretrained(folder, "text"),
        ),
        evaluation_image=ImageTransform(CentreCrop(224)),
        evaluations=(
            Captioning(
                Karpathy("data/coco/dataset_coco.json", ("data/coco",), ("test",), name="coco"),
                Prompting(tokenizer, closed=True),
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
    language = T5(width=128, heads=4, vocab=512, depth=3, head_dim=32, mlp=352, context=256, unroll=3)
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=SIZE)
    likeliest = Generation(max_new_tokens=16, beams=5, length_penalty=0.0)
    captions = {"settings": likeliest, "scores": (TrueWords(),)}
    prompting, new = Prompting(tokenizer, closed=True), Shapes("train", count=512, size=SIZE, kinds=KINDS, seed=1)
    return Experiment(
        name="blip2_stage2_flant5_tiny",
        system=ImagePrefix(
            image=encoder,
            text=TextToText(language, 16, 16),
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
            preprocess=ImagePair(image, PackedPairs(tokenizer, 16, 16)),
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
            Pretrained("runs/lm_shapes_t5", "text"),
        ),
        evaluation_image=image,
        evaluations=(
            Captioning(new, prompting, name="captions", **captions),
            Captioning(Shapes("test", count=512, size=SIZE, kinds=KINDS), prompting, name="unseen", **captions),
            Captioning(Withheld(new), prompting, name="blind", **captions),
        ),
        checkpoints=Checkpoints(every_steps=250),
    )
