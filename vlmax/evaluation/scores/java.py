"""METEOR and SPICE: programs for Java by their authors, which no file of this package replaces."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        command = ["java", f"-Xmx{self.memory}", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            ) as program,
        ):
            assert program.stdin is not None and program.stdout is not None

            def answer() -> str:
                assert program.stdout is not None
                line = program.stdout.readline().strip()
                if not line:
                    program.kill()
                    said.seek(0)
                    raise RunFailed(f"scoring with METEOR: {jar} gave no answer; it said: {said.read()[-500:]!r}")
                return line

            def tell(*parts: str) -> None:
                assert program.stdin is not None
                try:
                    program.stdin.write(" ||| ".join(parts) + "\n")
                    program.stdin.flush()
                except BrokenPipeError:
                    answer()

            statistics = []
            for text, texts in zip(written, references, strict=True):
                tell("SCORE", *texts, text.replace("|||", "").replace("  ", " "))
                statistics.append(answer())
            tell("EVAL", *statistics)
            each = np.array([float(answer()) for _ in statistics])
            whole = float(answer())
            program.stdin.close()
        return Scored(whole, each)


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
            scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(found.read_text())}
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
