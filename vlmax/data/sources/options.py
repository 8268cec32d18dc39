"""What a command line says of how a source's records are read."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmax.data.sources.open import open_source
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of the source that are set; None leaves each as the source has it by itself.

    Attributes:
      image: what the image is: endings (tar), a template over columns like {file} or zip://{file}::images.zip (table),
        a column (Parquet), a feature (TFDS, ArrayRecord); `none` for text only.
      root: what the template's paths are relative to, a folder or URL (table); by default the table's folder.
      texts: endings or json/KEY (tar), columns, or features.
      key: the column or feature that names a record; `none` for its place.
      fields: further columns, JSON keys or features to keep; * for all.
      where: keeps only rows with one of the values, COLUMN=VALUE,VALUE ... (table).
    """

    image: tuple[str, ...] | None = None
    root: str | None = None
    texts: tuple[str, ...] | None = None
    key: str | None = None
    fields: tuple[str, ...] | None = None
    where: tuple[str, ...] | None = None

    def of(self, spec: str) -> dict[str, Any]:
        """The fields that are set, each as the source of `open_source(spec)` has it.

        Raises:
          InputError: several images for a source that takes one, or a `where` that is no condition.
        """
        options: dict[str, Any] = {n: v for n in ("root", "texts", "fields") if (v := getattr(self, n)) is not None}
        if self.key is not None:
            options["key"] = None if self.key == "none" else self.key
        if self.image is not None:
            many = isinstance(getattr(open_source(spec), "image", None), tuple)
            given = () if self.image == ("none",) else self.image
            if not many and len(given) > 1:
                raise InputError(f"--image {' '.join(given)}: {spec} takes one")
            options["image"] = given if many else next(iter(given), None)
        if self.where is not None:
            pairs = [w.partition("=") for w in self.where]
            if not all(equals for _, equals, _ in pairs):
                raise InputError(f"--where {' '.join(self.where)}: write COLUMN=VALUE or COLUMN=VALUE,VALUE")
            options["where"] = tuple((column, tuple(values.split(","))) for column, _, values in pairs)
        return options
