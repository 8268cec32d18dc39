"""Zero-shot classification: the class whose prompts lie nearest to the picture (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from vlmax.data.example import BadRecord, Example, Feature, Features, Preprocess, Reader, Source
from vlmax.errors import InputError, nearest
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import first
from vlmax.evaluation.ranking import ranks, recall
from vlmax.systems.system import Embeds


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Scores `top1` and `top5` (0 to 1), and `examples`, how many pictures were scored.

    A class is the mean of its prompts' normalised features, normalised again; a picture counts by its class's rank.
    Classes with exactly equal scores stand in random order and the expected share is given (`ranking.recall`).
    """

    source: Source
    """Pictures with a label."""
    name: str = "zero_shot"
    """Names the scores: `eval/<name>/top1`."""
    label: str = "label"
    """The field of an example that holds its class: a number that counts classes from 0, or a text of `labels`."""
    class_names: tuple[str, ...] = ()
    """What the prompts call each class; empty for the labels, with `-` and `_` read as spaces."""
    labels: tuple[str, ...] = ()
    """The texts that stand for the classes in the source, in the same order; empty for `class_names` itself, or, where
    both are empty, for every text that occurs in the source, sorted (each record is then read once more)."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts, each with one `{}` for the class name."""
    batch_size: int = 256
    """Pictures, and prompts, embedded at once over all devices."""
    limit: int | None = None
    """Only the first so many examples; None for all."""

    def needs(self) -> type:
        """A system with features of images and texts."""
        return Embeds

    def check(self, mesh: Mesh) -> None:
        """Opens the source; raises `InputError` for templates, class names or sizes that do not fit."""
        where = f"evaluation {self.name!r}"
        features.check_batch_size(self.name, self.batch_size, mesh)
        self._class_names(self.labels or self.class_names, where)
        first(self.source, self.limit, where).open()

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` for labels, templates or sizes that do not fit."""
        features.check_batch_size(self.name, self.batch_size, context.mesh)
        where = f"evaluation {self.name!r}"
        source = first(self.source, self.limit, where)
        labels = self.labels or self.class_names or _labels_of(source.open(), self.label, where)
        names = self._class_names(labels, where)
        weights = features.class_features(context, names, self.templates, self.batch_size)

        def embed(batch: features.Arrays) -> features.Arrays:
            return {"image": context.embed_images(batch["image"]), "label": batch["label"]}

        labelled = LabelledImage(context.image, self.label, labels, where)
        found = features.source_features(context, self.name, source, labelled, self.batch_size, embed)
        features.warn_not_finite(context, self.name, images=found["image"], classes=weights)
        above, tied = ranks(found["image"], found["label"], weights, np.arange(len(labels)), context.mesh)
        scores = {"top1": recall(above, tied, 1), "top5": recall(above, tied, 5), "examples": float(len(above))}
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}

    def _class_names(self, labels: tuple[str, ...], where: str) -> tuple[str, ...]:
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise InputError(
                f"{where}: each template needs one {{}} for the class name, unlike {wrong or 'none at all'}"
            )
        if self.class_names and len(self.class_names) != len(labels):
            raise InputError(f"{where}: {len(self.class_names)} class_names for {len(labels)} labels; give each a name")
        return self.class_names or tuple(label.replace("-", " ").replace("_", " ") for label in labels)


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """A picture to classify: `image`, and `label`, int32, an index into `labels`."""

    image: Preprocess
    label: str
    labels: tuple[str, ...]
    where: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """Raises `InputError` where the label is none of the classes, `BadRecord` where the picture is damaged."""
        index = self._index(_label(example, self.label, self.where), example.key)
        return {"image": self.image(example, rng)["image"], "label": np.asarray(index, np.int32)}

    def _index(self, label: str | int, key: str) -> int:
        if isinstance(label, int) and 0 <= label < len(self.labels):
            return label
        if isinstance(label, str) and self.labels.count(label) == 1:
            return self.labels.index(label)
        twice = self.labels.count(str(label)) > 1
        how = "more than one class; give `labels` apart from `class_names`" if twice else "none of the classes"
        hint = nearest(label, self.labels) if isinstance(label, str) else f"numbers go from 0 to {len(self.labels) - 1}"
        raise InputError(f"{self.where}: example {key!r} has {self.label} = {label!r}, which is {how}; {hint}")

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        return {"image": self.image.features()["image"], "label": Feature((), "int32")}


def _label(example: Example, field: str, where: str) -> str | int:
    if field not in example.fields:
        raise InputError(
            f"{where}: example {example.key!r} has no field {field!r}, which its `label` names; "
            f"{nearest(field, example.fields)}"
        )
    value = example.fields[field]
    if isinstance(value, np.integer | np.str_):
        value = value.item()
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{where}: example {example.key!r} has {field} = {value!r}; a label is a text or an integer")
    return value


def _labels_of(reader: Reader, field: str, where: str) -> tuple[str, ...]:
    found: set[str] = set()
    for i in range(len(reader)):
        try:
            label = _label(reader[i], field, where)
        except BadRecord:
            continue  # it is counted and told when the pictures are read
        if not isinstance(label, str):
            raise InputError(f"{where}: the field {field!r} holds numbers, which name no class; give its class_names")
        found.add(label)
    return tuple(sorted(found))
