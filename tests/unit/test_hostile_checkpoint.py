"""The record of a checkpoint may hold anything: it is read as it was written, or passed over."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from leanvit.train.checkpoint import RECORD, TENSORS, newest_checkpoint, save_checkpoint
from tests.tiny import noise


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good checkpoint of step 3 and a newer one, which a test spoils."""
    folder = tmp_path / "checkpoints"
    for step in (3, 5):
        save_checkpoint(folder, step, {"w": noise(4)}, {}, keep=2)
    return folder


def sealed(record: dict[str, Any]) -> str:
    """Return a record that agrees with its own checksum, as whoever forges one would write it."""
    text = json.dumps(record | {"sha256": "0" * 64})
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest())


def passed_over(folder: Path, record: str) -> str:
    """Return what is said of the newer checkpoint, for which the older one stands in."""
    (folder / "step-00000005" / RECORD).write_text(record)
    said: list[str] = []
    found = newest_checkpoint(folder, said.append)
    assert found is not None and found.step == 3
    (text,) = said
    assert "step-00000005" in text and text.isprintable()
    return text


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 10**30},
        {"step": -5},
        {"step": "5"},
        {"step": 5.0},
        {"step": True},
        {"step": [5]},
        {"files": {}},
        {"files": [TENSORS]},
        {"files": None},
        {"files": {TENSORS: None}},
        {"files": {TENSORS: {"bytes": 10**30, "sha256": ""}}},
        {"format": [1]},
        {"format": None},
    ],
    ids=str,
)
def test_wrong_values_are_passed_over(changes: dict[str, Any], saved: Path) -> None:
    record = json.loads((saved / "step-00000005" / RECORD).read_text())
    passed_over(saved, sealed(record | changes))


@pytest.mark.parametrize("seal", ["", 3, None, [], "x" * 64, "\x1b[31m"], ids=repr)
def test_a_record_agrees_with_itself(seal: object, saved: Path) -> None:
    record = json.loads((saved / "step-00000005" / RECORD).read_text())
    passed_over(saved, json.dumps(record | {"sha256": seal}))


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "..", "step\x1b[31m", ""])
def test_names_of_files_lead_nowhere(name: str, saved: Path) -> None:
    """Not even to be read: a device has no end, and a pipe would be waited for."""
    record = json.loads((saved / "step-00000005" / RECORD).read_text())
    record["files"] = {TENSORS: record["files"][TENSORS], name: {"bytes": 0, "sha256": ""}}
    assert "lists other files" in passed_over(saved, sealed(record))


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000, "[]", "null", '"x"', "", "NaN", "\udcff"],
    ids=["deep list", "deep object", "digits", "list", "null", "word", "empty", "nan", "half"],
)
def test_what_is_no_record_is_passed_over(text: str, saved: Path) -> None:
    (saved / "step-00000005" / RECORD).write_bytes(text.encode(errors="surrogateescape"))
    said: list[str] = []
    found = newest_checkpoint(saved, said.append)
    assert found is not None and found.step == 3 and len(said) == 1 and len(said[0]) < 500


def test_tensors_hold_no_objects(saved: Path) -> None:
    """A pickle under the name of tensors is none, even if the record agrees with it."""
    newer = saved / "step-00000005"
    data = pickle.dumps({"w": 1})
    (newer / TENSORS).write_bytes(data)
    record = json.loads((newer / RECORD).read_text())
    fact = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newer / RECORD).write_text(sealed(record | {"files": {TENSORS: fact}}))
    found = newest_checkpoint(saved)
    assert found is not None and found.step == 5
    with pytest.raises(ValueError, match="cannot be read"):
        found.tensors()


def test_other_names_beside_checkpoints_are_nothing(saved: Path) -> None:
    for name in ("step-", "step-x", "step-\x1b[31m", "step--7", "step-00000007.tmp"):
        (saved / name).mkdir()
    found = newest_checkpoint(saved)
    assert found is not None and found.step == 5
    save_checkpoint(saved, 6, {"w": noise(4)}, {}, keep=1)
    assert (saved / "step-x").exists() and not (saved / "step-00000005").exists()
