"""Finding files and reading byte ranges of them, on disk and in object stores alike."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Generic, TypeVar

import fsspec

from vlmax.errors import InputError

T = TypeVar("T")
_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when the source was opened.

    Attributes:
      path: absolute local path, or the URL in an object store.
      size: bytes.
      modified: when it was last written, in whatever form the store gives; only ever compared.
    """

    path: str
    size: int
    modified: str


class OpenFiles(Generic[T]):
    """At most `limit` things kept open by key, the one unused for longest let go first. Thread-safe.

    Pickles as empty, so that each process opens its own. What is let go is closed when its last user drops it.
    """

    def __init__(self, limit: int = 64):
        self._limit = limit
        self._held: collections.OrderedDict[Hashable, T] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is held under `key`, made by `make` where it is not there yet."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make()
        with self._lock:
            made = self._held.setdefault(key, made)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
        return made

    def drop(self, key: Hashable) -> None:
        """Lets go of what is held under `key`, if anything is."""
        with self._lock:
            self._held.pop(key, None)

    def __len__(self) -> int:
        return len(self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._limit,)


class Ranges:
    """Byte ranges of a list of files. Picklable; files are opened at the first read in each process."""

    def __init__(self, paths: Sequence[str], limit: int = 64):
        self.paths = tuple(paths)
        self._open: OpenFiles[Any] = OpenFiles(limit)

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset` of file number `file`; fewer where the file ends."""
        path = self.paths[file]
        if is_remote(path):
            return read_bytes(path, offset, size)
        handle = self._open.get(file, lambda: open(path, "rb", buffering=0))  # noqa: SIM115
        size = min(size, os.fstat(handle.fileno()).st_size - offset)  # pread makes room for all that is asked for
        parts = []
        while size > 0:  # one pread gives at most 2 GiB
            part = os.pread(handle.fileno(), size, offset)
            if not part:
                break
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def is_remote(path: str) -> bool:
    """Whether fsspec has to fetch `path`."""
    return "://" in path and not path.startswith("file://")


def local(path: str) -> str:
    """A local path made absolute, `~` and `file://` resolved; a URL as it is."""
    if is_remote(path):
        return path
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(root: str, path: str) -> str:
    """`path` under `root`, unless it is absolute or a URL itself."""
    if "://" in path or os.path.isabs(path):
        return local(path)
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else os.path.join(local(root), path)


def parent(path: str) -> str:
    """The folder that `path` is in."""
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(local(path))


def read_bytes(path: str, offset: int = 0, size: int | None = None, tries: int = 3) -> bytes:
    """A file's bytes, or a range of them; what an object store refuses is asked for again twice.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read.
    """
    if not is_remote(path):
        with open(local(path), "rb") as handle:
            handle.seek(offset)
            return handle.read(-1 if size is None else size)
    store, inner = fsspec.core.url_to_fs(path)
    for attempt in range(tries):
        try:
            return store.cat_file(inner, start=offset, end=None if size is None else offset + size)
        except FileNotFoundError:
            raise
        except OSError:
            if attempt + 1 == tries:
                raise
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def braces(path: str) -> list[str]:
    """`a-{00..02}.tar` and `{x,y}.tar` written out; the width of the first number is kept."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", path)
    if not match:
        return [path]
    first, last, words = match.groups()
    if words is not None:
        middle = words.split(",")
    else:
        middle = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [path[: match.start()] + m + rest for m in middle for rest in braces(path[match.end() :])]


def find(paths: str | Sequence[str], source: str, field: str = "paths") -> tuple[File, ...]:
    """The files that paths, globs and brace lists name, in order, each once, with sizes.

    Args:
      paths: one or several; `*`, `?`, `[...]` are globs (sorted), `{000..099}` and `{a,b}` lists.
      source: the source's name, for messages.
      field: the source's field that holds the paths, for messages.

    Raises:
      InputError: nothing is named, or one is missing, empty, a folder or unreadable.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    if not given or not all(given):
        raise wrong(source, field, f"{field} is empty ({paths!r})")
    named: dict[str, None] = {}
    for path in (p for g in given for p in braces(g)):
        for found in _glob(path, source, field) if glob.has_magic(path) else [local(path)]:
            named[found] = None
    if len(named) == 1:
        return (stat(next(iter(named)), source, field),)
    with ThreadPoolExecutor(16) as pool:
        return tuple(pool.map(lambda p: stat(p, source, field), named))


def stat(path: str, source: str, field: str) -> File:
    """The file at `path`; raises `InputError` where it is missing, empty, a folder or unreadable."""
    path = local(path)
    try:
        if is_remote(path):
            store, inner = fsspec.core.url_to_fs(path)
            info = store.info(inner)
            kind, size = info["type"], int(info["size"] or 0)
            modified = next((str(info[k]) for k in _STAMPS if info.get(k) is not None), "")
        else:
            entry = os.stat(path)
            kind = "directory" if os.path.isdir(path) else "file"
            size, modified = entry.st_size, str(entry.st_mtime_ns)
    except FileNotFoundError:
        raise wrong(source, field, f"{path} is missing") from None
    except (OSError, ImportError, ValueError) as error:
        raise wrong(source, field, f"{path} cannot be read: {error}") from None
    if kind == "directory":
        raise wrong(source, field, f"{path} is a folder, not a file")
    if size == 0:
        raise wrong(source, field, f"{path} is empty (0 bytes)")
    if not is_remote(path) and not os.access(path, os.R_OK):
        raise wrong(source, field, f"{path} may not be read (permissions)")
    return File(path, size, modified)


def open_file(path: str) -> IO[bytes]:
    """A file for reading from front to back, with jumps."""
    if not is_remote(path):
        return open(local(path), "rb")
    store, inner = fsspec.core.url_to_fs(path)
    return store.open(inner, "rb", block_size=8 << 20)


def exists(path: str) -> bool:
    """Whether there is a file or folder at `path`; raises `InputError` where its store cannot be asked."""
    if not is_remote(path):
        return os.path.exists(local(path))
    try:
        store, inner = fsspec.core.url_to_fs(path)
        return store.exists(inner)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{path} cannot be looked at: {error}") from None


def cache_folder() -> str:
    """Where indexes and copies go that cannot lie beside their files: `VLMAX_CACHE`, or ~/.cache/vlmax."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("VLMAX_CACHE") or os.path.join(base, "vlmax")


def wrong(source: str, field: str, problem: str) -> InputError:
    """The error of a source that cannot be opened: what is wrong, and which of its fields to change."""
    return InputError(
        f"opening the source {source!r}: {problem}; change `{field}` of that source in the experiment (or --source on "
        "the command line)"
    )


def _glob(pattern: str, source: str, field: str) -> list[str]:
    """The files that a pattern matches, sorted; raises `InputError` where there is none."""
    try:
        if is_remote(pattern):
            store, inner = fsspec.core.url_to_fs(pattern)
            scheme = pattern.split("://", 1)[0]
            found = [f"{scheme}://{p.removeprefix(f'{scheme}://').lstrip('/')}" for p in store.glob(inner)]
        else:
            found = glob.glob(local(pattern), recursive=True)
    except (OSError, ImportError, ValueError) as error:
        raise wrong(source, field, f"{pattern} cannot be listed: {error}") from None
    if not found:
        raise wrong(source, field, f"no file matches {pattern}")
    return sorted(found)
