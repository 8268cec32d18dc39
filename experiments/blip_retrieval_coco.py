r"""BLIP fine-tuned for image-text retrieval (Li et al. 2022, section 5.1); `:flickr`, `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip_retrieval_coco.py
    python -m vlmax.train --config experiments/blip_retrieval_coco.py:flickr

As the public code does it (configs/retrieval_coco.yaml, retrieval_flickr.yaml; the paper has the same batch, epochs
and learning rate): images of 384, texts of 35 tokens, batch 256, 6 epochs, AdamW with decay 0.05 on every parameter,
learning rate 1e-5 (ViT-L: 5e-6), a cosine that falls from epoch to epoch, alpha to 0.4 within the first epoch, a queue
of 57,600. Of every query's 256 nearest (Flickr30k: 128) the matching logit is added. On Flickr30k the code takes
negatives from one GPU's 32 pairs; here they are of the whole batch.

| test | image to text R@1, 5, 10 | text to image R@1, 5, 10 | pretraining (table 5) |
|---|---|---|---|
| COCO, 5,000 pictures | 80.6 95.2 97.6 | 63.1 85.3 91.1 | 14 million, with CapFilt |
| COCO, ViT-L | 82.4 95.4 97.9 | 65.1 86.3 91.8 | 129 million, with CapFilt |
| Flickr30k, 1,000 | 96.6 99.8 100 | 87.2 97.5 98.8 | 14 million, with CapFilt |

`:tiny` is the same code on `shapes`, from the run of blip_vitb_pretrain.py:tiny.
"""

from vlmax.data.augment import RandAugment
from vlmax.data.cleaning import Cleaned
from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.tokenizers import TrainedBpe, WithTokens, WordPiece
from vlmax.evaluation.reranking import Reranking
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.decoders.bert import BERT, blip_text
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import blip_vit_b16, blip_vit_l16
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_model import MED
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine, EpochCosine

VARIANTS = ("base", "flickr", "vitl", "tiny")
BATCH, EPOCHS = 256, 6
KINDS: tuple[Kind, ...] = ("single", "group")
TRAINED: tuple[Kind, ...] = ("single", "single", "single", "group")
CAPTIONS = {"coco": 566_747, "flickr": 145_000}
TOKENIZER = WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]", "[ENC]"))


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    large, flickr = variant == "vitl", variant == "flickr"
    epoch = CAPTIONS["flickr" if flickr else "coco"] // BATCH
    folder = "data/flickr30k" if flickr else "data/coco"
    pictures = (f"{folder}/flickr30k-images",) if flickr else (folder,)
    annotations = f"{folder}/dataset_{'flickr30k' if flickr else 'coco'}.json"
    splits = ("train",) if flickr else ("train", "restval")
    return Experiment(
        name=f"blip_retrieval_{'flickr' if flickr else 'coco_vitl' if large else 'coco'}",
        system=BLIPRetrieval(
            model=MED(
                image=blip_vit_l16(image=384, drop_path=0.1) if large else blip_vit_b16(image=384),
                text=blip_text(dropout=0.1),
            ),
            alignment=Alignment(floor=0.0, ramp_steps=epoch),
        ),
        data=Data(
            sources=(Weighted(Cleaned(Karpathy(annotations, pictures, splits))),),
            preprocess=ImageText(
                ImageTransform(RandomResizedCrop(384, scale=(0.5, 1.0)), flip=0.5, augment=RandAugment()),
                TOKENIZER,
                length=35,
                group="image_id",
            ),
            batch_size=BATCH,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(weight_decay=0.05),
            EpochCosine(peak=5e-6 if large else 1e-5, epoch_steps=epoch),
            decay_multipliers=((".*", 1.0),),
        ),
        steps=EPOCHS * epoch,
        init=(
            Pretrained(
                f"runs/blip_{'vitl' if large else 'vitb'}_pretrain",
                leave=("decoder/.*",),
                resize=("image/positions/embedding",),
            ),
        ),
        evaluation_image=ImageTransform(Squash(384)),
        evaluations=(
            Reranking(Cleaned(Karpathy(annotations, pictures, ("test",), name="test")), k_test=128 if flickr else 256),
        ),
        evaluate_every=epoch,
        checkpoints=Checkpoints(every_steps=500, keep_every=epoch),
    )


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`, from the tiny pretraining."""
    train, image = Shapes("train", size=size, kinds=TRAINED, captions="full"), ImageTransform(Squash(size))
    tokenizer = WithTokens(TrainedBpe(ShapesText("train"), vocab_size=768))
    return Experiment(
        name="blip_tiny_retrieval",
        system=BLIPRetrieval(
            model=MED(
                image=ResNet(stem=16, depths=(1, 1, 1, 1), image=size),
                text=BERT(width=128, depth=2, heads=4, mlp=512, vocab=770, context=32, token_types=0, unroll=2),
                pad=765,
                decode=768,
                encode=769,
                dtype="float32",
            ),
            alignment=Alignment(embed=4, momentum=0.98, queue=1024, ramp_steps=100, floor=0.0),
            length=18,
        ),
        data=Data(
            sources=(Weighted(train),),
            preprocess=ImageText(image, tokenizer, length=18, group="group"),
            batch_size=64,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.05), Cosine(peak=3e-4, warmup_steps=20), clip_norm=1.0
        ),
        steps=300,
        init=(Pretrained("runs/blip_tiny_pretrain", leave=("decoder/.*",)),),
        evaluation_image=image,
        evaluations=(
            Reranking(
                Shapes("test", count=512, size=size, kinds=KINDS, captions="full", distinct=True),
                captions=1,
                k_test=32,
            ),
        ),
        checkpoints=Checkpoints(every_steps=100),
    )
