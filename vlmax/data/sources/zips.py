"""One member of a zip file, by name, without a list of all members in memory."""

from __future__ import annotations

import struct
import zipfile
import zlib

import pyarrow as pa

from vlmax.data.example import BadRecord
from vlmax.data.sources.files import File, Ranges, open_file, stat
from vlmax.data.sources.index import open_index
from vlmax.errors import InputError

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("stored", pa.int64()),
        ("size", pa.int64()),
        ("method", pa.int32()),
        ("crc", pa.uint32()),
    ]
)
_HEADER = struct.Struct("<4s22xHH")  # the local header: signature, ..., lengths of the name and of the extra field


class Zip:
    """A zip archive on disk or in an object store; its directory is read once into a memory-mapped index by name.

    Raises:
      BadRecord: the archive is missing or no zip file: every record that refers to it is damaged.
    """

    def __init__(self, path: str):
        try:
            file = stat(path, "zip", "image")
            self._part = open_index((file,), "zip", SCHEMA, _index).part(0)
        except InputError as error:
            raise BadRecord(str(error).split(";")[0].removeprefix("source 'zip': ")) from None
        self._names = self._part.column("name")
        self._ranges = Ranges((file.path,))

    def read(self, name: str) -> bytes:
        """The bytes of a member; raises `BadRecord` where it is missing or damaged."""
        low = self._first(name)
        if low == len(self._names) or self._names[low].as_py() != name:
            raise BadRecord(f"missing member {name} of {self._ranges.paths[0]}")
        member = {c: v[0] for c, v in self._part.slice(low, 1).to_pydict().items()}
        header = self._ranges.read(0, member["offset"], _HEADER.size)
        if len(header) < _HEADER.size or header[:4] != b"PK\3\4":
            raise BadRecord(f"damaged header of member {name}")
        _, name_length, extra_length = _HEADER.unpack(header)
        start = member["offset"] + _HEADER.size + name_length + extra_length
        data = self._ranges.read(0, start, member["stored"])
        try:
            if member["method"] == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, member["size"] + 1)
        except zlib.error as error:
            raise BadRecord(f"damaged member {name}: {error}") from None
        if len(data) != member["size"] or zlib.crc32(data) != member["crc"]:
            raise BadRecord(f"damaged member {name}: its checksum is wrong")
        return data

    def names(self, folder: str) -> list[str]:
        """The members right in a folder (`train2014/`; `` or `/` for the archive itself), without its name."""
        prefix = folder.lstrip("/")
        first, last = self._first(prefix), self._first(prefix + chr(0x10FFFF))
        inside = self._names.slice(first, last - first).to_pylist()
        return [rest for name in inside if "/" not in (rest := name.removeprefix(prefix))]

    def _first(self, name: str) -> int:
        """The place of the first member whose name is not below this."""
        low, high = 0, len(self._names)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._names[middle].as_py() < name else (low, middle)
        return low


def _index(file: File) -> pa.RecordBatch:
    """The archive's directory, sorted by name (by code point, as Python compares)."""
    try:
        with open_file(file.path) as handle, zipfile.ZipFile(handle) as archive:
            infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename)
    except zipfile.BadZipFile as error:
        raise InputError(f"{file.path} is no zip file ({error})") from None
    if other := {i.compress_type for i in infos} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise InputError(f"{file.path} is compressed by method {sorted(other)}, which is neither stored nor deflated")
    columns = [
        [i.filename for i in infos],
        [i.header_offset for i in infos],
        [i.compress_size for i in infos],
        [i.file_size for i in infos],
        [i.compress_type for i in infos],
        [i.CRC for i in infos],
    ]
    arrays = [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
