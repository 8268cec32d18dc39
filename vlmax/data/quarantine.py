"""`quarantine.jsonl`: every damaged record with its source, key and reason, once; and the limit that stops a run.

Each process appends to its own file, process 0 to `quarantine.jsonl` itself and process p to `quarantine-<p>.jsonl`, so
that no two write to one file (appends from several hosts are not atomic on network file systems). Process 0 gathers
the others' lines into `quarantine.jsonl` when it starts and whenever `gather` is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vlmax.data.batches import BatchInfo, Damaged
from vlmax.errors import InputError

FILE = "quarantine.jsonl"


class Quarantine:
    """Writes damaged records down and counts them.

    Args:
      directory: the run's directory.
      limit: largest share of damaged records among those read that a run goes on with.
      minimum: records to read before the share is judged.
      process: this process's number.
    """

    def __init__(self, directory: Path, limit: float, minimum: int = 1000, process: int = 0):
        self.directory, self.limit, self.minimum, self.process = directory, limit, minimum, process
        self.path = directory / (FILE if process == 0 else f"quarantine-{process}.jsonl")
        self.read = self.damaged = 0
        self._written = {(d.source, d.key) for d in lines(self.path)}
        self.gather()

    def add(self, info: BatchInfo) -> int:
        """Writes the damaged records of a batch that are new, and returns how many were.

        Raises:
          InputError: the share of damaged records is above the limit.
        """
        new = self._append(info.damaged)
        self.damaged += len(info.damaged)
        self.read += len(info.damaged) + sum(key is not None for key in info.keys)
        if self.read >= self.minimum and self.damaged > self.limit * self.read:
            last = info.damaged[-1] if info.damaged else None
            example = f", the last {last.key!r} of {last.source!r} because {last.reason}" if last else ""
            raise InputError(
                f"reading data: {self.damaged} of {self.read} records are damaged{example}; that is more than "
                f"data.quarantine_limit={self.limit:g} allows; {self.path} lists them; mend the source or raise it"
            )
        return new

    def gather(self) -> None:
        """On process 0, takes over the lines of the other processes' files; elsewhere nothing."""
        if self.process == 0:
            for path in sorted(self.directory.glob("quarantine-*.jsonl")):
                self._append(lines(path))

    def _append(self, damaged: Iterable[Damaged]) -> int:
        new = []
        for record in damaged:
            if (record.source, record.key) not in self._written:
                self._written.add((record.source, record.key))
                new.append(json.dumps({"source": record.source, "key": record.key, "reason": record.reason}) + "\n")
        if new:
            start = "\n" if _ends_in_the_middle(self.path) else ""
            with self.path.open("a", encoding="utf-8") as file:
                file.write(start + "".join(new))
        return len(new)


def lines(path: Path) -> list[Damaged]:
    """The records of a quarantine file; [] where there is none. A half-written line (a killed process) is no record."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found.append(Damaged(record["source"], record["key"], record["reason"]))
    return found


def _ends_in_the_middle(path: Path) -> bool:
    """Whether a killed process left the file without a newline at its end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
