"""Every benchmark in miniature, so that none of them rots; what they measure is no test's business."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import compare, concurrency, letters, processor_time, write_units
from tests.benchmarks.contenders import NAMES
from tests.benchmarks.workloads import REFERENCE, Delivered, Kind, Workload
from tests.dynamodb_local import DynamoDBLocal

SMALL = replace(REFERENCE, groups=5, batch=10)


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "LONGEST_ONE_BY_ONE", SMALL.batch)


@pytest.mark.parametrize(
    "workload",
    [SMALL, replace(SMALL, kind=Kind.MOVE), replace(SMALL, kind=Kind.MODIFY, delivered=Delivered.TENTH)],
    ids=lambda workload: workload.name,
)
def test_comparison__has_figures_of_every_contender(
    dynamodb_local: DynamoDBLocal, tmp_path: Path, workload: Workload
) -> None:
    results = {workload: compare.compare(workload, dynamodb_local.endpoint, rounds=1)}
    compare.write(results, tmp_path)

    document = json.loads((tmp_path / "comparison.json").read_text())
    assert list(document[workload.name]) == list(NAMES)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert workload.name in compare.table(results)


def test_units_of_the_contenders__are_those_of_their_requests(dynamodb_local: DynamoDBLocal) -> None:
    figures = compare.compare(SMALL, dynamodb_local.endpoint, rounds=1)

    records = {name: sum(of.records) for name, of in figures.items()}
    assert {name: figures[name].units / records[name] for name in write_units.OTHERS} == write_units.OTHERS
    requests = {"naive": 1, "marker per record": 1, "Powertools": 3}
    assert {name: figures[name].requests / records[name] for name in requests} == requests


def test_measured_workers__keep_their_totals_exact(dynamodb_local: DynamoDBLocal) -> None:
    found = concurrency.measured(dynamodb_local.endpoint, workers=2, groups=1, seconds=0.2)

    assert found["records_per_second"] > 0


def test_round_trip__is_added_to_every_request(dynamodb_local: DynamoDBLocal) -> None:
    figures = compare.compare(SMALL, dynamodb_local.endpoint, rounds=1, round_trip=0.02)

    assert figures["naive"].seconds[0] >= figures["naive"].requests * 0.02


def test_simulated_shard_alone__commits_without_conflict() -> None:
    curve = concurrency.Simulation(shards=1, aggregates=10, seconds=4).run()

    assert curve.committed == pytest.approx(curve.offered, rel=0.3)
    assert (curve.conflicts, curve.changed, curve.throttled) == (0, 0, 0)


def test_simulated_hot_aggregate__has_conflicts_and_a_limit() -> None:
    curve = concurrency.Simulation(shards=16, aggregates=1, seconds=2).run()

    assert curve.conflicts > 0
    assert curve.committed < curve.offered


def test_processor_time__is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    processor_time.main(["--records", "20", "--rounds", "1"])

    assert "20 records" in capsys.readouterr().out


def test_long_queue__is_listed_read_and_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    letters.main(["--letters", "200", "--latency", "0.001"])

    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(letters.WORK)
