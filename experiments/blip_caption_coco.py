r"""BLIP fine-tuned to caption COCO (Li et al. 2022, section 5.2); `:vitl` and `:tiny`.

    python -m vlmax.train --config experiments/blip_caption_coco.py

As the public code does it (configs/caption_coco.yaml, which has the paper's batch, epochs and learning rate): images
of 384, batch 256, 5 epochs, AdamW with decay 0.05 on every parameter, learning rate 1e-5 (ViT-L: 2e-6), a cosine that
falls from epoch to epoch, the prompt "a picture of" read and not learned, three beams of 5 to 20 tokens, [DEC] and
prompt included. It starts from the run of blip_vitb_pretrain.py. One of a picture's captions is drawn each time; the
code goes through all of them, so five times as many pictures make an epoch.

COCO's Karpathy test split: BLEU-4 38.6 and CIDEr 129.7 after pretraining on 14 million images with CapFilt, 39.7 and
133.3 after 129 million, ViT-L 40.4 and 136.7 (tables 1 and 7).

`:tiny` is the same code on `shapes`, from the run of blip_vitb_pretrain.py:tiny.
"""

from vlmax.data.augment import RandAugment
from vlmax.data.captions import PromptedCaption
from vlmax.data.cleaning import Cleaned
from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.karpathy import Karpathy
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_scene import Kind
from vlmax.data.tokenizers import TrainedBpe, WithTokens, WordPiece
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.scores.shapes import TrueWords
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.decoders.bert import BERT, blip_text
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import blip_vit_b16, blip_vit_l16
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_model import MED
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine, EpochCosine

VARIANTS = ("base", "vitl", "tiny")
BATCH, EPOCHS = 256, 5
EPOCH = 566_747 // BATCH  # captions of COCO's train and restval
TOKENIZER = WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]", "[ENC]"))
PROMPT = "a picture of"
KINDS: tuple[Kind, ...] = ("single", "group")
TRAINED: tuple[Kind, ...] = ("single", "single", "single", "group")


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    large = variant == "vitl"
    pretrained = "runs/blip_vitl_pretrain" if large else "runs/blip_vitb_pretrain"
    test = Karpathy("data/coco/dataset_coco.json", ("data/coco",), ("test",), name="coco-test")
    return Experiment(
        name="blip_vitl_caption_coco" if large else "blip_caption_coco",
        system=BLIPCaption(
            model=MED(
                image=blip_vit_l16(image=384, drop_path=0.1) if large else blip_vit_b16(image=384),
                text=blip_text(dropout=0.1),
            ),
        ),
        data=Data(
            sources=(Weighted(Cleaned(Karpathy("data/coco/dataset_coco.json", ("data/coco",), name="coco"))),),
            preprocess=PromptedCaption(
                ImageTransform(RandomResizedCrop(384, scale=(0.5, 1.0)), flip=0.5, augment=RandAugment()),
                TOKENIZER,
                prompt=PROMPT,
            ),
            batch_size=BATCH,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(weight_decay=0.05),
            EpochCosine(peak=2e-6 if large else 1e-5, epoch_steps=EPOCH),
            decay_multipliers=((".*", 1.0),),
        ),
        steps=EPOCHS * EPOCH,
        init=begun(pretrained),
        evaluation_image=ImageTransform(Squash(384)),
        evaluations=(
            Captioning(
                test,
                Prompting(TOKENIZER, begin="[DEC]"),
                prompt=PROMPT,
                settings=Generation(max_new_tokens=16, min_new_tokens=1, beams=3),
            ),
        ),
        evaluate_every=EPOCH,
        checkpoints=Checkpoints(every_steps=500, keep_every=EPOCH),
    )


def begun(run: str, resize: tuple[str, ...] = ("positions/embedding",)) -> tuple[Pretrained, ...]:
    """Image encoder and decoder as they were pretrained, what the decoder had for itself and what it shared."""
    return (
        Pretrained(run, "image", take="image", resize=resize),
        Pretrained(
            run,
            "decoder",
            copies=(
                (r"(transformer/layers/attention.*|head_.*|output_bias)", r"decoder/\1"),
                (r"(.*)", r"text/\1"),
            ),
            leave=(
                "(image|image_projection|text_projection|matching|objective)/.*",
                "text/transformer/layers/attention.*",
            ),
        ),
    )


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`, from the tiny pretraining."""
    train, image = Shapes("train", size=size, kinds=TRAINED, captions="full"), ImageTransform(Squash(size))
    tokenizer = WithTokens(TrainedBpe(ShapesText("train"), vocab_size=768))
    return Experiment(
        name="blip_tiny_caption",
        system=BLIPCaption(
            model=MED(
                image=ResNet(stem=16, depths=(1, 1, 1, 1), image=size),
                text=BERT(width=128, depth=2, heads=4, mlp=512, vocab=770, context=32, token_types=0, unroll=2),
                pad=765,
                decode=768,
                encode=769,
                dtype="float32",
            ),
            length=24,
        ),
        data=Data(
            sources=(Weighted(train),),
            preprocess=PromptedCaption(image, tokenizer, length=24, prompt=PROMPT),
            batch_size=64,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.05), Cosine(peak=3e-4, warmup_steps=20), clip_norm=1.0
        ),
        steps=300,
        init=begun("runs/blip_tiny_pretrain", resize=()),
        evaluation_image=image,
        evaluations=(
            Captioning(
                Shapes("test", count=512, size=size, kinds=KINDS, captions="full"),
                Prompting(tokenizer, begin="[DEC]"),
                prompt=PROMPT,
                settings=Generation(max_new_tokens=17, beams=3),
                scores=(TrueWords(),),
            ),
        ),
        checkpoints=Checkpoints(every_steps=100),
    )
