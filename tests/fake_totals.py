"""Target tables and a ledger in memory, as far as a reconcile reads and corrects them, with a worker that is a method.

Every request is one moment; between two of them `on_request` lets anybody else do something. Knows only the expressions
that `aggregation_worker.reconciliation` sends, and refuses to guess at others.
"""
# ruff: noqa: N803 - the parameters have boto3's names

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError

from aggregation_worker.aggregations.contributions import Aggregation, Contribution, Group, contributions
from aggregation_worker.aggregations.numbers import EXACT
from aggregation_worker.ledger.definition_guard import RECORDED_AT, fingerprint
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    DEFINITION_PAGE,
    EXPIRES_AT,
    PAGE_KEY,
    Posting,
    aggregate_name,
    postings,
    read_receipt,
    receipt_value,
)
from aggregation_worker.streams.records import StreamRecord

LEDGER = "ledger"
Amounts = tuple[Decimal, ...]


class FakeTotals:
    """What boto3's `dynamodb` client is to a reconcile.

    Attributes:
        on_request: called before every request.
        faults: for each transaction to come what goes wrong: `lost` (carried out, no answer), `unsent` (no answer, not
            carried out), an exception that is raised before it is carried out, or `None`.
        page_size: items of one answer of Query and Scan.
    """

    def __init__(self, aggregations: Iterable[Aggregation]) -> None:
        self.ledger: dict[tuple[str, str], dict[str, Any]] = {}
        self.rows: dict[str, dict[Group, dict[str, Any]]] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        self.on_request: Callable[[str], None] = lambda operation: None
        self.faults: deque[Any] = deque()
        self.page_size = 3
        self.tokens: list[str] = []
        for aggregation in aggregations:
            self.rows.setdefault(aggregation.table, {})
            self.keys[aggregation.table] = tuple(key.name for key in aggregation.keys)
            self.ledger[aggregation.name, DEFINITION_PAGE] = {
                "fingerprint": {"S": fingerprint(aggregation)},
                "definition": {"S": aggregation.definition},
                RECORDED_AT: {"N": "1"},
            }

    # --- The worker, and others -----------------------------------------------------------------------------------

    def apply(self, aggregations: Sequence[Aggregation], record: StreamRecord) -> None:
        """Counts one record, once."""
        self.post(contributions(aggregations, record)[0], record)

    def post(self, changes: Sequence[Contribution], record: StreamRecord) -> None:
        """Counts contributions of a record, once."""
        for posting in postings([(0, record, changes)]):
            self.settle(posting)

    def settle(self, posting: Posting) -> None:
        """One contribution: receipt and total together."""
        page = self.ledger.setdefault((posting.aggregate.name, posting.page), {EXPIRES_AT: {"N": "9999999999"}})
        if posting.receipt not in page:
            page[posting.receipt] = receipt_value(posting.amounts)
            self.add(posting.aggregate.aggregation, posting.aggregate.row.group, posting.amounts)

    def add(self, aggregation: Aggregation, group: Group, amounts: Amounts) -> None:
        """Adds to a total and to nothing else."""
        row = self.rows[aggregation.table].setdefault(group, {})
        for measure, amount in zip(aggregation.measures, amounts, strict=True):
            was = Decimal(row.get(measure.name, {"N": "0"})["N"])
            row[measure.name] = {"N": str(EXACT.add(was, amount))}

    def total(self, aggregation: Aggregation, group: Group) -> Amounts:
        """A total as it stands; zeros where there is none."""
        row = self.rows[aggregation.table].get(group, {})
        return tuple(Decimal(row.get(measure.name, {"N": "0"})["N"]) for measure in aggregation.measures)

    def receipts(self, aggregation: Aggregation, group: Group) -> dict[tuple[str, str], Amounts]:
        """All receipts of an aggregate, corrections included, by page and name."""
        wanted = aggregate_name(aggregation.name, group)
        return {
            (page, name): read_receipt(value)
            for (aggregate, page), item in self.ledger.items()
            if aggregate == wanted
            for name, value in item.items()
            if name != EXPIRES_AT
        }

    # --- The client's calls ---------------------------------------------------------------------------------------

    def get_item(self, *, TableName: str, Key: Mapping[str, Any], ConsistentRead: bool) -> dict[str, Any]:
        """One item, of the ledger or of a target table."""
        assert ConsistentRead
        self.on_request("GetItem")
        if TableName == LEDGER:
            place = (Key[AGGREGATE_KEY]["S"], Key[PAGE_KEY]["S"])
            item = self.ledger.get(place)
        else:
            item = self.rows[TableName].get(_group(Key))
        return {} if item is None else {"Item": dict(Key) | dict(item)}

    def query(self, *, TableName: str, ConsistentRead: bool, **request: Any) -> dict[str, Any]:
        """The pages of an aggregate from one on."""
        assert (TableName, ConsistentRead) == (LEDGER, True)
        range_ = request["KeyConditionExpression"].removeprefix("#aggregate = :aggregate AND #page ")
        assert range_ in (">= :first", "BETWEEN :first AND :end")
        self.on_request("Query")
        values = request["ExpressionAttributeValues"]
        aggregate, first = values[":aggregate"]["S"], values[":first"]["S"]
        end = values[":end"]["S"] if ":end" in values else "~"
        assert first <= end
        start = request.get("ExclusiveStartKey", {}).get(PAGE_KEY, {}).get("S", "")
        pages = sorted(
            page for name, page in self.ledger if name == aggregate and first <= page <= end and page > start
        )
        keys = [{AGGREGATE_KEY: {"S": aggregate}, PAGE_KEY: {"S": page}} for page in pages]
        items = [key | self.ledger[aggregate, key[PAGE_KEY]["S"]] for key in keys]
        return self._portion(items, keys)

    def scan(self, *, TableName: str, ConsistentRead: bool, **request: Any) -> dict[str, Any]:
        """A target table's rows."""
        assert ConsistentRead
        self.on_request("Scan")
        names = self.keys[TableName]
        rows = sorted(self.rows[TableName])
        start = request.get("ExclusiveStartKey")
        keys = [{name: {"S": text} for name, text in zip(names, group, strict=True)} for group in rows]
        left = [key for key in keys if start is None or _group(key) > _group(start)]
        return self._portion([key | self.rows[TableName][_group(key)] for key in left], left)

    def put_item(self, *, TableName: str, Item: dict[str, Any], **request: Any) -> dict[str, Any]:
        """An item of the ledger, if the condition holds."""
        assert TableName == LEDGER
        self.on_request("PutItem")
        place = (Item[AGGREGATE_KEY]["S"], Item[PAGE_KEY]["S"])
        if not _holds(request, self.ledger.get(place, {})):
            raise _error("ConditionalCheckFailedException", "PutItem")
        self.ledger[place] = {name: value for name, value in Item.items() if name not in (AGGREGATE_KEY, PAGE_KEY)}
        return {}

    def transact_write_items(self, *, TransactItems: Sequence[Any], ClientRequestToken: str) -> dict[str, Any]:
        """A correction: the ledger's Put and the row's Update."""
        self.on_request("TransactWriteItems")
        assert ClientRequestToken not in self.tokens
        self.tokens.append(ClientRequestToken)
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        if fault == "unsent":
            raise ConnectionClosedError(endpoint_url="http://unsent")
        self._transact(*TransactItems)
        if fault == "lost":
            raise ConnectionClosedError(endpoint_url="http://lost")
        return {}

    def _transact(self, put: Any, update: Any) -> None:
        put, update = put["Put"], update["Update"]
        assert put["TableName"] == LEDGER
        place = (put["Item"][AGGREGATE_KEY]["S"], put["Item"][PAGE_KEY]["S"])
        # A condition on a key attribute that is there tells whether the item is.
        page = {PAGE_KEY: put["Item"][PAGE_KEY]} if place in self.ledger else {}
        row = self.rows[update["TableName"]].get(_group(update["Key"]), {})
        holds = [_holds(put, page), _holds(update, row)]
        if not all(holds):
            error = _error("TransactionCanceledException", "TransactWriteItems")
            codes = ["None" if held else "ConditionalCheckFailed" for held in holds]
            error.response["CancellationReasons"] = [{"Code": code} for code in codes]
            raise error
        self.ledger[place] = {
            name: value for name, value in put["Item"].items() if name not in (AGGREGATE_KEY, PAGE_KEY)
        }
        row = self.rows[update["TableName"]].setdefault(_group(update["Key"]), {})
        names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
        for part in update["UpdateExpression"].removeprefix("ADD ").split(", "):
            name, value = part.split(" ")
            was = Decimal(row.get(names[name], {"N": "0"})["N"])
            row[names[name]] = {"N": str(EXACT.add(was, Decimal(values[value]["N"])))}

    def _portion(self, items: list[dict[str, Any]], keys: list[dict[str, Any]]) -> dict[str, Any]:
        more = {"LastEvaluatedKey": keys[self.page_size - 1]} if len(items) > self.page_size else {}
        return {"Items": list(itertools.islice(items, self.page_size)), **more}


def _group(key: Mapping[str, Any]) -> Group:
    return tuple(next(iter(value.values())) for value in key.values())


def _holds(request: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    names = request.get("ExpressionAttributeNames", {})
    values = request.get("ExpressionAttributeValues", {})

    def holds(part: str) -> bool:
        if part.startswith("attribute_not_exists("):
            return names[part.removeprefix("attribute_not_exists(").removesuffix(")")] not in item
        name, sign, value = part.split(" ")
        assert sign == "="
        (kind,) = values[value]
        stands = item.get(names[name])
        if stands is None or kind not in stands:
            return False
        return Decimal(stands["N"]) == Decimal(values[value]["N"]) if kind == "N" else bool(stands == values[value])

    return all(map(holds, request["ConditionExpression"].split(" AND ")))


def _error(code: str, operation: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "told by the test"}, "ResponseMetadata": {"HTTPStatusCode": 400}},  # type: ignore[typeddict-item]  # part of an answer
        operation,
    )
