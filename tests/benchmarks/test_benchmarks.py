"""Every benchmark in miniature, so that none of them rots; what they measure is no test's business."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import compare, concurrency, processor_time, server_time, write_units
from tests.benchmarks.contenders import NAMES, client_of
from tests.benchmarks.workloads import REFERENCE, Delivered, Kind, Workload
from tests.dynamodb_local import DynamoDBLocal

SMALL = replace(REFERENCE, groups=5, batch=10)


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

    found = {name: (of.requests, of.units) for name, of in figures.items() if name != compare.WORKER}

    assert found == {"naive": (10, 10), "marker per record": (10, 40), "Powertools": (30, 30)}


def test_servers_time__bounds_the_comparison(dynamodb_local: DynamoDBLocal) -> None:
    client = client_of(dynamodb_local.endpoint)
    try:
        assert server_time.bound(server_time.ServerTime(client), dynamodb_local.endpoint, rounds=1) > 0
    finally:
        for table in server_time.TABLES:
            client.delete_table(TableName=table)


def test_measured_workers__keep_their_totals_exact(dynamodb_local: DynamoDBLocal) -> None:
    found = concurrency.measured(dynamodb_local.endpoint, workers=2, groups=1, seconds=0.2)

    assert found["records_per_second"] > 0


def test_simulated_shard_alone__commits_without_conflict() -> None:
    curve = concurrency.Simulation(shards=1, aggregates=10, seconds=4).run()

    assert curve.committed == pytest.approx(curve.offered, rel=0.3)
    assert (curve.conflicts, curve.throttled, curve.refused) == (0, 0, 0)


def test_simulated_hot_aggregate__has_conflicts_and_a_limit() -> None:
    curve = concurrency.Simulation(shards=64, aggregates=1, seconds=4).run()

    assert curve.conflicts > 0
    assert curve.committed < curve.offered / 2


def test_processor_time__is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    processor_time.main(["--records", "20", "--rounds", "1"])

    assert "20 records" in capsys.readouterr().out


def test_write_units__are_printed_for_each_choice_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    write_units.main(["--groups", "3", "--batch", "250", "--seconds", "1"])

    assert "uniform" in capsys.readouterr().out
