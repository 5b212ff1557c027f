"""Data sets by name and arrays: the pixels that torchvision and Python hold."""

import hashlib
import inspect
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision import datasets

from leanvit.data.decode import read_image
from leanvit.data.named import KINDS, ArraySource, TorchvisionSource
from leanvit.data.sources import Source, hold_out, open_source
from tests.tiny import write_classes


def pixels(source: Source) -> list[NDArray[np.uint8]]:
    found = [source[index].image for index in range(len(source))]
    assert all(isinstance(image, np.ndarray) and image.dtype == np.uint8 for image in found)
    return found  # type: ignore[return-value]


def write_mnist(root: Path, *, train: int = 6, test: int = 3) -> dict[str, NDArray[np.uint8]]:
    """Write the files of MNIST with noise in them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    draw, found = np.random.default_rng(0), {}
    for word, count in (("train", train), ("t10k", test)):
        grey = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 3 + 1).astype(np.uint8)
        head = struct.pack(">4I", 0x803, count, 28, 28)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(head + grey.tobytes())
        head = struct.pack(">2I", 0x801, count)
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        found[word] = grey
    return found


def write_cifar(root: Path, patch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """Write the files of CIFAR-10 with two images in each; return them [12, 32, 32, 3]."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    parts: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for number in range(6):
        data = images[2 * number : 2 * number + 2].transpose(0, 3, 1, 2).reshape(2, -1)
        content = pickle.dumps({"data": data, "labels": [number, 9]})
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        (folder / name).write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        parts["train_list" if number < 5 else "test_list"].append([name, digest])
    meta = pickle.dumps({"label_names": list("jihgfedcba")})
    (folder / "batches.meta").write_bytes(meta)
    for part, entries in parts.items():
        patch.setattr(datasets.CIFAR10, part, entries)
    facts = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    patch.setattr(datasets.CIFAR10, "meta", facts)
    return images


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_a_data_set_of_torchvision_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_cifar(tmp_path, monkeypatch)
    source = open_source(f"torchvision:CIFAR10@{tmp_path}")
    assert isinstance(source, TorchvisionSource)
    assert (np.stack(pixels(source)) == images[:10]).all()
    assert source.classes == tuple("jihgfedcba"), "the order is the data set's"
    assert source.targets.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert [source[i].target for i in range(10)] == source.targets.tolist()
    assert source.name(3) == "CIFAR10/train/000003"
    held = source.validation()
    assert held is not None and held.validation() is None
    assert (np.stack(pixels(held)) == images[10:]).all()
    assert held.classes == source.classes and held.targets.tolist() == [5, 9]
    assert held.fingerprint() != source.fingerprint()


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    grey = write_mnist(tmp_path)
    source = open_source(f"torchvision:MNIST@{tmp_path}")
    expected = np.repeat(grey["train"][..., None], 3, axis=3)
    assert (np.stack(pixels(source)) == expected).all()
    assert source.classes[2] == "2 - two" and source.targets.tolist() == [1, 2, 3] * 2
    found = read_image(source, 4)
    assert isinstance(found, tuple) and found[1] == 2
    assert (found[0].permute(1, 2, 0).numpy() == expected[4]).all()


def test_a_data_set_survives_pickling(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    source = open_source(f"torchvision:MNIST@{tmp_path}").validation()
    assert source is not None
    sent = pickle.dumps(source)
    assert len(sent) < 1000, "each process reads the files itself"
    again = pickle.loads(sent)
    assert (np.stack(pixels(again)) == np.stack(pixels(source))).all()
    assert again.fingerprint() == source.fingerprint() and again.name(0) == "MNIST/test/000000"


def test_a_data_set_of_files_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "eurosat" / "2750", Forest=2, River=3)
    source = open_source(f"torchvision:EuroSAT@{tmp_path}")
    assert source.classes == ("Forest", "River") and source.targets.tolist() == [0, 0, 1, 1, 1]
    assert len(pixels(source)) == 5 and source.validation() is None
    bad = tmp_path / "eurosat" / "2750" / "Forest" / "000.png"
    bad.write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot identify image file"):
        source[0]


@pytest.mark.parametrize("name", KINDS)
def test_every_name_is_a_data_set_with_these_parts(name: str) -> None:
    kind, made = KINDS[name], getattr(datasets, name)
    signature = inspect.signature(made)
    for options in (kind.train, kind.test or {}):
        signature.bind("root", **options)
        assert all(signature.parameters.get(o) or name == "ImageNet" for o in options)
    ancestors = "".join(
        inspect.getsource(cls) for cls in made.__mro__[:-1] if "datasets" in cls.__module__
    )
    assert f"self.{kind.targets}" in ancestors


def test_the_documents_list_every_name() -> None:
    said = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    listed = said.split("Known: ")[1].split(".\n")[0]
    assert listed.replace("\n", " ").split(", ") == list(KINDS)


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    for name in KINDS:
        with pytest.raises(
            ValueError, match=rf"does not hold {name} as torchvision.*is downloaded"
        ):
            open_source(f"torchvision:{name}@{tmp_path}/none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", "Name the folder that CIFAR10 lies in: torchvision:CIFAR10@FOLDER."),
        ("CIFAR10@", "Name the folder that CIFAR10 lies in"),
        ("cifar10@x", r"Unknown data set of torchvision 'cifar10'\. Known: CIFAR10, "),
        ("CIFAR11@x", r"'CIFAR11'; did you mean 'CIFAR10'\?"),
    ],
)
def test_mistakes_in_a_name_are_answered(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(f"torchvision:{name}")


def test_damaged_files_are_answered(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    for data in (whole[:50], b"", whole[:2], b"\xff" * 100):
        (raw / "train-images-idx3-ubyte").write_bytes(data)
        with pytest.raises(ValueError, match="does not hold MNIST"):
            open_source(f"torchvision:MNIST@{tmp_path}")


# Arrays


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_arrays_are_a_source() -> None:
    images = noise(6, 8, 9, 3)
    source: Source = ArraySource(images, [0, 1, 2, 0, 1, 2], ("a", "b", "c"))
    assert (np.stack(pixels(source)) == images).all()
    assert source.classes == ("a", "b", "c") and source[4].target == 1
    assert source.targets.dtype == np.int64 and source.validation() is None
    assert source.name(4) == "array/000004"
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    assert [len(part) for part in hold_out(source)] == [3, 3]
    assert ArraySource(images, np.array([1, 0, 1, 0, 1, 0], np.int32)).classes == ("0", "1")
    assert source.about().labels == "the targets"


def test_arrays_may_have_any_size_and_no_class() -> None:
    images = [noise(3, 5, 3), noise(9, 2, 3)]
    source = ArraySource(images)
    assert [image.shape for image in pixels(source)] == [(3, 5, 3), (9, 2, 3)]
    assert source.classes == () and source.targets.tolist() == [-1, -1]
    assert source.about().labels == ""
    prints = [ArraySource(arrays).fingerprint() for arrays in (images, images[::-1], images[:1])]
    assert len(set(prints)) == 3
    assert (
        ArraySource([noise(2, 6, 3)]).fingerprint() != ArraySource([noise(6, 2, 3)]).fingerprint()
    )


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        ([], None, "There is no image among the arrays"),
        (noise(2, 3, 4, 4), None, r"Image 0 is uint8 \[3, 4, 4\]; expected uint8 \[height"),
        ([noise(2, 3, 3), noise(2, 3)], None, r"Image 1 is uint8 \[2, 3\]"),
        (noise(2, 3, 4, 3) / 255, None, r"Image 0 is float64 \[3, 4, 3\]"),
        (noise(2, 0, 4, 3), None, r"Image 0 is uint8 \[0, 4, 3\]"),
        (noise(2, 3, 4, 3), [1], r"targets are int64 \[1\]; expected 2 whole numbers"),
        (noise(2, 3, 4, 3), [0.0, 1.0], r"targets are float64 \[2\]"),
        (noise(2, 3, 4, 3), [-2, 1], "targets go from -2 to 1; expected -1, for none"),
    ],
)
def test_other_arrays_are_refused(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArraySource(images, targets)
    with pytest.raises(ValueError, match="number of one of 2 classes"):
        ArraySource(noise(2, 3, 3, 3), [1, 2], ("a", "b"))
