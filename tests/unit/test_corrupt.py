"""Corruptions: the library's own, each image with its own noise, and nobody else's generator."""

import sys

import imagecorruptions
import numpy as np
import pytest
import torch

from leanvit.config.evaluation import COMMON_CORRUPTIONS, CORRUPTIONS
from leanvit.core.random import numpy_seeded
from leanvit.data.corrupt import SMALLEST, Corruption, require_corruptions
from tests.integration.test_purity import global_states
from tests.tiny import noise

IMAGE = torch.nn.functional.interpolate(noise(1, 3, 8, 8).sigmoid(), (40, 40), mode="bilinear")[0]


def test_the_names_are_the_library_s() -> None:
    assert list(COMMON_CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("all")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_its_key(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed, the corruption, the severity and the image; whatever was drawn before."""
    before = global_states()
    found = Corruption(name, (2, 5), 7)(IMAGE, 3)
    assert found.shape == (2, 3, 40, 40) and found.dtype == torch.uint8
    assert global_states() == before and capsys.readouterr().out == ""
    assert torch.equal(Corruption(name, (5,), 7)(IMAGE, 3)[0], found[1])
    others = [Corruption(name, (2, 5), 8)(IMAGE, 3), Corruption(name, (2, 5), 7)(IMAGE, 4)]
    drawn = not any(torch.equal(found, other) for other in others)
    same = all(torch.equal(found, other) for other in others)
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"}
    fixed |= {"jpeg_compression", "gaussian_blur", "saturate"}
    assert same if name in fixed else drawn


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "frost"])
def test_it_is_the_library_s(name: str) -> None:
    image = (IMAGE * 255).round().byte().permute(1, 2, 0).numpy()
    with numpy_seeded(7, f"{name} 4", 3) as own:
        seed = {"seed": own} if name in ("impulse_noise", "glass_blur") else {}
        expected = imagecorruptions.corrupt(image, 4, name, **seed)
    found = Corruption(name, (4,), 7)(IMAGE, 3)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected) and not np.array_equal(found, image)


def test_each_severity_has_noise_of_its_own() -> None:
    """Noise of two strengths would otherwise be the same noise, only scaled."""
    flat = torch.full((3, 64, 64), 0.5)
    weak, strong = (
        (level.double() - 128).flatten()
        for level in Corruption("gaussian_noise", (1, 2), 0)(flat, 0)
    )
    assert abs(np.corrcoef(weak, strong)[0, 1]) < 0.05
    assert 1.3 < float(strong.std() / weak.std()) < 1.7, "0.08 and 0.12 of the range"


def test_keys_tell_corruptions_apart() -> None:
    ones = [("fog", (1,), 0), ("fog", (1,), 1), ("fog", (1, 2), 0), ("snow", (1,), 0)]
    keys = {Corruption(*one).key for one in ones}
    assert len(keys) == 4 and all("imagecorruptions-imaug" in key for key in keys)


def test_the_smallest_image_is_the_library_s() -> None:
    small = np.zeros((SMALLEST - 1, SMALLEST, 3), dtype=np.uint8)
    with pytest.raises(AttributeError, match=f"at least {SMALLEST} pixels"):
        imagecorruptions.corrupt(small, 1, "fog")


def test_opencv_keeps_its_threads() -> None:
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    Corruption("defocus_blur", (1,), 0)(IMAGE, 0)
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(before)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_corruptions()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ValueError, match=r"corrupts images: .*pip install 'leanvit\[robust\]'"):
        require_corruptions()


def test_numpy_s_generator_is_given_back() -> None:
    before = global_states()
    with numpy_seeded(0, "a", 1) as first:
        one = np.random.random(3).tolist()
        with numpy_seeded(0, "a", 2) as second:
            two = np.random.random(3).tolist()
    with pytest.raises(KeyError), numpy_seeded(0, "a", 1) as again:
        assert again == first != second and 0 <= first < 2**32
        assert np.random.random(3).tolist() == one != two
        raise KeyError
    assert global_states() == before
