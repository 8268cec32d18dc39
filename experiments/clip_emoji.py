r"""CLIP on real pictures: emoji in three drawing styles, tested on a fourth that no training step saw.

The pictures (6,894 of 64 x 64 pixels) lie in a folder with images.jsonl, codepoints.jsonl and a zip file a vendor.
Prepare them once, training and test split, then train; --root is the folder's place:

    python -m vlmax.prepare --source experiments/clip_emoji.py:train --root ../shared/data/emoji --out data/emoji
    python -m vlmax.prepare --source experiments/clip_emoji.py:test --root ../shared/data/emoji --out data/emoji \
        --split test
    python -m vlmax.train --config experiments/clip_emoji.py

Training: noto, fluent3d and fluentflat, their captions, keywords or both. Test: the 1,885 pictures of twemoji whose
caption and pixels are theirs alone; retrieval both ways, and zero-shot classification over the names of 98 subgroups.
Hardware: two CPU cores. Time and scores, beside those of a PyTorch CLIP given the same: docs/performance.md.

The image encoder is a small ResNet: of 5,000 pictures it learns what carries over to another style in a quarter of
the steps that a ViT needs. Model FLOPs an example are about half of those of that PyTorch CLIP (a ViT of 6 layers,
width 192, patch 16; a text encoder of 3 layers, width 192, 16 tokens): a CPU does convolutions at a slower rate.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from vlmax.data.decode import Decoder, decode
from vlmax.data.example import BadRecord, Example, Feature, Features, Reader
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.files import find, join, read_bytes
from vlmax.data.sources.table import Table, TableReader
from vlmax.data.sources.tfds import TFDS
from vlmax.data.tokenizers import Tokenizer, TrainedBpe
from vlmax.evaluation.retrieval import Retrieval
from vlmax.evaluation.zero_shot import ZeroShot
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.systems.clip import CLIP
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base",)
SPLITS = {"train": ("noto", "fluent3d", "fluentflat"), "test": ("twemoji",)}
SIZE = 64  # pixels
LENGTH = 16  # tokens
VOCAB = 4096
WHITE = (255, 255, 255)

Pixels = UInt8[np.ndarray, "64 64 3"]


def get_config(variant: str = "base") -> Experiment:
    """The experiment; it has no variants."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    train, test = (TFDS("data/emoji", split, name=f"emoji-{split}") for split in SPLITS)
    image = ImageTransform(Squash(SIZE))
    pairs = ImageText(image, TrainedBpe(train, examples=10_000, vocab_size=VOCAB), length=LENGTH, group="codepoint")
    return Experiment(
        name="clip_emoji",
        system=CLIP(
            image=ResNet(stem=24, depths=(1, 1, 1, 1), image=SIZE),
            text=TextEncoder(
                width=192, depth=2, heads=3, mlp=768, vocab=VOCAB, context=LENGTH, unroll=2, causal=False, pool="mean"
            ),
            embed=128,
            dtype="float32",
        ),
        data=Data(sources=(Weighted(train),), preprocess=AugmentedEmoji(pairs), batch_size=256),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2),
            Cosine(peak=1e-3, warmup_steps=100),
            clip_norm=1.0,
            lr_multipliers=(("image/.*", 8.0),),  # as in clip_shapes
        ),
        steps=760,
        ema_decay=0.99,
        evaluation_image=image,
        evaluations=(
            ZeroShot(test, label="subgroup", templates=("{}",)),
            Retrieval(test, captions=1),
        ),
        checkpoints=Checkpoints(every_steps=250),
    )


@dataclasses.dataclass(frozen=True)
class AugmentedEmoji:
    """A picture on a random background, moved and recoloured, with its caption and some of its keywords.

    The first text of an example is its caption, the others are keywords.
    """

    pairs: ImageText
    """Tokenizer, length and group of the pair; its image transform comes last."""
    white: float = 0.5
    """How often the background is white, as in the test; a random colour otherwise."""
    keywords: int = 4
    """The most keywords in a text."""
    caption: float = 0.8
    """How often the caption is in the text, half of these times alone; else keywords alone, as names of classes are."""
    zoom: tuple[float, float] = (0.85, 1.35)
    """Least and largest size of the picture; what it does not fill is background."""
    degrees: float = 12.0
    """The picture is turned by at most this, either way."""
    shear: float = 0.12
    """The largest shear along either axis."""
    color: float = 0.2
    """Channels are multiplied by 1 - color to 1 + color and shifted by half of that share of their range."""
    saturation: tuple[float, float] = (0.4, 1.4)
    """0 is gray, 1 leaves the colours."""

    @property
    def opened(self) -> Tokenizer:
        """The tokenizer."""
        return self.pairs.opened

    def features(self) -> Mapping[str, Feature]:
        """Those of `ImageText`."""
        return self.pairs.features()

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Texts as the model reads them."""
        return self.pairs.tokenize(texts)

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts again, for people."""
        return self.pairs.detokenize(tokens)

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where there is no picture or caption, or it cannot be decoded."""
        if example.image is None or not example.texts:
            raise BadRecord("no picture" if example.image is None else "no caption")
        red, green, blue = WHITE if rng.random() < self.white else rng.integers(256, size=3).tolist()
        pixels = decode(example.image, Decoder((red, green, blue)))
        pixels = self.recolour(self.move(pixels, (red, green, blue), rng), rng)
        return self.pairs(dataclasses.replace(example, image=pixels, texts=(self.text(example.texts, rng),)), rng)

    def text(self, texts: Sequence[str], rng: np.random.Generator) -> str:
        """The caption, keywords in random order, or the one before the others."""
        caption, words = texts[0], texts[1:]
        captioned = rng.random() < self.caption
        if not words or not self.keywords or (captioned and rng.random() < 0.5):
            return caption
        count = min(int(rng.integers(1, self.keywords + 1)), len(words))
        chosen = [words[i] for i in rng.permutation(len(words))[:count]]
        return " ".join([caption, *chosen] if captioned else chosen)

    def move(self, pixels: Pixels, background: tuple[int, int, int], rng: np.random.Generator) -> Pixels:
        """The picture scaled, turned, sheared and shifted, bilinear, by one random matrix."""
        height, width = pixels.shape[:2]
        scale, angle = rng.uniform(*self.zoom), np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        x, y = rng.uniform(-self.shear, self.shear, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = scale * turn @ np.array([[1, x], [y, 1]])
        middle = np.array([width - 1, height - 1]) / 2
        room = abs(scale - 1) * middle + 1  # a larger picture loses an edge, a smaller one stays inside
        shift = middle + rng.uniform(-room, room) - matrix @ middle
        return cv2.warpAffine(pixels, np.column_stack([matrix, shift]), (width, height), borderValue=background)

    def recolour(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """The picture with another saturation, and each channel stretched and shifted."""
        saturation = rng.uniform(*self.saturation)
        mix = saturation * np.eye(3) + (1 - saturation) * np.array([0.299, 0.587, 0.114])
        gain, shift = rng.uniform(1 - self.color, 1 + self.color, 3), rng.uniform(-0.25, 0.25, 3) * self.color
        matrix = np.column_stack([gain[:, None] * mix, 255 * shift + 127.5 * (1 - gain)])
        return cv2.transform(pixels, matrix)  # rounded, and cut off at 0 and 255


def get_source(split: str = "train") -> EmojiFiles:
    """What `vlmax.prepare` reads: `train` or `test`."""
    if split not in SPLITS:
        raise unknown_variant(split, tuple(SPLITS))
    return EmojiFiles(vendors=SPLITS[split], alone=split == "test", keywords=split == "train")


@dataclasses.dataclass(frozen=True)
class EmojiFiles:
    """The folder of emoji as it is: pictures in a zip file a vendor, captions and keywords in JSON lines.

    Attributes:
      vendors: whose pictures.
      alone: only pictures whose caption no other of them has and that are drawn unlike all before them.
      keywords: the keywords of the code point follow the caption as further texts.
      root: the folder.
      name: what the source is called.
    """

    vendors: tuple[str, ...]
    alone: bool
    keywords: bool
    root: str = "../shared/data/emoji"
    name: str = "emoji"

    def open(self) -> Reader:
        """Reads the tables; raises `InputError` where a file is missing."""
        table = Table(
            (join(self.root, "images.jsonl"),),
            self.name,
            image="zip://{codepoint}.png::{vendor}.zip",
            key="id",
            fields=("vendor", "codepoint", "group", "subgroup"),
            where=(("vendor", self.vendors),),
        ).open()
        lines = read_bytes(find((join(self.root, "codepoints.jsonl"),), self.name)[0].path).splitlines()
        words = {row["id"]: tuple(row["keywords"]) for row in map(json.loads, lines)} if self.keywords else {}
        places = range(len(table))
        if self.alone:
            rows = [table.row(i) for i in places]
            seen = collections.Counter(row["caption"] for row in rows)
            places = [i for i in places if seen[rows[i]["caption"]] == 1 and not rows[i].get("same_pixels_as")]
        return EmojiReader(table, tuple(places), words)


@dataclasses.dataclass(frozen=True)
class EmojiReader:
    """Random access to some rows of the table; `words` has the keywords by code point."""

    table: TableReader
    places: tuple[int, ...]
    words: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        """The picture with its caption, and its keywords where the source has them."""
        example = self.table[self.places[index]]
        return dataclasses.replace(example, texts=example.texts + self.words.get(str(example.fields["codepoint"]), ()))
