"""The smallest BLIP that pretrains from end to end, on `shapes`: what the end-to-end tests start as real processes.

    python -m vlmax.train --config tests/end_to_end/tiny_blip.py --workdir DIR

Sizes divide as those of tiny_clip.py.
"""

from __future__ import annotations

from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe, WithTokens
from vlmax.experiment import Checkpoints, Experiment, Reports, unknown_variant
from vlmax.models.decoders.bert import BERT
from vlmax.models.encoders.vit import blip_vit_b16
from vlmax.systems.blip import BLIP
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_model import MED
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import EpochDecay

SIZE, LENGTH, VOCAB = 32, 16, 264
BATCH, STEPS = 16, 24
VARIANTS = ("base",)


def get_config(variant: str = "base") -> Experiment:
    """A queue of 24 batches, half full after 12 steps, in the middle of the ramp."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    shapes, image = Shapes(size=SIZE, captions="full"), ImageTransform(Squash(SIZE))
    tokenizer = WithTokens(TrainedBpe(shapes, vocab_size=VOCAB - 2, examples=200))
    return Experiment(
        name="tiny_blip",
        system=BLIP(
            model=MED(
                image=blip_vit_b16(image=SIZE, patch=8, width=32, depth=2, heads=4, mlp=64),
                text=BERT(width=32, depth=2, heads=4, mlp=64, vocab=VOCAB, context=LENGTH, token_types=0),
                pad=VOCAB - 5,
                decode=VOCAB - 2,
                encode=VOCAB - 1,
                dtype="float32",
            ),
            alignment=Alignment(embed=16, momentum=0.95, queue=24 * BATCH, ramp_steps=32, chunk=64),
            length=LENGTH,
        ),
        data=Data(
            sources=(Weighted(shapes),),
            preprocess=ImageText(image, tokenizer, length=LENGTH, group="group"),
            batch_size=BATCH,
        ),
        optimizer=Optimizer(
            AdamW(weight_decay=0.05), EpochDecay(peak=1e-3, epoch_steps=8, warmup_steps=4), clip_norm=1.0
        ),
        steps=STEPS,
        evaluation_image=image,
        checkpoints=Checkpoints(every_steps=4),
        reports=Reports(every_steps=1, tensorboard=False),
    )
