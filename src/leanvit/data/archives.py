"""Zip and tar archives of images, read in place: nothing is unpacked.

The images are those of a folder with the same content, in the same order and of the same classes.
"""

import os
import struct
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanvit.core.kept import Arrays
from leanvit.data.cache import remember
from leanvit.data.members import Files, MemberSource, arrange, image_path
from leanvit.data.names import IMAGE_SUFFIXES, OTHER_SUFFIXES, Names, passed_over, suffix
from leanvit.data.sources import LARGEST, About, Source, is_file, is_folder, read_list

FOLDERS = "its folders"
"""Where the classes of an archive come from."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""How gzip, bzip2, xz, zstd and lz4 begin."""


TAR_ENDINGS = (".tar", ".tgz", ".tbz2", ".txz")
"""Endings of tar archives; the compressed ones are refused."""


def require_file(file: Path) -> None:
    """Raise ValueError unless there is such a file."""
    if not is_file(file):
        what = "is not a file" if is_folder(file) else "does not exist"
        raise ValueError(f"The data file {str(file)!r} {what}.")


def no_image(where: str, notes: Sequence[str] = ()) -> ValueError:
    """Return (not raise) the error for images that are not there."""
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    return ValueError(
        " ".join([f"There is no image in {where}; known endings: {endings}.", *notes])
    )


def _index(
    kind: str, file: Path, entries: Iterable["ZipEntry | TarEntry"], notes: list[str]
) -> tuple[About, Names, NDArray[np.int64]]:
    """Return what an archive is, the paths of its images in their order, and where each lies.

    Of two members of one path the later counts. notes: what is added to as entries are read.
    Raises ValueError if there is no image.
    """
    what = f"{kind} {str(file)!r}"

    def find() -> tuple[Arrays, int]:
        found, places, others = Names(), array("q"), Names()
        for name, *place in entries:
            if path := image_path(name):
                found.add(path)
                places.extend((0, *place))
            elif image_path(name, OTHER_SUFFIXES):
                others.add(suffix(name))
        if not len(found):
            raise no_image(f"the {what}", notes)
        paths, kept = Names(), array("q")
        for number in found.order():
            if kept and found[number] == found[kept[-1]]:
                kept[-1] = number
                continue
            kept.append(number)
            paths.add(found[number])
        table = np.frombuffer(places, dtype=np.int64).reshape(len(found), -1)[kept]
        return [table, *paths.arrays(), *others.arrays()], 0 if notes else len(paths)

    table, text, ends, *others = remember((kind,), [file], find)
    left_out = passed_over(Counter(Names.from_arrays(*others)), f"the {what}")
    about = About(what, FOLDERS, (*notes, *left_out))
    return about, Names.from_arrays(text, ends), table


# Zip

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, -1


class ZipEntry(NamedTuple):
    """What the directory of a zip archive says of a member."""

    name: str
    offset: int
    """Where its own header begins."""
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes when unpacked."""
    crc: int
    method: int
    """How it is packed; -1 for encrypted."""


def zip_directory(file: Path) -> Iterator[ZipEntry]:
    """Yield the members of a zip archive, as its directory lists them, one at a time.

    zipfile would keep half a kilobyte for each. Raises ValueError if the directory is missing or
    damaged.
    """
    require_file(file)
    try:
        with file.open("rb") as stream:
            start, size, shift = _find_directory(stream, str(file))
            stream.seek(start)
            while size > 0:
                head = stream.read(_ENTRY.size)
                fields = _ENTRY.unpack(head) if len(head) == _ENTRY.size else (b"",)
                if fields[0] != b"PK\x01\x02":
                    raise ValueError(
                        f"The zip archive {str(file)!r} is damaged at byte "
                        f"{stream.tell() - len(head)}, within its directory; make it anew."
                    )
                lengths = fields[10:13]
                rest = stream.read(sum(lengths))
                size -= len(head) + len(rest)
                yield _entry(fields, rest, shift)
    except OSError as error:
        raise ValueError(f"Cannot read {str(file)!r}: {error.strerror}.") from error


def _find_directory(stream: BinaryIO, name: str) -> tuple[int, int, int]:
    """Return where the directory begins, its bytes, and the bytes that lie before the archive."""
    end = stream.seek(0, os.SEEK_END)
    before = max(end - _END.size - 2**16, 0)
    stream.seek(before)
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise ValueError(
            f"{name!r} is no zip archive, or its end is cut off, where the directory stands: copy "
            f"it again, or repair it with zip -FF."
        )
    size, start = _END.unpack_from(tail, at)[5:7]
    place = before + at
    wide = place - _LOCATOR.size - _END64.size
    if wide >= 0:
        stream.seek(wide)
        found = stream.read(_END64.size + 4)
        if found[:4] == b"PK\x06\x06" and found[-4:] == b"PK\x06\x07":
            size, start, place = *_END64.unpack(found[:-4])[8:10], wide
    shift = place - size - start
    if shift < 0:
        raise ValueError(
            f"The zip archive {name!r} lacks {-shift} bytes; copy it again, or repair it with "
            f"zip -FF."
        )
    return start + shift, size, shift


def _entry(fields: tuple[int, ...], rest: bytes, shift: int) -> ZipEntry:
    flags, method, (crc, packed, size) = fields[3], fields[4], fields[7:10]
    offset, length = fields[16], fields[10]
    name, extra = rest[:length], rest[length : length + fields[11]]
    while len(extra) >= 4:
        kind, count = struct.unpack_from("<2H", extra)
        if kind == 1:  # what needs more than 32 bits
            wide = iter(struct.unpack_from(f"<{len(extra[4 : 4 + count]) // 8}Q", extra, 4))
            size, packed, offset = (
                next(wide, value) if value == 2**32 - 1 else value
                for value in (size, packed, offset)
            )
        extra = extra[4 + count :]
    try:
        spelled = name.decode("utf-8")  # programs on Unix use it without saying so
    except UnicodeDecodeError:
        spelled = name.decode(*(("utf-8", "surrogateescape") if flags & 0x800 else ("cp437",)))
    limit = 2**62
    return ZipEntry(
        spelled,
        min(offset + shift, limit),
        min(packed, limit),
        min(size, limit),
        crc,
        _ENCRYPTED if flags & 1 else method,
    )


class ZipMembers(MemberSource):
    """Images inside zip archives. Columns: archive, offset, packed bytes, bytes, crc, method."""

    def _read(self, row: list[int]) -> bytes:
        number, offset, packed, size, crc, method = row
        if offset < 0:
            raise FileNotFoundError(f"{str(self._files.paths[number])!r} has no such member")
        if method not in (_STORED, _DEFLATED):
            how = "is encrypted" if method == _ENCRYPTED else f"is packed by method {method}"
            raise OSError(f"the member {how}; only stored and deflated ones are read")
        head = self._files.read(number, offset, _LOCAL.size)
        kind, *_, name, extra = _LOCAL.unpack(head)
        if kind != b"PK\x03\x04":
            raise OSError(f"there is no member at byte {offset}; the archive is damaged")
        data = self._files.read(number, offset + _LOCAL.size + name + extra, packed)
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, min(size, LARGEST) + 1)
            except zlib.error as error:
                raise OSError(f"the member is damaged: {error}") from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise OSError("the member is damaged: it does not fit its checksum")
        return data


class ZipSource(ZipMembers):
    """All images in a zip archive, in the order of their paths, stored or deflated.

    Hidden entries and `__MACOSX` are left out. Classes and what is set aside follow from the
    folders as in `FolderSource`. Raises ValueError if the file is missing, is no whole archive or
    holds no image.
    """

    def __init__(
        self, file: str | Path, known: tuple[str, ...] | None = None, below: str | None = None
    ) -> None:
        self.file = Path(file)
        about, paths, table = _index("zip archive", self.file, zip_directory(self.file), [])
        found = arrange(paths, known, below)
        files, rows = Files([self.file]), table[found.chosen]
        super().__init__(about, files, found.names, rows, found.labels, known, below=found.below)
        self._aside = found.aside

    def validation(self) -> Source | None:
        """Return the images beside `train`, with its classes, if the archive is split so."""
        return ZipSource(self.file, self.classes, self._aside) if self._aside else None


class ZipMapSource(ZipMembers):
    """The images that a text file names as members of zip archives, in its order.

    A line is `archive.zip@/path/inside`, or that, a tab and a class; the archive lies beside the
    text file, and its ending may be left out. Raises ValueError as `ListSource` does, and if an
    archive is missing.
    """

    def __init__(self, file: str | Path, known: tuple[str, ...] | None = None) -> None:
        self.file = Path(file)
        entries, labels, words = Names(), list[str](), dict[str, str]()
        wanted: dict[str, dict[str, int]] = {}
        again: list[tuple[int, int]] = []
        for line, (entry, label) in enumerate(read_list(self.file)):
            entries.add(entry)
            if label is not None:
                labels.append(words.setdefault(label, label))
            archive, mark, path = entry.partition("@/")
            if not mark:
                raise ValueError(
                    f"The list {str(file)!r} names {entry!r} among members of zip archives; write "
                    f"archive.zip@/path on every line."
                )
            first = wanted.setdefault(archive, {}).setdefault(path, line)
            if first != line:
                again.append((line, first))
        table = np.full((len(entries), 6), -1, dtype=np.int64)
        archives = [self._archive(archive) for archive in wanted]
        for number, lines in enumerate(wanted.values()):
            table[list(lines.values()), 0] = number
            for member in zip_directory(archives[number]):
                if (at := lines.get(member.name.lstrip("/"))) is not None:
                    table[at, 1:] = member[1:]
        for line, first in again:
            table[line] = table[first]
        if (table[:, 1] < 0).all():
            raise ValueError(
                f"The list {str(file)!r} names {entries[0]!r}, but there is no such member in "
                f"{str(archives[0])!r}, nor any of the others."
            )
        about = About(f"list {str(self.file)!r} of members of zip archives", "its lines")
        super().__init__(about, Files(archives), entries, table, labels, known, as_numbers=True)

    def _archive(self, name: str) -> Path:
        places = [self.file.parent / name, self.file.parent / f"{name}.zip"]
        for place in places:
            if is_file(place):
                return place
        raise ValueError(
            f"The list {str(self.file)!r} names the archive {name!r}, but there is no file "
            f"{str(places[0])!r}; archives are relative to the list."
        )


# Tar


class TarEntry(NamedTuple):
    """A file inside a tar archive."""

    name: str
    offset: int
    """Where its bytes begin."""
    size: int


def scan_tar(file: Path, notes: list[str]) -> Iterator[TarEntry]:
    """Yield the files in an uncompressed tar archive, in its order; links are left out.

    Of an archive that is damaged or cut off, what lies before is yielded, and a sentence is added
    to the notes. Raises ValueError if it is none, or is compressed.
    """
    require_file(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            if stream.read(6).startswith(COMPRESSED):
                raise ValueError(
                    f"The archive {str(file)!r} is compressed, so no image in it can be read by "
                    f"itself: unpack it, or make it anew with tar -cf or zip -r."
                )
            stream.seek(0)
            yield from _scan(stream, size, str(file), notes)
    except OSError as error:
        raise ValueError(f"Cannot read {str(file)!r}: {error.strerror}.") from error


BROKEN_TAR = (
    *(tarfile.TarError, ValueError, ArithmeticError, LookupError),
    *(RecursionError, MemoryError),
)
"""What tarfile raises for headers that hold anything."""


def _scan(stream: BinaryIO, size: int, name: str, notes: list[str]) -> Iterator[TarEntry]:
    try:
        archive = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
    except BROKEN_TAR as error:
        raise ValueError(f"{name!r} is no tar archive, or its start is damaged.") from error
    at = 0
    while True:
        try:
            member = archive.next()
        except BROKEN_TAR:
            member = None
        if member is None or member.size < 0 or archive.offset <= at:
            break
        archive.members = []  # type: ignore[attr-defined]  # else a kilobyte for each
        if member.isreg() and member.offset_data + member.size > size:
            notes.append(
                f"The archive {name!r} is cut off within {member.name!r}: what follows is missing."
            )
            return
        at = archive.offset
        if member.isreg() and not member.issparse():
            yield TarEntry(member.name, member.offset_data, member.size)
    stream.seek(at)
    mark = stream.read(tarfile.BLOCKSIZE)
    if not mark:
        notes.append(f"The archive {name!r} ends without a mark, so it may have been cut off.")
    elif mark.strip(b"\0"):
        notes.append(f"The archive {name!r} is damaged at byte {at}: what follows is left out.")


class TarMembers(MemberSource):
    """Images inside tar archives. Columns: archive, offset, bytes."""

    def _read(self, row: list[int]) -> bytes:
        return self._files.read(row[0], row[1], row[2])


class TarSource(TarMembers):
    """All images in an uncompressed tar archive, in the order of their paths.

    Hidden entries and links are left out. Classes and what is set aside follow from the folders as
    in `FolderSource`. Raises ValueError if the file is missing, is no archive, is compressed or
    holds no image.
    """

    def __init__(
        self, file: str | Path, known: tuple[str, ...] | None = None, below: str | None = None
    ) -> None:
        self.file, notes = Path(file), list[str]()
        about, paths, table = _index("tar archive", self.file, scan_tar(self.file, notes), notes)
        found = arrange(paths, known, below)
        files, rows = Files([self.file]), table[found.chosen]
        super().__init__(about, files, found.names, rows, found.labels, known, below=found.below)
        self._aside = found.aside

    def validation(self) -> Source | None:
        """Return the images beside `train`, with its classes, if the archive is split so."""
        return TarSource(self.file, self.classes, self._aside) if self._aside else None
