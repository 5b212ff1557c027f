"""The first ten minutes, cut to one: what `make demo` promises, on fewer steps."""

import json
from pathlib import Path

import pytest

import leanvit

pytestmark = pytest.mark.long

K = "k=20"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "run"
    options = {"train.duration": "400st", "watch.every": "200st", "watch.images": 320}
    leanvit.pretrain("esvit_laptop", data="sample", out=out, options=options, quiet=True)
    return out


def test_a_minute_on_the_sample_beats_the_untrained_network_in_both_protocols(run: Path) -> None:
    result = leanvit.evaluate(
        "knn", run, data="sample", options={"k": (20,), "baselines": True}, quiet=True
    )
    found = {(row["protocol"], row["features"]): row[K] for row in result.rows}
    for protocol in ("color", "grey"):
        untrained = found[protocol, "untrained"]
        for network in ("trained (teacher)", "trained (student)"):
            assert found[protocol, network] > untrained + 10, found
        assert untrained > found[protocol, "raw pixels"] - 15  # the baselines are no straw men
    assert found["grey", "trained (teacher)"] > 1.5 * found["grey", "untrained"], found


def test_the_run_said_so_while_it_went_on(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row["knn"] for row in rows if "knn" in row]
    assert len(seen) == 3 and seen[-1] > seen[0] + 10, seen
    matched = [row["correct_matches"] for row in rows if "correct_matches" in row]
    assert matched[-1] > matched[0] + 5, matched
    assert json.loads((run / "summary.json").read_text())["collapse"] == {}
