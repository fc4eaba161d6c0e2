"""The snapshot's benchmark in miniature, so that it does not rot; how fast it is, is no test's business."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.benchmarks import snapshot
from tests.dynamodb_local import DynamoDBLocal


def test_from_memory__sums_up_every_item(tmp_path: Path) -> None:
    found = snapshot.from_memory(2_500, 7, tmp_path / "spool")

    assert (found["items"], found["aggregates"]) == (2_500, 7)
    assert found["items_per_second"] > 0
    assert found["disk_mb"] > 0


def test_memory__is_measured_in_processes_of_their_own() -> None:
    found = snapshot.memory([100, 200])

    assert [(one["items"], one["aggregates"]) for one in found["sizes"]] == [(100, 100), (200, 200)]
    assert all(one["peak_mb"] > 5 for one in found["sizes"])
    assert found["growth"] == pytest.approx(1, abs=0.2)


def test_against_a_bare_scan__both_read_the_whole_table(dynamodb_local: DynamoDBLocal) -> None:
    found = snapshot.against_a_bare_scan(
        dynamodb_local.client("dynamodb"), dynamodb_local.client("dynamodbstreams"), 300, rounds=1
    )

    assert found["items"] == 300
    assert found["share_of_bare_scan"] == pytest.approx(found["bare_seconds"] / found["snapshot_seconds"])


def test_command__prints_and_writes_all_figures(
    dynamodb_local: DynamoDBLocal,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "running_dynamodb_local", lambda **_: nullcontext(dynamodb_local))
    small = ["--items", "500", "--scanned", "100", "--sizes", "100", "200", "--rounds", "1"]

    snapshot.main([*small, "--json", str(tmp_path / "figures.json")])

    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {"speed", "bare_scan", "memory"}
    assert "500 items from memory on one core" in printed
    assert "200 items, each an aggregate" in printed
