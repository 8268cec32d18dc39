"""CapFilt on `shapes` with wrong texts: what the filter drops, and what training on the result brings.

    python -m benchmarks.capfilt --workdir runs/capfilt --config experiments/blip_vitb_pretrain.py:tiny

1. A captioner and filter is trained on `shapes` as the experiment says (or `--base` names the directory of such a run).
2. `vlmax.bootstrap` works through web texts of other scenes of that world, of which `--wrong` are of another picture.
3. The experiment is trained anew, from scratch and with the same steps, on the noisy texts and on the new set.

It prints, and writes into WORKDIR/capfilt.json: which share of the wrong texts was dropped and of the right ones, how
many of the written texts are true before and after the filter, and the scores of both trainings on pictures that
neither saw.
Every stage goes on where it was stopped; one that is finished is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WEB_SEED = 7  # another world of scenes than the captioner was trained on, and than is tested


def main() -> None:
    """Runs the stages that are missing and prints the figures; told to leave, it saves and leaves with 75."""
    flags = _flags()
    from vlmax.errors import exit_codes
    from vlmax.host_memory import keep_freed_memory, only_cpus

    with exit_codes():
        if only_cpus():
            keep_freed_memory()
        _run(flags)


def _run(flags: argparse.Namespace) -> None:
    from vlmax.command_line import load_experiment
    from vlmax.data.sources.shapes_noisy import NoisyShapes
    from vlmax.data.sources.tfds import TFDS
    from vlmax.training.loop import train

    base = load_experiment(flags.config)
    clean = base.data.sources[0].source
    web = NoisyShapes(dataclasses.replace(clean, count=flags.records, seed=WEB_SEED), flags.wrong)
    if flags.base is None:
        train(base, flags.workdir / "base")
    _bootstrap(flags, web, base)
    found: dict[str, Any] = _texts(flags, web)
    kept = TFDS(str(flags.workdir / "set"), fields=("group",), name="bootstrapped")
    for name, source in {"noisy": web, "bootstrapped": kept}.items():
        experiment = _on(base, source, f"{base.name}_{name}", flags.steps)
        found[name] = train(experiment, flags.workdir / name)
    (flags.workdir / "capfilt.json").write_text(json.dumps(found, indent=2) + "\n")
    _show(found)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/capfilt"))
    parser.add_argument("--config", default="experiments/blip_vitb_pretrain.py:tiny", help="what is trained")
    parser.add_argument("--base", type=Path, help="a finished run that writes and judges, instead of training one")
    parser.add_argument("--records", type=int, default=20_000, help="pictures with web texts")
    parser.add_argument("--wrong", type=float, default=0.4, help="share of the web texts that are of another scene")
    parser.add_argument("--steps", type=int, help="of the trainings on web texts; by default the experiment's")
    parser.add_argument("--threshold", type=float, default=0.5, help="the least probability of a text that is kept")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures judged at once")
    return parser.parse_args()


def _bootstrap(flags: argparse.Namespace, web: Any, base: Any) -> None:
    from vlmax.bootstrap import Command, run
    from vlmax.bootstrapping.judging import NUCLEUS
    from vlmax.data.sources.options import Options
    from vlmax.evaluation.captioning import Captioning

    longest = next(e.settings.max_new_tokens for e in base.evaluations if isinstance(e, Captioning))
    both = flags.workdir / "base" if flags.base is None else flags.base
    run(
        Command(
            source=web.name,
            captioner=both,
            filter=both,
            out=flags.workdir / "set",
            name="bootstrapped",
            threshold=flags.threshold,
            max_texts=1,
            reading=Options(fields=("group", "wrong")),
            batch_size=flags.batch_size,
            shard_records=2048,
            workers=0,
            settings=dataclasses.replace(NUCLEUS, min_new_tokens=0, max_new_tokens=longest),
        ),
        web,
    )


def _on(base: Any, source: Any, name: str, steps: int | None) -> Any:
    """The experiment with other texts; the same steps, schedule and evaluations."""
    from vlmax.data.pipeline import Weighted

    data = dataclasses.replace(base.data, sources=(Weighted(source),))
    return dataclasses.replace(base, name=name, data=data, steps=base.steps if steps is None else steps)


def _texts(flags: argparse.Namespace, web: Any) -> dict[str, Any]:
    """What became of the texts, held against the truth about each."""
    from vlmax.data.sources.shapes_truth import is_true

    counts = {"wrong": [0, 0], "right": [0, 0], "written_true": [0, 0], "written_kept_true": [0, 0]}
    reader = web.open()
    for record in _provenance(flags.workdir / "set"):
        fields = reader[record["index"]].fields
        for text in record["texts"]:
            if text["from"] == "web":
                count = counts["wrong" if fields["wrong"] else "right"]
                count[0] += not text["kept"]
                count[1] += 1
                continue
            true = is_true(text["text"], fields["scene"])
            for name in ("written_true", "written_kept_true")[: 1 + text["kept"]]:
                counts[name][0] += true
                counts[name][1] += 1
    shares = {name: part / max(of, 1) for name, (part, of) in counts.items()}
    return {
        "wrong_dropped": shares["wrong"],
        "right_dropped": shares["right"],
        "written_true": shares["written_true"],
        "written_kept_true": shares["written_kept_true"],
        "texts": {name: of for name, (_, of) in counts.items()},
    }


def _provenance(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "provenance").glob("train-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    told = {
        "wrong web texts dropped": "wrong_dropped",
        "right web texts dropped": "right_dropped",
        "written texts that are true": "written_true",
        "of those that the filter kept": "written_kept_true",
    }
    console, table = Console(), Table(title="texts")
    table.add_column("share")
    table.add_column("value", justify="right")
    for what, name in told.items():
        table.add_row(what, f"{found[name]:.4f}")
    console.print(table)
    table = Table(title="training anew")
    for column in ("score", "noisy", "bootstrapped"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name in sorted(found["noisy"]):
        table.add_row(name, *(f"{found[which][name]:.4f}" for which in ("noisy", "bootstrapped")))
    console.print(table)


if __name__ == "__main__":
    main()
