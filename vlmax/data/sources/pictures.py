"""Pictures by their paths: in folders, object stores and zip files; and which of them are there."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import fsspec

from vlmax.data.example import BadRecord
from vlmax.data.sources.files import OpenFiles, is_remote, join, local, read_bytes
from vlmax.data.sources.zips import Zip

ZIP = "zip://"

# What the path of a picture can be guilty of; any other error of the system is not the record's fault.
_PATH_ERRORS = {
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


class Pictures:
    """Reads pictures; picklable, with a bounded number of zip files open in each process.

    Args:
      root: what paths are relative to, a folder or a URL.
    """

    def __init__(self, root: str):
        self._root = root
        self._zips: OpenFiles[Zip] = OpenFiles(64)

    def read(self, path: str) -> bytes:
        """The bytes at a path, or of `zip://MEMBER::ARCHIVE.zip`; raises `BadRecord` where they cannot be read."""
        if path.startswith(ZIP):
            member, found, _ = path.removeprefix(ZIP).partition("::")
            if not found:
                raise BadRecord(f"{path} does not say which zip file: zip://MEMBER::ARCHIVE.zip")
            return self.archive(path).read(member)
        path = join(self._root, path)
        try:
            return read_bytes(path)
        except FileNotFoundError:
            raise BadRecord(f"missing picture {path}") from None
        except OSError as error:
            if error.errno not in _PATH_ERRORS:
                raise
            raise BadRecord(f"picture {path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise BadRecord(f"picture {path!r} cannot be read: {error}") from None

    def archive(self, path: str) -> Zip:
        """The zip file of a path `zip://MEMBER::ARCHIVE.zip`; raises `BadRecord` where it is none."""
        archive = join(self._root, path.partition("::")[2])
        return self._zips.get(archive, lambda: Zip(archive))


class Places:
    """Which of several places has a picture: each folder is listed once, when it is first asked for.

    Args:
      places: folders, on disk or in an object store, and folders in zip files: `zip://FOLDER::ARCHIVE.zip`.

    Attributes:
      places: the same with absolute paths.
    """

    def __init__(self, places: Sequence[str]):
        self.places = tuple(_absolute(place) for place in places)
        self._pictures = Pictures("")
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, path: str) -> str | None:
        """The whole path of a picture in the first place that has it; None where none has."""
        for place in self.places:
            whole = _under(place, path)
            folder, _, name = whole.partition("::")[0].rpartition("/")
            listed = f"{folder}/::{whole.partition('::')[2]}" if whole.startswith(ZIP) else folder
            if listed not in self._listed:
                self._listed[listed] = frozenset(self._names(listed))
            if name in self._listed[listed]:
                return whole
        return None

    def _names(self, folder: str) -> list[str]:
        """The names in a folder; none where there is no such folder or archive."""
        if folder.startswith(ZIP):
            try:
                return self._pictures.archive(folder).names(folder.removeprefix(ZIP).partition("::")[0])
            except BadRecord:
                return []
        try:
            if not is_remote(folder):
                return os.listdir(folder or "/")
            store, inner = fsspec.core.url_to_fs(folder)
            return [found.rstrip("/").rpartition("/")[2] for found in store.ls(inner, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _absolute(place: str) -> str:
    if place.startswith(ZIP):
        folder, _, archive = place.removeprefix(ZIP).partition("::")
        return f"{ZIP}{folder.strip('/')}::{local(archive)}"
    return local(place)


def _under(place: str, path: str) -> str:
    """The path of a picture in a place."""
    if place.startswith(ZIP):
        folder, _, archive = place.removeprefix(ZIP).partition("::")
        return f"{ZIP}{f'{folder}/{path}'.lstrip('/')}::{archive}"
    return join(place, path)
