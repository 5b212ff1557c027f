"""Names of images: which are images, and how millions of them are held in little memory.

Letters: N words.
"""

import hashlib
import heapq
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
OTHER_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpe", ".jfif"),
        *(".ppm", ".pgm", ".pnm", ".tga", ".psd"),
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf"),
        *(".orf", ".rw2", ".rwl", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".mrw", ".dcr", ".kdc"),
        *(".erf", ".mef", ".mos"),
    }
)
"""Endings of photographs that are not read here."""

RUN = 2**16
"""Words that are sorted, or digested, at once; only they are objects meanwhile."""


class Names:
    """N words in one piece of memory, which forked processes share and never copy."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        for name in names:
            self.add(name)

    @classmethod
    def from_arrays(cls, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> "Names":
        """Return the words that `arrays` were of."""
        names = cls()
        names._text, names._ends = bytearray(text.data), array("q", ends.tobytes())
        return names

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return all bytes, and [N + 1] where each word begins; no word can be added after that."""
        return np.frombuffer(self._text, np.uint8), np.frombuffer(self._ends, np.int64)

    def add(self, name: str) -> None:
        """Add a word at the end."""
        self._text += encoded(name)
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._word(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._word, range(len(self)))

    def _word(self, index: int) -> str:
        return self._text[self._ends[index] : self._ends[index + 1]].decode(
            "utf-8", "surrogateescape"
        )

    def order(self) -> Iterator[int]:
        """Yield the words' numbers in the order of the words; equal ones stay as they are."""
        starts = range(0, len(self), RUN)
        runs = [array("q", sorted(self._run(start), key=self._word)) for start in starts]
        return heapq.merge(*runs, key=self._word)

    def first_folders(self, below: str = "") -> Iterator[tuple[str, int]]:
        """Yield the first folder of paths, and how many neighbours have it; "" for one without.

        The paths are in order. below: a folder, with its slash, that all of them lie in and that
        is passed over.
        """
        at = 0
        while at < len(self):
            folder, slash, _ = self[at][len(below) :].partition("/")
            end = bisect_left(self, after(below + folder), lo=at) if slash else at + 1
            yield folder if slash else "", end - at
            at = end

    def fingerprint(self) -> str:
        """Return a digest of all words, the same as that of files with these names."""
        digest = hashlib.sha256()
        for start in range(0, len(self), RUN):
            words = [self._text[self._ends[i] : self._ends[i + 1]] for i in self._run(start)]
            digest.update(b"\0" * (start > 0) + b"\0".join(words))
        return digest.hexdigest()

    def _run(self, start: int) -> range:
        return range(start, min(start + RUN, len(self)))


def after(folder: str) -> str:
    """Return the least word that comes after all paths below a folder."""
    return f"{folder}0"  # zero is the character after the slash


def labels_by_folder(paths: Names) -> list[str]:
    """Return the first folder of each of the paths, which are in order; none if one has none."""
    labels: list[str] = []
    for folder, count in paths.first_folders():
        if not folder:
            return []
        labels += [folder] * count
    return labels


def suffix(name: str) -> str:
    """Return the ending of a file's name with its dot, in small letters."""
    return name[name.rfind(".") :].lower()


def passed_over(endings: Counter[str], where: str) -> tuple[str, ...]:
    """Return a sentence on the photographs whose endings are not read, if there are any."""
    if not endings:
        return ()
    counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
    return (
        f"{endings.total()} files in {where} were left out, since files with their endings cannot "
        f"be read here: {counts}; convert them to JPEG.",
    )


def encoded(name: str) -> bytes:
    """Return a name's bytes; those that were no UTF-8 are as they were."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a pair, as JSON may spell it
        return name.encode(errors="replace")
