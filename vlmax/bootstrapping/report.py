"""What bootstrapping did: how many texts of each origin were dropped, how they scored, and a page of examples."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlmax.bootstrapping.bootstrapping import Asked
from vlmax.bootstrapping.records import ORIGINS, provenance_path
from vlmax.data.decode import decode
from vlmax.data.example import BadRecord, Reader
from vlmax.data.order import hashed
from vlmax.data.shard_writer import write_whole

BINS = 20
SHOWN = 24  # examples of each kind
_PIXELS = 192  # of the longer side of a picture on the page
_STYLE = (
    "body{font:15px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}td,th{padding:.2em .8em;"
    "text-align:right}th:first-child,td:first-child{text-align:left}.pictures{display:flex;flex-wrap:wrap;gap:1em}"
    "figure{margin:0;width:15em}img{max-width:12em;image-rendering:auto}p{margin:.2em 0}.dropped{color:#a00}"
    ".bar{display:inline-block;background:#48c;height:.7em}small{color:#666}"
)


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of one origin.

    Attributes:
      texts: how many were looked at.
      dropped: how many of them are no texts of the new set.
      empty: how many of those have no words.
      scores: how many scored in each of 20 equal parts of 0 to 1.
    """

    texts: int
    dropped: int
    empty: int
    scores: tuple[int, ...]

    @property
    def noise_ratio(self) -> float:
        """The share that was dropped (BLIP, table 2)."""
        return self.dropped / max(self.texts, 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the records of a split.

    Attributes:
      records: how many were judged.
      without: how many of them kept no text, and are not in the new set.
      damaged: how many could not be read; quarantine.jsonl has them.
      not_judged: texts beyond the first so many of their record, which are left out.
      origins: the texts by origin.
    """

    records: int
    without: int
    damaged: int
    not_judged: int
    origins: dict[str, Texts]

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        origins = {n: dataclasses.asdict(t) | {"noise_ratio": t.noise_ratio} for n, t in self.origins.items()}
        return dataclasses.asdict(self) | {"origins": origins}


def provenance(out: Path, asked: Asked) -> Iterator[dict[str, Any]]:
    """The verdicts on all records of a split, in order: `key`, `index`, `texts` (see `records.Judged.told`)."""
    for shard in range(asked.shards):
        with provenance_path(out, asked.split, shard, asked.shards).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def count(out: Path, asked: Asked, damaged: int) -> Report:
    """The figures of a split that is written."""
    counts: dict[str, list[int]] = {origin: [0, 0, 0] for origin in ORIGINS}
    scores = {origin: np.zeros(BINS, np.int64) for origin in counts}
    records = without = beyond = 0
    for record in provenance(out, asked):
        records += 1
        without += not any(text["kept"] for text in record["texts"])
        beyond += record.get("not_judged", 0)
        for text in record["texts"]:
            found = counts[text["from"]]
            found[0] += 1
            found[1] += not text["kept"]
            found[2] += text["score"] is None
            if text["score"] is not None:
                scores[text["from"]][min(int(text["score"] * BINS), BINS - 1)] += 1
    origins = {
        o: Texts(texts, dropped, empty, tuple(scores[o].tolist())) for o, (texts, dropped, empty) in counts.items()
    }
    return Report(records, without, damaged, beyond, origins)


def write_report(out: Path, asked: Asked, damaged: int, reader: Reader) -> Report:
    """Writes `report-<split>.json` and `report-<split>.html` into the data set's folder; gives the figures."""
    report = count(out, asked, damaged)
    told = {"asked": dataclasses.asdict(asked), **report.as_json()}
    write_whole(out / f"report-{asked.split}.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    write_whole(out / f"report-{asked.split}.html", _page(out, asked, report, reader))
    return report


def _page(out: Path, asked: Asked, report: Report, reader: Reader) -> str:
    title = html.escape(f"{asked.name}: bootstrapped texts of {asked.split}")
    rows = [
        f"<tr><td>{origin}</td><td>{t.texts:,}</td><td>{t.texts - t.dropped:,}</td><td>{t.dropped:,}</td>"
        f"<td>{t.noise_ratio:.1%}</td><td>{t.empty:,}</td></tr>"
        for origin, t in report.origins.items()
    ]
    asked_rows = [
        f"<tr><td>{html.escape(name)}</td><td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for name, value in dataclasses.asdict(asked).items()
    ]
    chosen = _chosen(out, asked)
    examples = [
        f"<h2>{html.escape(what)}</h2><div class=pictures>{''.join(_figure(r, reader) for r in records)}</div>"
        for what, records in chosen.items()
        if records
    ]
    return (
        f"<!doctype html><html><head><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1><p>{report.records:,} records judged; {report.without:,} kept no text and are left out; "
        f"{report.damaged:,} were damaged; {report.not_judged:,} texts were not judged.</p>"
        "<table><tr><th>origin</th><th>texts</th><th>kept</th><th>dropped</th><th>noise ratio</th><th>empty</th></tr>"
        f"{''.join(rows)}</table>{''.join(_histogram(n, t.scores) for n, t in report.origins.items())}"
        f"{''.join(examples)}<h2>How it was made</h2><table>{''.join(asked_rows)}</table></body></html>\n"
    )


def _chosen(out: Path, asked: Asked) -> dict[str, list[dict[str, Any]]]:
    """Examples: some by lot, and those whose scores lie closest to the threshold."""
    lot: list[tuple[float, int, dict[str, Any]]] = []
    close: list[tuple[float, int, dict[str, Any]]] = []
    for record in provenance(out, asked):
        index = record["index"]
        near = [abs(t["score"] - asked.threshold) for t in record["texts"] if t["score"] is not None]
        lot.append((hashed(asked.seed, 1 << 64, index), index, record))
        close.append((min(near, default=2.0), index, record))
        if len(lot) >= 64 * SHOWN:
            lot, close = _least(lot), _least(close)
    first, second = _least(lot), _least(close)
    return {"Drawn by lot": [r for *_, r in first], "Closest to the threshold": [r for *_, r in second]}


def _least(entries: list[tuple[float, int, dict[str, Any]]]) -> list[tuple[float, int, dict[str, Any]]]:
    return sorted(entries, key=lambda entry: entry[:2])[:SHOWN]


def _figure(record: dict[str, Any], reader: Reader) -> str:
    try:
        image = reader[record["index"]].image
        assert image is not None
        picture = f"<img src='data:image/jpeg;base64,{_jpeg(decode(image))}' alt=''>"
    except BadRecord as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    texts = "".join(map(_line, record["texts"]))
    return f"<figure>{picture}<figcaption><small>{html.escape(record['key'])}</small>{texts}</figcaption></figure>"


def _line(text: dict[str, Any]) -> str:
    score = "" if text["score"] is None else f", {text['score']:.3f}"
    kept = "kept" if text["kept"] else "dropped"
    return f"<p class={kept}>{html.escape(text['text'])} <small>{text['from']}{score}, {kept}</small></p>"


def _jpeg(pixels: np.ndarray) -> str:
    scale = min(1.0, _PIXELS / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    return base64.b64encode(cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]))[1].tobytes()).decode()


def _histogram(origin: str, scores: Sequence[int]) -> str:
    most = max(1, *scores)
    bars = "".join(
        f"<tr><td>{i / BINS:.2f}</td><td style='text-align:left'><span class=bar style='width:{20 * n / most:.2f}em'>"
        f"</span> <small>{n:,}</small></td></tr>"
        for i, n in enumerate(scores)
    )
    return f"<h2>Scores: {origin}</h2><table>{bars}</table>"
