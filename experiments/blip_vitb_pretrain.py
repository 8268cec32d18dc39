r"""BLIP's pretraining (Li et al. 2022): ITC with momentum, ITM with hard negatives, LM; `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip_vitb_pretrain.py
    python -m vlmax.train --config experiments/blip_vitb_pretrain.py:tiny

The numbers are the paper's where it gives them: 14 million images (sections 4.1, 4.2), batch 2,880 (ViT-L: 2,400), 20
epochs, AdamW with decay 0.05, learning rate 3e-4 (ViT-L: 2e-4), times 0.85 after every epoch. The rest is the public
code's (github.com/salesforce/BLIP): warm-up within the first epoch, decay of every parameter, crops of 0.2 to 1 of the
area, RandAugment, alpha to 0.4 over two epochs, a queue of 57,600. The code itself has decay 0.9 an epoch
(`--optimizer.schedule.decay 0.9`) and takes contrast and negatives from one GPU's 75 pairs; here they are of the whole
batch. Hardware then: two nodes of 16 GPUs.

| variant | pretraining on 14 million images, then fine-tuned (table 1, without CapFilt) |
|---|---|
| base | COCO retrieval R@1 78.4 and 60.7, COCO captions CIDEr 127.8 |
| vitl | with CapFilt and 129 million: 82.4 and 65.1, CIDEr 136.7 |

The data: COCO as Karpathy splits it, Visual Genome's regions, and SBU, CC3M and CC12M in shards (docs/data.md). They
are drawn as the paper counts their texts. `init` takes folders of Hugging Face: facebook/deit-base-patch16-224 (ViT-L:
google/vit-large-patch16-224-in21k) and google-bert/bert-base-uncased.

`:tiny` is the same code on `shapes`, a quarter of an hour on two CPU cores, with the image encoder of the run of

    python -m vlmax.train --config experiments/clip_shapes.py

as the paper's begins with one that knows ImageNet. Its pictures are groups of equal objects, so that a batch of 128
holds near neighbours for ITM to learn from, as one of 2,880 does; its joint space is narrow, so that ITC leaves
something to re-ranking:

| pictures | captions true in every word | R@1, image to text and back, by ITC alone | re-ranked by ITM |
|---|---|---|---|
| all 144 of combinations of colour and shape that training never shows | 0.99 | 0.89, 0.93 | 1.00, 1.00 |
| 900 other scenes of combinations that it does show | | 0.90, 0.91 | 0.99, 1.00 |
"""

import dataclasses

from vlmax.data.augment import RandAugment
from vlmax.data.cleaning import Cleaned
from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.sources.shards import Shards
from vlmax.data.sources.visual_genome import VisualGenome
from vlmax.data.tokenizers import TrainedBpe, WithTokens, WordPiece
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.reranking import Reranking
from vlmax.evaluation.scores.shapes import TrueWords
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.decoders.bert import BERT, blip_text
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import blip_vit_b16, blip_vit_l16
from vlmax.systems.blip import BLIP
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_model import MED
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine, EpochDecay

VARIANTS = ("base", "vitl", "tiny")
EPOCH, EPOCHS = 14_000_000, 20
TOKENIZER = WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]", "[ENC]"))
KINDS: tuple[Kind, ...] = ("group",)
BERT_BASE = "data/bert-base-uncased"


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    large = variant == "vitl"
    batch = 2400 if large else 2880
    steps = EPOCH // batch  # of an epoch
    coco = Karpathy("data/coco/dataset_coco.json", ("data/coco",), name="coco")
    test = dataclasses.replace(coco, splits=("test",), name="coco-test")
    genome = VisualGenome("data/vg/region_descriptions.json", ("data/vg/VG_100K", "data/vg/VG_100K_2"))
    return Experiment(
        name="blip_vitl_pretrain" if large else "blip_vitb_pretrain",
        system=BLIP(
            model=MED(image=blip_vit_l16(drop_path=0.1) if large else blip_vit_b16(), text=blip_text(dropout=0.1)),
            alignment=Alignment(ramp_steps=2 * steps),
        ),
        data=Data(
            sources=(  # thousands of texts
                Weighted(Cleaned(coco), 567.0),
                Weighted(Cleaned(genome), 769.0),
                Weighted(Cleaned(Shards(("data/sbu/*.tar",), name="sbu")), 860.0),
                Weighted(Cleaned(Shards(("data/cc3m/*.tar",), name="cc3m")), 3000.0),
                Weighted(Cleaned(Shards(("data/cc12m/*.tar",), name="cc12m")), 10_000.0),
            ),
            preprocess=ImageText(
                ImageTransform(RandomResizedCrop(224, scale=(0.2, 1.0)), flip=0.5, augment=RandAugment()),
                TOKENIZER,
                length=30,
            ),
            batch_size=batch,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(weight_decay=0.05),
            EpochDecay(peak=2e-4 if large else 3e-4, epoch_steps=steps, decay=0.85, warmup_steps=3000),
            decay_multipliers=((".*", 1.0),),
        ),
        steps=EPOCHS * steps,
        init=(
            Pretrained(f"data/{'vit-large' if large else 'deit-base'}-patch16-224", "image", differs=("norm_epsilon",)),
            Pretrained(  # but for token types, which BLIP does not have
                BERT_BASE,
                "text",
                leave=("token_types/.*", "head_.*", "output_bias"),
                fresh=("transformer/layers/cross_attention.*",),
                grow=("vocabulary/embedding",),
                differs=("token_types",),
            ),
            Pretrained(  # what the decoder has for itself
                BERT_BASE,
                "decoder",
                leave=("(vocabulary|positions|token_types|embedding_norm)/.*", "transformer/layers/mlp.*"),
                grow=("output_bias",),
                differs=("token_types",),
            ),
        ),
        evaluation_image=ImageTransform(Squash(224)),
        evaluations=(Reranking(Cleaned(test), name="coco", k_test=256),),
        checkpoints=Checkpoints(every_steps=1000, keep_every=steps),
    )


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`: its captions say all there is to say, so that no wrong pair is a right one."""
    train, image = Shapes("train", size=size, kinds=KINDS, captions="full"), ImageTransform(Squash(size))
    tokenizer = WithTokens(TrainedBpe(ShapesText("train"), vocab_size=768))  # of questions, too: for fine-tunings
    test = dataclasses.replace(train, split="test", count=144, distinct=True)  # all that there are
    seen = dataclasses.replace(train, count=900, seed=1, distinct=True)
    return Experiment(
        name="blip_tiny_pretrain",
        system=BLIP(
            model=MED(
                image=ResNet(stem=16, depths=(1, 1, 1, 1), image=size),
                text=BERT(width=128, depth=2, heads=4, mlp=512, vocab=770, context=32, token_types=0, unroll=2),
                pad=765,
                decode=768,
                encode=769,
                dtype="float32",
            ),
            alignment=Alignment(embed=4, momentum=0.98, queue=1024, ramp_steps=300),
            length=18,
        ),
        data=Data(
            sources=(Weighted(train),),
            preprocess=ImageText(image, tokenizer, length=18, group="group"),
            batch_size=128,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.05),
            Cosine(peak=1.5e-3, warmup_steps=100),
            clip_norm=1.0,
        ),
        steps=1200,
        init=(Pretrained("runs/clip_shapes", "image", take="image"),),
        evaluation_image=image,
        evaluations=(
            Reranking(test, captions=1, k_test=32),
            Reranking(seen, name="seen", captions=1, k_test=32),
            Captioning(
                test,
                Prompting(tokenizer, begin="[DEC]"),
                settings=Generation(max_new_tokens=17, beams=3),
                scores=(TrueWords(),),
            ),
        ),
        checkpoints=Checkpoints(every_steps=200),
    )
