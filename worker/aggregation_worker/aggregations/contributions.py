"""Aggregations: what each stream record contributes to which totals.

Pure functions of definitions and records. Knows nothing of the ledger, of AWS clients or of Lambda; `definitions` reads
the user's file into the types below.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Any

from aggregation_worker.aggregations.attribute_paths import AttributePath, MalformedValueError
from aggregation_worker.aggregations.numbers import EXACT, canonical_text, fits, parse_number, product
from aggregation_worker.aggregations.truncation import Truncation
from aggregation_worker.aggregations.where import Where
from aggregation_worker.streams.records import EventName, Image, StreamRecord, StreamViewTypeError

Group = tuple[str, ...]
"""The key values of one row of a target table: partition key, then sort key if there is one. Numbers are canonical."""

# The version in which images are read: raise it by one with every change after which an item may be worth something
# else than before (a value that becomes usable or stops being so, a date truncated differently, other arithmetic). The
# catalogue keeps the deployed worker's, so that nobody of another version takes the difference for drift.
IMAGE_READING = 1

# "Naming rules and data types", Amazon DynamoDB developer guide, in bytes of UTF-8.
MAX_PARTITION_KEY_BYTES = 2048
MAX_SORT_KEY_BYTES = 1024

# Values of one key attribute that are cached with the key value they give; each has at most a few KB.
_CACHED_TEXTS = 2_048


class RemovePolicy(StrEnum):
    """What a REMOVE record does to the totals that its item once entered."""

    IGNORE = "ignore"
    RETRACT = "retract"
    RETRACT_UNLESS_EXPIRED = "retract_unless_expired"


class KeyType(StrEnum):
    """The DynamoDB type of a key attribute."""

    STRING = "S"
    NUMBER = "N"


@dataclass(frozen=True, slots=True)
class GroupKey:
    """One key attribute of a target table and how its value is taken from an image."""

    name: str
    path: AttributePath
    type: KeyType = KeyType.STRING
    truncation: Truncation | None = None
    prefix: str = ""
    max_bytes: int = MAX_PARTITION_KEY_BYTES
    # Groups recur: most values were checked and truncated a moment ago.
    _text_of: Callable[[str], str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Gives the key a cache of its own."""
        object.__setattr__(self, "_text_of", lru_cache(_CACHED_TEXTS)(self._text))

    def value(self, image: Image) -> str | None:
        """The key value for an image; `None` if the image lacks the attribute.

        Raises:
            MalformedValueError: it has another type, is not a date where one is truncated, or cannot be a key.
        """
        found = self.path.find(image)
        if found is None:
            return None
        kind, content = found
        if kind != self.type:
            raise MalformedValueError(f"{self.path.text}: grouped by a value of type {kind} where {self.type} belongs")
        if not isinstance(content, str):
            raise MalformedValueError(
                f"{self.path.text}: not a {'number' if self.type is KeyType.NUMBER else 'string'}"
            )
        return self._text_of(content)

    def _text(self, content: str) -> str:
        if self.type is KeyType.NUMBER:
            return canonical_text(_number(self.path, content))
        try:
            text = self.prefix + (self.truncation.apply(content) if self.truncation else content)
            size = len(text.encode())
        except UnicodeEncodeError as error:  # its own message would show part of the value
            raise MalformedValueError(f"{self.path.text}: not a Unicode text") from error
        except ValueError as error:
            raise MalformedValueError(f"{self.path.text}: {error}") from error
        if not content:
            raise MalformedValueError(f"{self.path.text}: an empty string cannot be a key")
        if size > self.max_bytes:
            raise MalformedValueError(
                f"{self.path.text}: {size} bytes are too long for key attribute {self.name} (at most {self.max_bytes})"
            )
        return text


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an aggregate: a sum over a product of attributes or, with no factors, a count of images."""

    name: str
    factors: tuple[AttributePath, ...]

    def amount(self, image: Image) -> Decimal | None:
        """What one image adds to this measure; `None` if it lacks an attribute.

        Raises:
            MalformedValueError: a factor is not a number, or the product does not fit a DynamoDB number.
        """
        numbers = []
        for path in self.factors:
            found = path.find(image)
            if found is None:
                return None
            kind, content = found
            if kind != "N":
                raise MalformedValueError(f"{path.text}: summed over a value of type {kind} where N belongs")
            numbers.append(_number(path, content))
        if len(numbers) == 1:
            return numbers[0]
        if not numbers:
            return _ONE
        amount = product(numbers)
        if not fits(amount):
            raise MalformedValueError(f"{self.name}: the product does not fit a DynamoDB number (38 digits)")
        return amount


_ONE = Decimal(1)


def _number(path: AttributePath, content: object) -> Decimal:
    try:
        return parse_number(content)
    except ValueError as error:
        raise MalformedValueError(f"{path.text}: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Aggregation:
    """One definition: which records, grouped how, summed into which table.

    `measures` are in the order of their names, and so are the amounts of every contribution and receipt.
    `definition` is all that the totals depend on, as canonical text (`definitions.describe`), by which a changed
    definition is noticed. `since`, in epoch seconds, is where the totals begin in a stream that is older than they are:
    records created before it are not counted, whenever and however often they are delivered.
    """

    name: str
    table: str
    keys: tuple[GroupKey, ...]
    measures: tuple[Measure, ...]
    remove: RemovePolicy
    where: Where | None = None
    definition: str = ""
    since: int | None = None

    def value(self, image: Image) -> tuple[Group, tuple[Decimal, ...]] | None:
        """The group an image belongs to and its amount for each measure.

        `None` if `where` excludes it or it lacks a grouping or summed attribute. `where` comes first, so it can exclude
        images whose other values this aggregation could not use.

        Raises:
            MalformedValueError: a value has the wrong type, or `where` cannot be evaluated on it.
        """
        if self.where is not None and not self.where(image):
            return None
        group = tuple([key.value(image) for key in self.keys])
        amounts = tuple([measure.amount(image) for measure in self.measures])
        if None in group or None in amounts:
            return None
        return group, amounts  # type: ignore[return-value]  # no None is left in either


@dataclass(frozen=True, slots=True)
class Definitions:
    """The definitions file: the source table and every aggregation over it."""

    source: "Source"
    aggregations: tuple[Aggregation, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The table whose stream is read. With `stream_arn` it exists already; without, the CDK app creates it."""

    table: str
    keys: tuple[tuple[str, KeyType], ...]
    stream_arn: str | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one record changes in one aggregate: new image minus old image, per measure."""

    aggregation: Aggregation
    group: Group
    amounts: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one aggregation cannot use a record as it is."""

    aggregation: str
    reason: str


def contributions(
    aggregations: Iterable[Aggregation], record: StreamRecord
) -> tuple[list[Contribution], list[Refusal]]:
    """What a record changes, in every aggregation it touches.

    A record that moves between groups has two contributions to one aggregation. An aggregation that cannot use the
    record refuses it whole, old image and new: none of its totals changes; other aggregations count it. One whose
    `since` is after the record's creation does not read it.

    Raises:
        StreamViewTypeError: a required image is missing: the stream does not deliver both images.
    """
    found: list[Contribution] = []
    refusals: list[Refusal] = []
    for aggregation in aggregations:
        if aggregation.since is not None and record.created_at < aggregation.since:
            continue
        try:
            found.extend(_contributions(aggregation, record))
        except MalformedValueError as error:
            refusals.append(Refusal(aggregation.name, str(error)))
    return found, refusals


def _contributions(aggregation: Aggregation, record: StreamRecord) -> list[Contribution]:
    new: Any = None
    old: Any = None
    if record.event_name is EventName.REMOVE:
        if not _retracts(aggregation.remove, record):
            return []
        if record.old_image is None:
            raise StreamViewTypeError.missing("OldImage", record.event_name, record.sequence_number)
        old = aggregation.value(record.old_image)
    else:
        if record.old_image is not None:
            old = aggregation.value(record.old_image)
        if record.new_image is not None:
            new = aggregation.value(record.new_image)
    if new is not None and old is not None and new[0] == old[0]:
        return _unless_zero(aggregation, new[0], _difference(aggregation, new[1], old[1]))
    changes = [] if old is None else _unless_zero(aggregation, old[0], tuple(map(EXACT.minus, old[1])))
    if new is not None:
        changes += _unless_zero(aggregation, *new)
    return changes


def _unless_zero(aggregation: Aggregation, group: Group, amounts: tuple[Decimal, ...]) -> list[Contribution]:
    """The contribution, if there is one: an update that changes no measure writes nothing."""
    return [Contribution(aggregation, group, amounts)] if any(amounts) else []


def _difference(aggregation: Aggregation, new: tuple[Decimal, ...], old: tuple[Decimal, ...]) -> tuple[Decimal, ...]:
    """New minus old; each fits a DynamoDB number, but their difference may not."""
    amounts = tuple(map(EXACT.subtract, new, old))
    for measure, amount in zip(aggregation.measures, amounts, strict=True):
        if not fits(amount):
            raise MalformedValueError(
                f"{measure.name}: new value minus old value does not fit a DynamoDB number (38 digits)"
            )
    return amounts


def _retracts(policy: RemovePolicy, record: StreamRecord) -> bool:
    if policy is RemovePolicy.IGNORE:
        return False
    return policy is RemovePolicy.RETRACT or not record.expired
