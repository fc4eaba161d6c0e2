"""The source of the model tests: orders, four aggregations over them, and what their totals must be.

The oracle: what each change contributes is said here a second time, in as few words as possible and without a line of
`aggregations.contributions`. Definitions and oracle are written beside each other so that they can be compared by eye.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from typing import Any

# Two aggregations share the rows of one table, two others share a table and keep their rows apart. Every policy for
# removed items occurs.
DEFINITIONS = """
[source]
table = "Order_by_item"
partition_key = "orderid"

[[aggregations]]
name = "units"
table = "by-item-and-day"
partition_key = { name = "item", from = "item_number" }
sort_key = { name = "day", from = "order_date", truncate = "day" }
sum = { units = "quantity" }

[[aggregations]]
name = "takings"
table = "by-item-and-day"
partition_key = { name = "item", from = "item_number" }
sort_key = { name = "day", from = "order_date", truncate = "day" }
sum = { revenue = "quantity * price" }
count = "paid_orders"
where = "paid"
remove = "retract"

[[aggregations]]
name = "customers"
table = "others"
partition_key = { name = "key", from = "customer", prefix = "customer-" }
count = "orders"
remove = "retract_unless_expired"

[[aggregations]]
name = "months"
table = "others"
partition_key = { name = "key", from = "order_date", truncate = "month", prefix = "month-" }
sum = { units = "quantity" }
count = "orders"
remove = "retract"
"""
SOURCE_TABLE = "Order_by_item"
TABLES = {"by-item-and-day": (("item", "S"), ("day", "S")), "others": (("key", "S"),)}

Group = tuple[str, ...]
Amounts = tuple[Decimal, ...]
EXACT = Context(prec=200, traps=[Inexact])


class RefusedError(Exception):
    """An aggregation cannot use the order: it must count neither its old image nor its new one."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order; a `quantity` of `None` is a text where a number belongs."""

    item: str = "item123"
    day: str = "2024-07-15"
    customer: str | None = "c1"
    paid: bool = True
    quantity: str | None = "1"
    price: str = "1"
    note: str = ""

    def item_of(self, orderid: str) -> dict[str, Any]:
        """The item in DynamoDB's typed JSON."""
        found: dict[str, Any] = {
            "orderid": {"S": orderid},
            "item_number": {"S": self.item},
            "order_date": {"S": f"{self.day}T09:40:00Z"},
            "customer": {"NULL": True} if self.customer is None else {"S": self.customer},
            "paid": {"BOOL": self.paid},
            "quantity": {"S": "many"} if self.quantity is None else {"N": self.quantity},
            "price": {"N": self.price},
        }
        return found | ({"note": {"S": self.note}} if self.note else {})

    @property
    def units(self) -> Decimal:
        """The quantity as a number."""
        if self.quantity is None:
            raise RefusedError
        return Decimal(self.quantity)


@dataclass(frozen=True, slots=True)
class Change:
    """What one stream record says."""

    old: Order | None
    new: Order | None
    expired: bool = False


def fits(amount: Decimal) -> bool:
    """Whether a DynamoDB number can hold it: 38 digits."""
    return len("".join(map(str, amount.as_tuple().digits)).strip("0")) <= 38


def _all_fit(amounts: Amounts) -> Amounts:
    if not all(map(fits, amounts)):
        raise RefusedError
    return amounts


def _units(order: Order) -> tuple[Group, Amounts] | None:
    return (order.item, order.day), (order.units,)


def _takings(order: Order) -> tuple[Group, Amounts] | None:
    if not order.paid:
        return None
    return (order.item, order.day), (Decimal(1), EXACT.multiply(order.units, Decimal(order.price)))


def _customers(order: Order) -> tuple[Group, Amounts] | None:
    return ((f"customer-{order.customer}",), (Decimal(1),)) if order.customer is not None else None


def _months(order: Order) -> tuple[Group, Amounts] | None:
    return (f"month-{order.day[:7]}",), (Decimal(1), order.units)


@dataclass(frozen=True, slots=True)
class Rule:
    """One aggregation as the oracle knows it: `measures` in the order of the amounts, and what a removal does."""

    name: str
    table: str
    measures: tuple[str, ...]
    value: Callable[[Order], tuple[Group, Amounts] | None]
    retracts: Callable[[Change], bool]
    prefix: str = ""

    def contributions(self, change: Change) -> dict[Group, Amounts]:
        """What a change adds to which totals; nothing where that is zero.

        Raises:
            RefusedError: one of the images cannot be used.
        """
        found: dict[Group, Amounts] = {}
        for order, sign in ((change.old, -1), (change.new, 1)):
            if order is None or (change.new is None and not self.retracts(change)):
                continue
            value = self.value(order)
            if value is not None:
                group, amounts = value[0], _all_fit(value[1])
                before = found.get(group, (Decimal(0),) * len(amounts))
                found[group] = tuple(
                    EXACT.add(b, EXACT.multiply(Decimal(sign), amount))
                    for b, amount in zip(before, amounts, strict=True)
                )
        return {group: _all_fit(amounts) for group, amounts in found.items() if any(amounts)}


RULES = (
    Rule("units", "by-item-and-day", ("units",), _units, lambda _: False),
    Rule("takings", "by-item-and-day", ("paid_orders", "revenue"), _takings, lambda _: True),
    Rule("customers", "others", ("orders",), _customers, lambda change: not change.expired, "customer-"),
    Rule("months", "others", ("orders", "units"), _months, lambda _: True, "month-"),
)

Total = tuple[str, Group]
"""An aggregation's name and a group."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must become of one stream record: what it adds to which totals, and which aggregations refuse it."""

    contributions: dict[Total, Amounts]
    refused_by: frozenset[str]


def expected(change: Change) -> Expected:
    """What must become of the record of a change."""
    found: dict[Total, Amounts] = {}
    refused_by = set()
    for rule in RULES:
        try:
            found |= {(rule.name, group): amounts for group, amounts in rule.contributions(change).items()}
        except RefusedError:
            refused_by.add(rule.name)
    return Expected(found, frozenset(refused_by))


def add_up(parts: Iterable[tuple[Total, Amounts]]) -> dict[Total, Amounts]:
    """The totals that contributions make."""
    totals: dict[Total, Amounts] = {}
    for total, amounts in parts:
        before = totals.get(total, (Decimal(0),) * len(amounts))
        totals[total] = tuple(map(EXACT.add, before, amounts))
    return totals
