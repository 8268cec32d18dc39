"""Converts a checkpoint: a foreign one into vlmax's folder, or a model of vlmax's into a foreign one.

python -m vlmax.convert --from HUGGINGFACE_DIR --to DIR                         in
python -m vlmax.convert --from DIR --to EXPORTED --format huggingface           out, opens in transformers as it is
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmax.errors import exit_codes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        prog="python -m vlmax.convert", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    flags.add_argument(
        "--from", dest="source", required=True, metavar="PATH", help="a folder, or a file of CLIP's or BLIP's authors"
    )
    flags.add_argument("--to", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    flags.add_argument(
        "--format", default="vlmax", help="vlmax (the default), huggingface, or the name of a layout such as open_clip"
    )
    flags.add_argument("--family", help="open_clip, openai, blip_pth or lavis, where it does not say what it holds")
    flags.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of what is written; else as it was")
    flags.add_argument("--shard-gb", type=float, default=5.0, help="largest file of a foreign checkpoint, in GB")
    return flags


def main(arguments: list[str] | None = None) -> None:
    """The front door."""
    flags = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    with exit_codes():
        import jax

        from vlmax.interop.converting import convert

        jax.config.update("jax_platforms", "cpu")  # nothing is computed, and a model may be larger than one device
        for line in convert(flags.source, flags.to, flags.format, flags.family, flags.dtype, int(flags.shard_gb * 1e9)):
            print(line)


if __name__ == "__main__":
    main()
