"""The images below a folder: found by many threads, and kept until a folder changes.

Paths end in a slash if they are folders', and are relative to the folder at the top, which is "".
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from leanvit.data.cache import in_threads, keep, recall, stamp
from leanvit.data.names import IMAGE_SUFFIXES, OTHER_SUFFIXES, Names, passed_over, suffix

NAMED = 3
"""How many of those that cannot be read are named."""


class Listing(NamedTuple):
    """What was found below a folder."""

    names: Names
    """Paths of the images relative to the folder, in their order."""
    notes: tuple[str, ...]
    """What was left out, a sentence each."""


@dataclass(slots=True)
class _Folder:
    """What lies in a folder; hidden entries are left out."""

    stamp: bytes = b""
    images: str = ""
    """Their names, each with a slash at its end: one word takes less memory than many."""
    folders: Sequence[tuple[str, str]] = ()
    """Name and real path of each."""
    others: Sequence[str] = ()
    """The endings of photographs that are not read, one for each."""
    broken: Sequence[str] = ()
    """Links that cannot be followed and are not called images."""
    links: bool = False
    """Whether a link leads to anything but a folder."""
    error: str = ""
    """Why the folder cannot be read."""


def list_images(folder: str) -> Listing:
    """Return the images below a folder, at any depth; hidden entries are left out.

    Linked folders are followed, each real folder once, so that a loop of links ends. What cannot
    be read is left out, and said. A link that is called an image is one, even if it leads nowhere:
    that is found when it is read, and until then the images' numbers do not depend on whether a
    disk is there. Raises OSError if the folder itself cannot be read.
    """
    top = os.path.realpath(folder)
    key = ("folder", top)
    if (known := recall(key)) is not None:
        others = Counter(Names.from_arrays(*known[2:]))
        return Listing(Names.from_arrays(*known[:2]), passed_over(others, repr(folder)))
    began = time.time_ns()
    reached, again = _reach(_crawl(top), top)
    if reached[""].error:
        raise OSError(reached[""].error)
    names = Names(_in_order(reached))
    others = Counter(ending for found in reached.values() for ending in found.others)
    unread = _unread(reached)
    # a link to a file may lead to a folder later, and to see that takes as long as listing does
    links = any(found.links for found in reached.values())
    if not unread and not links:
        seen = {path: found.stamp for path, found in reached.items()} | again
        paths = Names(f"{top}/{path}" for path in seen)
        arrays = (*names.arrays(), *Names(others.elements()).arrays())
        keep(key, paths, seen.values(), arrays, images=len(names), began=began)
    return Listing(names, _spoken(unread, folder) + passed_over(others, repr(folder)))


def _crawl(top: str) -> dict[str, _Folder]:
    """Return what lies in each folder that can be reached, by its real path."""
    found: dict[str, _Folder] = {}
    level = [top]
    while level:
        found.update(zip(level, in_threads(_scan, level), strict=True))
        below = (path for real in level for _, path in found[real].folders)
        level = [path for path in dict.fromkeys(below) if path not in found]
    return found


def _scan(real: str) -> _Folder:
    images, folders, others, broken = list[str](), list[tuple[str, str]](), list[str](), list[str]()
    links = False
    try:
        before = stamp(real)  # so that what is added while the entries are read changes it
        with os.scandir(real) as entries:
            for entry in entries:
                name, link = entry.name, entry.is_symlink()
                ending = suffix(name)
                if name.startswith("."):
                    continue
                if leads_to_folder(entry):
                    folders.append((name, os.path.realpath(entry) if link else entry.path))
                    continue
                links |= link
                if ending in IMAGE_SUFFIXES:
                    images.append(f"{name}/")
                elif ending in OTHER_SUFFIXES:
                    others.append(ending)
                elif link and not os.path.exists(entry):  # noqa: PTH110
                    broken.append(name)
    except OSError as error:
        return _Folder(error=error.strerror or str(error))
    return _Folder(before, "".join(images), folders or (), others or (), broken or (), links)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be read
        return False


def _reach(folders: Mapping[str, _Folder], top: str) -> tuple[dict[str, _Folder], dict[str, bytes]]:
    """Return the folders by the first path that leads to each, and the stamps of other paths.

    The order is that in which a person would go down, folder by folder.
    """
    reached: dict[str, _Folder] = {}
    again: dict[str, bytes] = {}
    seen: set[str] = set()
    below = [("", top)]
    while below:
        path, real = below.pop()
        folder = folders[real]
        if real in seen:
            again[path] = folder.stamp
            continue
        seen.add(real)
        reached[path] = folder
        for name, target in sorted(folder.folders, reverse=True):
            below.append((f"{path}{name}/", target))
    return reached, again


def _in_order(reached: Mapping[str, _Folder]) -> Iterator[str]:
    """Yield the images' paths as if all of them had been sorted, which takes more memory."""
    below = [""]
    while below:
        path = below.pop()
        if path and not path.endswith("/"):
            yield path
        elif path in reached:
            folder = reached[path]
            inside = [f"{path}{name}" for name in folder.images.split("/")[:-1]]
            inside += [f"{path}{name}/" for name, _ in folder.folders]
            inside.sort(reverse=True)
            below += inside


def _unread(reached: Mapping[str, _Folder]) -> list[str]:
    """Return what cannot be read, and why."""
    found = []
    for path, folder in reached.items():
        if folder.error:
            found.append(f"{path[:-1]!r} ({folder.error})")
        found += [f"{path + name!r} (a link that cannot be followed)" for name in folder.broken]
    return found


def _spoken(unread: Sequence[str], folder: str) -> tuple[str, ...]:
    """Return a sentence on what cannot be read, if there is anything."""
    if not unread:
        return ()
    more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
    return (
        f"{len(unread)} of the folders and links below {folder!r} cannot be read, and what lies "
        f"there is left out: {', '.join(unread[:NAMED])}{more}.",
    )
