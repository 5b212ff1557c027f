"""How long it takes to list large folders and to open large indices, and how much memory they take.

    python benchmarks/listing.py FOLDER [COMMAND]

FOLDER is where temporary trees and archives are made, of up to 4 GB and a million files. COMMAND
makes its file system forget what it read, such as "umount DISK && mount DISK"; then the first
listing after that is measured too.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leanvit.data import cache
from leanvit.data.names import IMAGE_SUFFIXES
from leanvit.data.sources import FolderSource, ListSource, open_source

ROUNDS = 5
LATENCY = 0.005
"""Seconds that a file system on a network is made to take for an answer."""
MILLION = 1000, 1000
"""Folders, and images in each."""


def main() -> None:
    place, forget = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    for folders, files in ((1, 10_000), (1, 200_000), (50, 200), (1000, 200)):
        tree = place / f"tree-{folders}-{files}"
        for name in paths(folders, files):
            write(tree / name)
        time.sleep(3)  # so that it has settled
        compare(tree, forget)
        shutil.rmtree(tree)
    waiting(place / "waiting")
    for kind, make in KINDS.items():
        path = make(place / kind)
        time.sleep(3)
        for state in ("anew", "again"):
            command = [sys.executable, __file__, "--open", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"{kind} {state}: {found}", flush=True)
        shutil.rmtree(place / kind)


def write(path: Path, data: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def paths(folders: int, files: int) -> Iterator[str]:
    """Yield names such as ImageNet's, out of order."""
    for folder in range(folders):
        for number in range(files):
            yield f"n{folder:08d}/n{folder:08d}_{number * 7919 % 1_000_003}.JPEG"


# Time


def compare(tree: Path, forget: str) -> None:
    ways: dict[str, Callable[[Path], int]] = {
        "os.walk": walk,
        "one thread": one_thread,
        "anew": anew,
        "again": again,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first = {}
    again(tree)
    for name, way in ways.items():
        if forget:
            subprocess.run(forget, shell=True, check=True)
            first[name] = spent(way, tree)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            seconds[name].append(spent(way, tree))
    for name, values in seconds.items():
        cold = f", {first[name]:.2f} s at first" if name in first else ""
        print(f"{tree.name} {name}: {statistics.median(values):.3f} s{cold}", flush=True)


def spent(way: Callable[[Path], int], tree: Path) -> float:
    began = time.perf_counter()
    assert way(tree)
    return time.perf_counter() - began


def walk(tree: Path) -> int:
    """Find and sort the same images one folder after another, with a path for each."""
    found: list[str] = []
    for place, _, files in os.walk(tree):
        found += [
            os.path.relpath(os.path.join(place, name), tree)  # noqa: PTH118
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return len(sorted(found))


def anew(tree: Path) -> int:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    return len(FolderSource(tree))


def one_thread(tree: Path) -> int:
    threads, cache.THREADS = cache.THREADS, 1
    found = anew(tree)
    cache.THREADS = threads
    return found


def again(tree: Path) -> int:
    return len(FolderSource(tree))


def waiting(tree: Path) -> None:
    """List a thousand folders where every answer takes as long as from a network."""
    for name in paths(1000, 10):
        write(tree / name)
    time.sleep(3)
    scandir, stat = os.scandir, os.stat

    def slowly(call: Callable[..., object]) -> Callable[..., object]:
        def answer(*args: object, **options: object) -> object:
            time.sleep(LATENCY)
            return call(*args, **options)

        return answer

    for threads in (1, 4, 16, 32, 64):
        cache.THREADS = threads
        os.scandir, os.stat = slowly(scandir), slowly(stat)  # type: ignore[assignment]
        fresh, known = spent(anew, tree), spent(again, tree)
        os.scandir, os.stat = scandir, stat
        print(f"{threads} threads, {LATENCY} s an answer: anew {fresh:.2f} s, again {known:.2f} s")
    shutil.rmtree(tree)


# Memory


def make_folder(place: Path) -> Path:
    for name in paths(*MILLION):
        write(place / "folder" / name, b"some")
    return place / "folder"


def make_list(place: Path) -> Path:
    first = next(paths(1, 1))
    write(place / first)
    write(place / "list.txt", "".join(f"{n}\t{n[:9]}\n" for n in paths(*MILLION)).encode())
    return place / "list.txt"


def make_tar(place: Path) -> Path:
    place.mkdir()
    with (place / "images.tar").open("wb") as file:
        for name in paths(*MILLION):
            file.write(member(name, b"some"))
        file.write(bytes(1024))
    return place / "images.tar"


def make_shards(place: Path) -> Path:
    place.mkdir()
    for folder in range(MILLION[0]):
        with (place / f"{folder:04d}.tar").open("wb") as file:
            for number in range(MILLION[1]):
                file.write(
                    member(f"{number}.jpg", b"some") + member(f"{number}.cls", b"%d" % folder)
                )
            file.write(bytes(1024))
    return place


def member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data.ljust(512, b"\0")


def make_zip(place: Path) -> Path:
    place.mkdir()
    with zipfile.ZipFile(place / "images.zip", "w") as archive:
        for name in paths(*MILLION):
            archive.writestr(zipfile.ZipInfo(name), b"some")
    return place / "images.zip"


def make_tsv(place: Path) -> Path:
    lines = (f"{name}\t{name[1:9]}\tc29tZQ==\n" for name in paths(*MILLION))
    write(place / "images.tsv", "".join(lines).encode())
    return place / "images.tsv"


def make_parquet(place: Path) -> Path:
    place.mkdir()
    labels = [folder for folder in range(MILLION[0]) for _ in range(MILLION[1])]
    table = pa.table({"image": [b"some"] * len(labels), "label": labels})
    pq.write_table(table, place / "images.parquet", row_group_size=100)
    return place / "images.parquet"


KINDS: dict[str, Callable[[Path], Path]] = {
    "folder": make_folder,
    "list": make_list,
    "tar": make_tar,
    "shards": make_shards,
    "zip": make_zip,
    "tsv": make_tsv,
    "parquet": make_parquet,
}


def measure(path: str) -> dict[str, float]:
    """Open a source; return seconds, and by how many MB the process and a forked one grew."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the most memory that was ever held
    before, began = memory("VmRSS"), time.perf_counter()
    source = open_source(path)
    found = {"images": float(len(source)), "seconds": round(time.perf_counter() - began, 2)}
    source.fingerprint()
    found |= {"kept MB": memory("VmRSS") - before, "most MB": memory("VmHWM") - before}
    end, other = os.pipe()
    if not os.fork():
        own = memory("Private_Dirty", "smaps_rollup")
        for index in range(len(source)):
            source.name(index)
            if not isinstance(source, ListSource):  # whose images are not there
                assert source[index].image
        os.write(other, b"%d" % (memory("Private_Dirty", "smaps_rollup") - own))
        os._exit(0)
    os.wait()
    return found | {"MB in a worker over an epoch": float(os.read(end, 99))}


def memory(what: str, file: str = "status") -> float:
    """Return what the system says of this process, in MB."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1e3)


if __name__ == "__main__":
    if sys.argv[1] == "--open":
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
