"""CapFilt: writes texts about a source's pictures, drops those that do not fit, and makes a data set of the rest.

python -m vlmax.bootstrap --source SPEC --captioner RUN --filter RUN --out DIR [--threshold 0.5] [--batch-size 64] ...
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from vlmax.bootstrapping.judging import NUCLEUS
from vlmax.data.example import Source
from vlmax.data.sources.open import FORMS, open_source
from vlmax.data.sources.options import Options
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError, exit_codes
from vlmax.sharding.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Command:
    """Makes a data set of any pictures with texts: one text more for each, and without those that do not fit.

    A captioner writes one text about each picture, a filter judges it and the ones that are there, and what it takes
    for a match goes into a TFDS data set of ArrayRecord files (BLIP, section 3.3). Stop it at any moment and run it
    again: it goes on where it was. Start it alike on every host of a pod; --out is then a folder that all of them see.

    The field `provenance` of a record has all its texts with origin, score and verdict; so has the folder provenance/,
    also for records that kept none. report-SPLIT.html shows figures and examples.
    """

    source: str
    """Where the records are; the forms are at the end."""
    captioner: Path
    """The directory of a run whose system writes: fine-tuned on captions."""
    filter: Path
    """The directory of a run whose system judges pairs: fine-tuned on retrieval."""
    out: Path
    """The data set's folder."""
    name: str | None = None
    """What the data set is called; by default as its folder."""
    split: str = "train"
    """What the split is called."""
    prompt: str | None = None
    """What the captioner goes on from; by default as in its own evaluation of captions."""
    threshold: float = 0.5
    """The least probability of a match with which a text is kept."""
    max_texts: int = 5
    """The most texts of a record that are judged; further ones are left out, and their number is told."""
    batch_size: int = 64
    """Pictures at once over all devices; what is drawn depends on it."""
    shard_records: int = 8192
    """Records of a file, in whole batches."""
    max_records: int | None = None
    """Reads only the first ones."""
    max_damaged: float = 0.1
    """The largest share of damaged records that is let pass; they are left out."""
    workers: int | None = None
    """Processes of each host that read and decode; by default one a core, and 0, one thread, for one core."""
    mesh: Mesh = Mesh()
    """How the devices are arranged."""
    reading: Annotated[Options, tyro.conf.OmitArgPrefixes] = Options()
    """How the source is read; of its records the new set keeps --fields."""
    settings: Annotated[Generation, tyro.conf.OmitArgPrefixes] = NUCLEUS
    """How texts are written; BLIP's nucleus sampling."""


def main(arguments: list[str] | None = None) -> None:
    """The front door; leaves with 2 where the input is wrong."""
    with exit_codes():
        description = f"{(Command.__doc__ or '').strip()}\n\nSources: {FORMS}"
        command = tyro.cli(Command, args=arguments, prog="python -m vlmax.bootstrap", description=description)
        from vlmax.host_memory import keep_freed_memory, only_cpus

        if only_cpus():
            keep_freed_memory()  # before JAX starts its threads
        from vlmax.training import distributed

        distributed.initialize()
        run(command)


def run(command: Command, source: Source | None = None) -> None:
    """Restores the two systems, makes the data set and prints what became of the texts.

    Args:
      command: what is asked.
      source: the records, instead of those that the command names.
    """
    import jax
    from flax import linen as nn

    from vlmax.bootstrapping.bootstrapping import Asked, bootstrap, sizes
    from vlmax.bootstrapping.judging import CaptionerAndFilter
    from vlmax.bootstrapping.progress import Progress, show
    from vlmax.bootstrapping.report import write_report
    from vlmax.data.splits import names
    from vlmax.evaluation.captioning import Captioning
    from vlmax.sharding.rules import rule_table
    from vlmax.training.restored import restore

    if not 0 <= command.threshold <= 1 or command.max_texts < 1:
        raise InputError(f"--threshold {command.threshold}, --max-texts {command.max_texts}: 0 to 1, and at least 1")
    name, split = names(command.out, command.name, command.split)
    source = _open(command) if source is None else source
    reader = source.open()
    records = len(reader) if command.max_records is None else min(command.max_records, len(reader))
    shards, ends = sizes(records, command.batch_size, command.shard_records)
    mesh = command.mesh.build()
    with jax.set_mesh(mesh), nn.logical_axis_rules(rule_table((), mesh)):
        captioner = restore(command.captioner, mesh)
        same = command.filter.resolve() == command.captioner.resolve()
        judge = captioner if same else restore(command.filter, mesh)
        if captioner.prompts is None:
            raise InputError(
                f"--captioner {command.captioner}: its experiment has no evaluation of captions (Captioning), which "
                "says how a prompt is put to it; add one to its field `evaluations`, and start it once more"
            )
        told = {**captioner.prompts, **({} if command.prompt is None else {"prompt": command.prompt})}
        captioning = Captioning(source, settings=command.settings, scores=(), **told)
        both = CaptionerAndFilter(mesh, captioner, judge, captioning, command.max_texts)
        asked = Asked(
            source=repr(source),
            records=records,
            name=name,
            split=split,
            shards=shards,
            decode=False,  # what was judged has been decoded
            captioner=f"{captioner.path.resolve()}, step {captioner.step}",
            filter=f"{judge.path.resolve()}, step {judge.step}",
            prompt=captioning.prompt,
            settings=repr(command.settings),
            threshold=command.threshold,
            texts=command.max_texts,
            batch_size=command.batch_size,
            seed=command.settings.seed,
            fields=" ".join(command.reading.fields or ()),
        )
        cores = os.cpu_count() or 1
        workers = (cores if cores > 1 else 0) if command.workers is None else command.workers
        with Progress(records) as progress:
            made = bootstrap(
                source,
                both,
                asked,
                ends,
                command.out,
                mesh,
                workers=workers,
                max_damaged=command.max_damaged,
                tick=progress.tick,
            )
        if made is not None:
            show(made, write_report(command.out, asked, made.damaged, reader))


def _open(command: Command) -> Source:
    """The source; of one that keeps only the fields it is asked for, --fields are asked."""
    options = command.reading.of(command.source)
    if not hasattr(open_source(command.source), "fields"):
        options.pop("fields", None)
    return open_source(command.source, **options)


if __name__ == "__main__":
    main()
