"""Writes tests/golden/tokenizers.npz: what the reference tokenizers make of thousands of strings.

python -m tests.parity.make_golden_tokenizers        (needs requirements-parity.txt)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.data.strings import digest_of_ids, digest_of_strings, varied
from tests.parity.make_golden import GOLDEN
from tests.parity.reference_tokenizers import clip_is_certain, references


def main() -> None:
    """An array a family, a digest of the ids of each string; 0 for CLIP where they depend on the version of Unicode."""
    strings = varied()
    with tempfile.TemporaryDirectory() as folder:
        digests = {
            name: np.array([digest_of_ids(encode(text)) for text in strings], np.uint16)
            for name, encode in references(Path(folder)).items()
        }
    digests["clip"] *= np.array([clip_is_certain(text) for text in strings], np.uint16)
    np.savez_compressed(GOLDEN / "tokenizers.npz", strings=digest_of_strings(strings), **digests)


if __name__ == "__main__":
    main()
