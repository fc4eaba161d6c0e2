"""README.md's table of dollars a month is what its command calculates."""

import pytest

from tests.benchmarks import dollars_a_month
from tests.benchmarks.dollars_a_month import HEAD, LOADS, README, REQUESTS, lambda_seconds, row
from tests.benchmarks.write_units import AtOnce


def test_price_of_the_shop__is_the_readmes() -> None:
    assert f"{HEAD}\n{row(LOADS[0])}\n" in README.read_text()


def test_seconds_of_the_game__are_those_of_the_workers_page() -> None:
    page = (README.parent / "worker" / "README.md").read_text()

    for name in ("naive", "Powertools"):
        assert f"takes {lambda_seconds(LOADS[2].batch, REQUESTS[name], 1):.1f} s" in page


def test_requests_side_by_side__take_less_waiting() -> None:
    one_by_one, in_flight = lambda_seconds(16, 1, 1), lambda_seconds(16, 1, 16)

    assert one_by_one - in_flight == pytest.approx(15 * 0.004)


def test_command__says_what_the_readme_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dollars_a_month, "OTHERS", {"naive": 1_000})
    monkeypatch.setattr(dollars_a_month, "LOADS", LOADS[:1])
    monkeypatch.setattr(dollars_a_month, "ProcessPoolExecutor", AtOnce)

    assert dollars_a_month.main([]) == 1

    printed = capsys.readouterr()
    assert "| online shop: 5 orders/s, 1,000 items | **15** | 8,1" in printed.out
    assert "README.md lacks:\n| online shop" in printed.err


@pytest.mark.only_long
def test_every_price__is_the_readmes() -> None:
    assert dollars_a_month.main([]) == 0
