"""METEOR and SPICE: programs for Java by their authors, which no file of this package replaces."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vlmax.data.example import Example
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation.scores.captions import Captions, Scored


@dataclasses.dataclass(frozen=True)
class Meteor:
    """`meteor`, of METEOR 1.5 (Denkowski and Lavie 2014), for English, normalised."""

    jar: str
    """`meteor-1.5.jar`, with its folder `data` beside it."""
    memory: str = "2G"
    """The most that Java takes."""

    def check(self) -> None:
        """Raises `InputError` where Java or the program is missing."""
        _check("meteor", self.jar)

    def reads(self, example: Example) -> None:
        """The texts are enough."""

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The score; raises `InputError` as `check` does, and `RunFailed` where the program gives no score."""
        self.check()
        return {"meteor": self.of_tokens(captions.tokens, captions.reference_tokens)}

    def of_tokens(self, written: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
        """The score of tokenized texts."""
        jar = Path(self.jar).resolve()
        command = ["java", f"-Xmx{self.memory}", "-Dfile.encoding=UTF-8", "-jar", str(jar)]
        with _dialogue([*command, "-", "-", "-stdio", "-l", "en", "-norm"], jar.parent) as program:
            statistics = []
            for text, texts in zip(written, references, strict=True):
                program.tell("SCORE", *texts, text.replace("|||", "").replace("  ", " "))
                statistics.append(program.answer())
            program.tell("EVAL", *statistics)
            each = np.array([float(program.answer()) for _ in statistics])
            return Scored(float(program.answer()), each)


@contextlib.contextmanager
def _dialogue(command: Sequence[str], folder: Path) -> Iterator[_Dialogue]:
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as said:
        program = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=said, encoding="utf-8")
        try:
            yield _Dialogue(program, said)
        finally:
            program.kill()
            program.communicate()


class _Dialogue(NamedTuple):
    """A program that is told lines of parts and answers in lines."""

    program: subprocess.Popen[str]
    said: IO[bytes]

    def tell(self, *parts: str) -> None:
        """Writes a line; whether it was read, the answer to it says."""
        assert self.program.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.program.stdin.write(" ||| ".join(parts) + "\n")
            self.program.stdin.flush()

    def answer(self) -> str:
        """The next line; raises `RunFailed` where none comes, with what the program said of it."""
        assert self.program.stdout is not None
        line = self.program.stdout.readline().strip()
        if not line:
            self.program.kill()
            self.program.wait()
            self.said.seek(0)
            words = self.said.read()[-500:].decode(errors="replace")
            raise RunFailed(f"scoring with METEOR: {self.program.args!r} gave no answer; it said: {words!r}")
        return line


@dataclasses.dataclass(frozen=True)
class Spice:
    """`spice`, of SPICE 1.0 (Anderson et al. 2016), the mean over images."""

    jar: str
    """`spice-1.0.jar`, with its folder `lib` beside it, and in that the models of CoreNLP 3.6.0."""
    memory: str = "8G"
    """The most that Java takes."""

    def check(self) -> None:
        """Raises `InputError` where Java, the program or its models are missing."""
        _check("spice", self.jar)
        library = Path(self.jar).resolve().parent / "lib"
        if not list(library.glob("stanford-corenlp-*-models.jar")):
            raise InputError(
                f"scoring with SPICE: {library} has no stanford-corenlp-3.6.0-models.jar; put it there (SPICE's own "
                "get_stanford_models.sh fetches it), or take Spice out of `scores`"
            )

    def reads(self, example: Example) -> None:
        """The texts are enough."""

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The score; raises `InputError` as `check` does, and `RunFailed` where the program gives no score."""
        self.check()
        jar = Path(self.jar).resolve()
        entries = [
            {"image_id": i, "test": text, "refs": list(texts)}
            for i, (text, texts) in enumerate(zip(captions.tokens, captions.reference_tokens, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "given.json"), Path(folder, "found.json")
            given.write_text(json.dumps(entries))
            os.mkdir(Path(folder, "cache"))
            options = ["-cache", str(Path(folder, "cache")), "-out", str(found), "-subset", "-silent"]
            command = ["java", f"-Xmx{self.memory}", "-jar", str(jar), str(given), *options]
            run = subprocess.run(command, cwd=jar.parent, capture_output=True, text=True, check=False)
            if run.returncode or not found.exists():
                raise RunFailed(f"scoring with SPICE: {jar} failed ({run.returncode}); it said: {run.stderr[-500:]!r}")
            told = json.loads(found.read_text(encoding="utf-8"))
        scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in told}
        each = np.array([float(np.nan if scores[i] is None else scores[i]) for i in range(len(entries))])
        return {"spice": Scored(float(each.mean()), each)}


def _check(field: str, jar: str) -> None:
    name = field.upper()
    if shutil.which("java") is None:
        raise InputError(
            f"scoring with {name}: it is a program for Java, and there is no `java` on this machine's PATH; install a "
            f"Java runtime, or take {field.capitalize()} out of `scores`"
        )
    if not Path(jar).is_file():
        raise InputError(f"scoring with {name}: there is no file {jar}; set {field.capitalize()}.jar to the program")
