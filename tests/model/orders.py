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
remove = "ignore"
"""
SOURCE_TABLE = "Order_by_item"
TABLES = {"by-item-and-day": (("item", "S"), ("day", "S")), "others": (("key", "S"),)}

Group = tuple[str, ...]
Amounts = tuple[Decimal, ...]
EXACT = Context(prec=200, traps=[Inexact])


class UnusableError(Exception):
    """An aggregation cannot use the order: it is worth nothing there."""


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
            raise UnusableError
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
        raise UnusableError
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
    """One aggregation as the oracle knows it.

    Attributes:
        numbers: the attributes that it keeps in a row: its measures in the order of the amounts, then what is kept.
        removal: what a removal does: `keep`, `retract` or `ignore`.
    """

    name: str
    table: str
    numbers: tuple[str, ...]
    value: Callable[[Order], tuple[Group, Amounts] | None]
    removal: Callable[[Change], str]
    prefix: str = ""

    def worth(self, order: Order | None) -> tuple[Group, Amounts] | None:
        """What an order is worth.

        Raises:
            UnusableError: it cannot be used.
        """
        value = None if order is None else self.value(order)
        return None if value is None else (value[0], _all_fit(value[1]))

    def contributions(self, change: Change) -> dict[Group, Amounts]:
        """What a change adds to which totals, and to what is kept of them; nothing where that is zero."""
        found: dict[Group, Amounts] = {}
        removal = "retract" if change.new is not None else self.removal(change)
        for order, sign in ((change.old, -1), (change.new, 1)):
            try:
                value = self.worth(order)
            except UnusableError:
                continue
            if value is None or removal == "ignore":
                continue
            group, amounts = value
            zeros = (Decimal(0),) * len(amounts)
            added = tuple(EXACT.multiply(Decimal(sign), amount) for amount in amounts)
            whole = (*zeros, *amounts) if removal == "keep" else (*added, *zeros)
            found[group] = tuple(map(EXACT.add, found.get(group, zeros * 2), whole))
        return {group: amounts for group, amounts in found.items() if any(amounts)}

    def must_be_told(self, change: Change) -> bool:
        """Whether somebody must be told that an image cannot be used."""
        if change.new is None and self.removal(change) != "keep":
            return False
        try:
            self.worth(change.old if change.new is None else change.new)
        except UnusableError:
            return True
        return False


def _numbers(name: str, *measures: str) -> tuple[str, ...]:
    return (*measures, *(f"kept#{name}#{measure}" for measure in measures))


RULES = (
    Rule("units", "by-item-and-day", _numbers("units", "units"), _units, lambda _: "keep"),
    Rule("takings", "by-item-and-day", _numbers("takings", "paid_orders", "revenue"), _takings, lambda _: "retract"),
    Rule(
        "customers",
        "others",
        _numbers("customers", "orders"),
        _customers,
        lambda change: "keep" if change.expired else "retract",
        "customer-",
    ),
    Rule("months", "others", _numbers("months", "orders", "units"), _months, lambda _: "ignore", "month-"),
)

Total = tuple[str, Group]
"""An aggregation's name and a group."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must become of one stream record: what it adds to which totals, and which aggregations tell of it."""

    contributions: dict[Total, Amounts]
    told_by: frozenset[str]


def expected(change: Change) -> Expected:
    """What must become of the record of a change."""
    found = {(rule.name, group): amounts for rule in RULES for group, amounts in rule.contributions(change).items()}
    return Expected(found, frozenset(rule.name for rule in RULES if rule.must_be_told(change)))


def whole(amounts: Amounts, kept: Amounts) -> Amounts:
    """A receipt's contribution and what it keeps, as the oracle has both."""
    return (*amounts, *(kept or (Decimal(0),) * len(amounts)))


def add_up(parts: Iterable[tuple[Total, Amounts]]) -> dict[Total, Amounts]:
    """The totals that contributions make."""
    totals: dict[Total, Amounts] = {}
    for total, amounts in parts:
        before = totals.get(total, (Decimal(0),) * len(amounts))
        totals[total] = tuple(map(EXACT.add, before, amounts))
    return totals
