"""Errors a person can act on, and the exit codes that other programs rely on.

An `InputError` says what was being done, the value that was wrong, what would be right and where to
change it. Front doors print it without a traceback and leave with `EXIT_INPUT`.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_RESTART = 75  # saved, and asks to be started again (EX_TEMPFAIL)


class InputError(ValueError):
    """The run cannot start or go on because of something the user gave; the message says what to change."""


class RunFailed(Exception):
    """The run went wrong by itself, through no field that the user gave; the message says how and what can be done."""


class RestartRequested(Exception):
    """The state is saved and the process leaves so that the platform starts it again."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`did you mean 'a', 'b'?`, or the known names when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known) if known else "none is known"


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the errors of a front door into its exit code and a message without a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except RestartRequested as request:
        print(f"restart: {request}", file=sys.stderr)
        sys.exit(EXIT_RESTART)
