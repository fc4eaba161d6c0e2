"""The catalogue: what a definitions file would lose or double is noticed before anything is written."""

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from freezegun import freeze_time

from aggregation_worker.aggregations.contributions import IMAGE_READING
from aggregation_worker.ledger import catalogue
from aggregation_worker.ledger.catalogue import CatalogueError, read_catalogue, register, retire
from tests.definition_texts import aggregation, aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, FaultyDynamoDB, client_error
from tests.postings import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "item_count_by_date"
OTHER = aggregation_text(name="other", table="other")
NOW = "2024-07-15T09:40:00.9Z"


class Ledger:
    """A ledger that counts reads and writes, with workers that start and operators who retire.

    Attributes:
        before_write: called before the next write, and then no more.
    """

    def __init__(self) -> None:
        self.tables = FaultyDynamoDB(REFERENCE)
        self.reads = 0
        self.writes = 0
        self.before_write: list[Callable[[], object]] = []
        self.client: Any = self

    def get_item(self, **request: Any) -> dict[str, Any]:
        self.reads += 1
        assert request["ConsistentRead"] is True
        return self.tables.get_item(**request)

    def put_item(self, **request: Any) -> dict[str, Any]:
        self.writes += 1
        if self.before_write:
            self.before_write.pop()()
        return self.tables.put_item(**request)

    def start(self, *texts: str) -> None:
        """A worker starts with a file of these aggregations; without any, the reference scenario."""
        register(self.client, LEDGER, definitions(*texts).aggregations)

    def retire(self, name: str = NAME) -> None:
        retire(self.client, LEDGER, name)

    def refused(self, *texts: str) -> str:
        """Why such a worker does not start; it has changed nothing."""
        before = self.item()
        with pytest.raises(CatalogueError) as refused:
            self.start(*texts)
        assert self.item() == before
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def item(self) -> dict[str, Any]:
        (item,) = self.tables.tables[LEDGER].items.values()
        return item

    def entries(self) -> dict[str, Any]:
        """What the item says of each aggregation."""
        return {name: entry["M"] for name, entry in self.item()["aggregations"]["M"].items()}


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def started(ledger: Ledger) -> Ledger:
    """The reference scenario has counted."""
    ledger.start()
    return ledger


# --- What is recorded -------------------------------------------------------------------------------------------------


@freeze_time(NOW)
def test_new_aggregation__is_recorded_once(ledger: Ledger) -> None:
    ledger.start()
    ledger.start()

    assert ledger.item().keys() == {"aggregate", "page", "aggregations", "image_reading"}
    assert ledger.item()["aggregate"] == {"S": "#catalogue"}
    assert ledger.item()["image_reading"] == {"N": str(IMAGE_READING)}
    assert ledger.entries() == {
        NAME: {"definition": {"S": aggregation().definition}, "recorded_at": {"N": "1721036400"}}
    }
    assert (ledger.reads, ledger.writes) == (2, 1)


def test_catalogue__is_read_as_it_was_written(ledger: Ledger) -> None:
    with freeze_time(NOW):
        ledger.start(aggregation_text('count = "orders"'), OTHER)
    with freeze_time("2024-07-16T09:40:00Z"):
        ledger.retire("other")

    found = read_catalogue(ledger.client, LEDGER)

    first, second = found.entries[NAME], found.entries["other"]
    assert (first.table, first.measures) == (NAME, ("orders", "quantity"))
    assert (first.recorded_at, first.retired_at) == (1_721_036_400, None)
    assert (second.recorded_at, second.retired_at) == (1_721_036_400, 1_721_122_800)
    assert found.image_reading == IMAGE_READING


@freeze_time(NOW)
def test_moment_of_recording__is_known_only_where_recorded(ledger: Ledger) -> None:
    assert read_catalogue(ledger.client, LEDGER).recorded_at(aggregation()) is None
    assert ledger.writes == 0

    ledger.start()

    assert read_catalogue(ledger.client, LEDGER).recorded_at(aggregation()) == 1_721_036_400


def test_file_with_one_more_aggregation__adds_it_and_keeps_the_rest(ledger: Ledger) -> None:
    with freeze_time(NOW):
        ledger.start()
    with freeze_time("2024-07-16T09:40:00Z"):
        ledger.start(aggregation_text(), OTHER)

    assert {name: entry["recorded_at"]["N"] for name, entry in ledger.entries().items()} == {
        NAME: "1721036400",
        "other": "1721122800",
    }


def test_what_a_later_version_has_added__is_kept(started: Ledger) -> None:
    started.item()["note"] = {"S": "of the item"}
    started.entries()[NAME]["note"] = {"S": "of the aggregation"}

    started.start(aggregation_text(), OTHER)
    started.retire()

    assert started.item()["note"] == {"S": "of the item"}
    assert started.entries()[NAME]["note"] == {"S": "of the aggregation"}


# --- A changed definition ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (aggregation_text('remove = "retract"'), 'remove was "keep", is "retract"'),
        (aggregation_text("where = \"status == 'paid'\""), "where was absent, is \"status == 'paid'\""),
        (aggregation_text(sum='{ quantity = "amount" }'), '(measures.quantity.0 was "quantity", is "amount")'),
        (aggregation_text(sort_key=None), 'keys.1.from was "order_date", is absent; keys.1.name was '),
        (aggregation_text(table="elsewhere"), f'table was "{NAME}", is "elsewhere"'),
        (aggregation_text('since = "2024-07-15T00:00:00Z"'), 'since was absent, is "2024-07-15T00:00:00Z"'),
    ],
)
def test_changed_definition__is_refused_with_what_to_do(started: Ledger, text: str, difference: str) -> None:
    message = started.refused(text)

    assert "aggregation 'item_count_by_date' has changed" in message
    assert difference in message
    assert "restore the definition, or give the aggregation a new name and a table of its own" in message


def test_changed_definition__names_only_what_differs(started: Ledger) -> None:
    assert "measures" not in started.refused(aggregation_text('remove = "retract"'))


def test_restored_definition__works_again(started: Ledger) -> None:
    started.refused(aggregation_text('remove = "retract"'))

    started.start(aggregation_text("# a comment"))

    assert started.writes == 1


def test_index__comes_and_goes_unnoticed(started: Ledger) -> None:
    started.start(aggregation_text('indexes = [{ name = "by_day", partition_key = "order_date" }]'))
    started.start(aggregation_text())

    assert started.writes == 1


# --- Another aggregation for the same totals --------------------------------------------------------------------------


def renamed(**changes: Any) -> str:
    return aggregation_text(**{"name": "item_count_2", **changes})


def test_second_aggregation_of_a_measure__is_refused(started: Ledger) -> None:
    """Renamed and backfilled as told, it would double every total."""
    message = started.refused(renamed())

    assert (
        "'item_count_2' would add to quantity of table 'item_count_by_date', where 'item_count_by_date' has" in message
    )
    assert "give it another table, or its measures other names" in message


def test_aggregation_of_a_retired_ones_measure__is_refused(started: Ledger) -> None:
    started.retire()

    assert "where 'item_count_by_date' has counted already" in started.refused(renamed())


@pytest.mark.parametrize(
    "text",
    [renamed(table="item_count_2"), renamed(sum='{ sold = "quantity" }'), renamed(sum=None, more='count = "orders"')],
    ids=["another table", "another measure", "a count"],
)
def test_aggregation_with_totals_of_its_own__is_recorded(started: Ledger, text: str) -> None:
    started.start(aggregation_text(), text)

    assert started.entries().keys() == {NAME, "item_count_2"}


@pytest.mark.parametrize(("prefix", "apart"), [("day#", True), ("month#2", False), ("", False)])
def test_prefixes__keep_a_retired_ones_rows_apart(ledger: Ledger, prefix: str, apart: bool) -> None:
    def by_month(name: str, prefix: str) -> str:
        return aggregation_text(
            name=name, partition_key=f'{{ name = "item_number", from = "item_number", prefix = "{prefix}" }}'
        )

    ledger.start(by_month("first", "month#"))
    ledger.retire("first")

    if apart:
        ledger.start(by_month("second", prefix))
    else:
        assert "'second' would add to quantity" in ledger.refused(by_month("second", prefix))


def test_table_that_was_made_anew_with_other_keys__has_none_of_the_old_totals(started: Ledger) -> None:
    started.retire()

    started.start(renamed(sort_key=None))

    assert started.entries().keys() == {NAME, "item_count_2"}


# --- A missing aggregation, and retiring ------------------------------------------------------------------------------


def test_file_that_lacks_an_aggregation__is_refused(ledger: Ledger) -> None:
    """A rollback to before it was added, or a wrong file: its records would pass it by."""
    ledger.start(aggregation_text(), OTHER)

    message = ledger.refused(aggregation_text())

    assert "the definitions file lacks 'other', which counted until now and would miss records" in message
    assert message.endswith("use the file that has it, or, if it is never to count again, run aggregator retire other")


def test_several_missing_aggregations__are_all_named(started: Ledger) -> None:
    started.start(aggregation_text(), OTHER)

    assert "lacks 'item_count_by_date', 'other', which" in started.refused(renamed(table="item_count_2"))


def test_file_that_lacks_a_retired_aggregation__works(ledger: Ledger) -> None:
    ledger.start(aggregation_text(), OTHER)
    ledger.refused(OTHER)

    ledger.retire()
    ledger.start(OTHER)

    assert read_catalogue(ledger.client, LEDGER).entries[NAME].retired_at is not None


def test_retired_name__never_counts_again(ledger: Ledger) -> None:
    ledger.start(aggregation_text(), OTHER)
    with freeze_time(NOW):
        ledger.retire()

    for text in (aggregation_text(), aggregation_text('remove = "retract"')):
        message = ledger.refused(text, OTHER)
        assert "'item_count_by_date' was retired at 2024-07-15T09:40:00Z, and a retired name never counts" in message


def test_retiring_again__keeps_the_first_moment(started: Ledger) -> None:
    with freeze_time(NOW):
        started.retire()
    first = started.item()

    started.retire()

    assert started.item() == first
    assert started.writes == 2


def test_retiring_what_never_counted__names_what_has(started: Ledger) -> None:
    with pytest.raises(
        CatalogueError, match="no aggregation named 'x' has counted; those that have: item_count_by_date"
    ):
        started.retire("x")


# --- The version in which images are read -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [IMAGE_READING - 1, IMAGE_READING + 1])
def test_worker_of_another_version__is_recorded_and_the_rest_is_refused(
    started: Ledger, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "IMAGE_READING", version)
        started.start()

    found = read_catalogue(started.client, LEDGER)
    assert found.image_reading == version
    found.check([aggregation()])
    with pytest.raises(CatalogueError, match=rf"in version {version}, this aggregator in version {IMAGE_READING},"):
        found.check_image_reading()


def test_version__matters_only_once_a_worker_has_started(ledger: Ledger) -> None:
    found = read_catalogue(ledger.client, LEDGER)

    found.check([aggregation()])
    found.check_image_reading()

    assert ledger.writes == 0


def test_counting_in_the_workers_place__needs_its_file_and_its_version(
    started: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_catalogue(started.client, LEDGER)
    both = definitions(aggregation_text(), OTHER).aggregations

    found.check(both)
    found.check_deployed(both[:1])
    with pytest.raises(CatalogueError, match="no worker has started with aggregation 'other' yet: deploy it first"):
        found.check_deployed(both)
    monkeypatch.setattr(catalogue, "IMAGE_READING", IMAGE_READING + 1)
    with pytest.raises(CatalogueError, match="reads images in version"):
        found.check_deployed(both[:1])


# --- Others at the same time ------------------------------------------------------------------------------------------


def test_another_worker_with_the_same_file__changes_nothing(ledger: Ledger) -> None:
    ledger.before_write = [ledger.start]

    ledger.start()

    assert ledger.entries().keys() == {NAME}


def test_another_workers_new_aggregation__is_not_overwritten(started: Ledger) -> None:
    third = aggregation_text(name="third", table="third")
    started.before_write = [lambda: started.start(aggregation_text(), OTHER)]

    with pytest.raises(CatalogueError, match="lacks 'other'"):
        started.start(aggregation_text(), third)

    assert started.entries().keys() == {NAME, "other"}


def test_aggregation_that_is_retired_meanwhile__is_not_started(started: Ledger) -> None:
    started.before_write = [started.retire]

    with pytest.raises(CatalogueError, match="'item_count_by_date' was retired"):
        started.start(aggregation_text(), OTHER)

    assert started.entries().keys() == {NAME}


def test_worker_that_starts_while_another_is_retired__is_kept(ledger: Ledger) -> None:
    ledger.start(aggregation_text(), OTHER)
    third = aggregation_text(name="third", table="third")
    ledger.before_write = [lambda: ledger.start(aggregation_text(), OTHER, third)]

    ledger.retire("other")

    assert {name: "retired_at" in entry for name, entry in ledger.entries().items()} == {
        NAME: False,
        "other": True,
        "third": False,
    }


def test_answer_that_is_lost__is_harmless(ledger: Ledger) -> None:
    """Botocore sends the request again, and its condition does not hold any more."""
    put_item = ledger.tables.put_item
    ledger.tables.put_item = lambda **request: (put_item(**request), put_item(**request))[1]  # type: ignore[method-assign]  # sent twice

    ledger.start()

    assert ledger.entries().keys() == {NAME}
    assert ledger.writes == 1


def test_catalogue_that_never_stays_the_same__is_given_up(started: Ledger) -> None:
    def disturb() -> None:
        started.item()["image_reading"] = {"N": str(started.writes + 100)}
        started.before_write = [disturb]

    started.before_write = [disturb]

    with pytest.raises(CatalogueError, match="changed all the time by others: try again"):
        started.start(aggregation_text(), OTHER)


def test_ledger_that_cannot_be_written__raises_the_error(ledger: Ledger) -> None:
    def deny() -> None:
        raise client_error("AccessDeniedException")

    ledger.before_write = [deny]

    with pytest.raises(ClientError, match="AccessDeniedException"):
        ledger.start()


def test_catalogue__costs_one_read_and_no_write_when_nothing_is_new(ledger: Ledger) -> None:
    many = [aggregation_text(name=f"n{number}", table=f"table{number}") for number in range(20)]
    ledger.start(*many)

    ledger.start(*many)

    assert (ledger.reads, ledger.writes) == (2, 1)
