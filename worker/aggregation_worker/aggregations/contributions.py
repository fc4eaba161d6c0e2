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
from aggregation_worker.aggregations.expressions import Where
from aggregation_worker.aggregations.measured import MeasuredExpression
from aggregation_worker.aggregations.numbers import EXACT, Amounts, canonical_text, fits, parse_number, product
from aggregation_worker.aggregations.truncation import Truncation
from aggregation_worker.streams.records import EventName, Image, Origin, StreamRecord, StreamViewTypeError

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

    KEEP = "keep"  # the total stays, and what the item was worth is added to what is kept of it
    RETRACT = "retract"  # the item's worth is taken back
    RETRACT_UNLESS_EXPIRED = "retract_unless_expired"  # as `retract`, but as `keep` where TTL removed the item
    IGNORE = "ignore"  # nothing, and it is not even delivered: the total cannot be proved from then on


class KeyType(StrEnum):
    """The DynamoDB type of a key attribute."""

    STRING = "S"
    NUMBER = "N"


@dataclass(frozen=True, slots=True)
class GroupKey:
    """One key attribute of a target table and how its value is taken from an image.

    Without a `path` the `prefix` is the whole value, which all images share.
    """

    name: str
    path: AttributePath | None
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
        if self.path is None:
            return self.prefix
        found = self.path.find(image)
        if found is None:
            return None
        kind, content = found
        try:
            plain = kind == self.type and isinstance(content, str)
            return self._text_of(content if plain else self._as_key(kind, content))
        except ValueError as error:
            raise MalformedValueError(f"{self.path.text}: {error}") from error

    def _as_key(self, kind: str, content: Any) -> str:
        """The text of a value that is not of the key's own type, if it can be a key all the same."""
        cut = self.truncation
        if kind == "BOOL" and isinstance(content, bool) and self.type is KeyType.STRING and cut is None:
            return "true" if content else "false"
        if kind == self.type or (kind == "N" and cut is not None and cut.epoch is not None):
            if isinstance(content, str):
                return content
            raise ValueError("not a number" if kind == "N" else "not a string")
        hint = "; with epoch a number can be a date" if kind == "N" and cut is not None else ""
        raise ValueError(f"grouped by a value of type {kind} where {self.type} belongs{hint}")

    def _text(self, content: str) -> str:
        if self.type is KeyType.NUMBER:
            return canonical_text(parse_number(content))
        text = self.prefix + (self.truncation.apply(content) if self.truncation else content)
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:  # its own message would show part of the value
            raise ValueError("not a Unicode text") from error
        if not content:
            raise ValueError("an empty string cannot be a key")
        if size > self.max_bytes:
            raise ValueError(f"{size} bytes are too long for key attribute {self.name} (at most {self.max_bytes})")
        return text


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an aggregate.

    A sum over what a `measured` expression gives, or over a product of attributes and a constant; with none of them, a
    count of images.
    """

    name: str
    factors: tuple[AttributePath, ...] = ()
    constant: Decimal | None = None
    measured: MeasuredExpression | None = None

    def amount(self, image: Image) -> Decimal | None:
        """What one image adds to this measure; `None` if it lacks an attribute.

        Raises:
            MalformedValueError: a factor is not a number, or the result does not fit a DynamoDB number.
        """
        if self.measured is not None:
            return self.measured.number(image)
        numbers = [] if self.constant is None else [self.constant]
        for path in self.factors:
            found = path.find(image)
            if found is None:
                return None
            kind, content = found
            if kind != "N":
                raise MalformedValueError(f"{path.text}: summed over a value of type {kind} where N belongs")
            try:
                numbers.append(parse_number(content))
            except ValueError as error:
                raise MalformedValueError(f"{path.text}: {error}") from error
        if len(numbers) == 1:
            return numbers[0]
        if not numbers:
            return _ONE
        amount = product(numbers)
        if not fits(amount):
            raise MalformedValueError(f"{self.name}: the product does not fit a DynamoDB number (38 digits)")
        return amount


_ZERO, _ONE = Decimal(0), Decimal(1)


@dataclass(frozen=True, slots=True)
class Index:
    """A global secondary index of a target table. It holds the table's keys, too, and nothing else of a row.

    Attributes:
        keys: attribute name and type: partition key, then sort key if there is one.
        measures: names of the measures that it holds beside its keys.
    """

    name: str
    keys: tuple[tuple[str, KeyType], ...]
    measures: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Aggregation:
    """One definition: which records, grouped how, summed into which table.

    `measures` are in the order of their names, and so are the amounts of every contribution and receipt.
    `definition` is all that the totals depend on, as canonical text (`descriptions.describe`), by which a changed
    definition is noticed. `since`, in epoch seconds, is where the totals begin in a stream that is older than they are:
    records created before it are not counted, whenever and however often they are delivered. `indexes` change nothing
    of what is counted.
    """

    name: str
    table: str
    keys: tuple[GroupKey, ...]
    measures: tuple[Measure, ...]
    remove: RemovePolicy
    where: Where | None = None
    definition: str = ""
    since: int | None = None
    indexes: tuple[Index, ...] = ()

    def value(self, image: Image) -> tuple[Group, tuple[Decimal, ...]] | None:
        """The group an image belongs to and its amount for each measure.

        `None` if `where` excludes it or it lacks a grouping or summed attribute. `where` comes first, so it can exclude
        images whose other values this aggregation could not use.

        Raises:
            MalformedValueError: the image cannot be used: a value has the wrong type, or `where` cannot be evaluated.
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
    """The definitions file: the source table and every aggregation over it.

    Attributes:
        table_prefix: with which the names of the tables of this deployment begin, before those in the file.
    """

    source: "Source"
    aggregations: tuple[Aggregation, ...]
    table_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The table whose stream is read.

    Attributes:
        keys: name and type of its partition key, then of its sort key if there is one; empty where they are not known.
        stream_arn: its stream's, if the table exists already; without, the CDK app creates it.
    """

    table: str
    keys: tuple[tuple[str, KeyType], ...]
    stream_arn: str | None = None

    @property
    def origin(self) -> Origin:
        """Where records must come from: without `stream_arn`, only the table's name is known."""
        return Origin(self.table) if self.stream_arn is None else Origin.of(self.stream_arn)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one record changes in one aggregate, per measure.

    Attributes:
        amounts: new image's worth minus old image's.
        kept: what a removed item keeps contributing to the total; empty where the record keeps nothing.
    """

    aggregation: Aggregation
    group: Group
    amounts: Amounts
    kept: Amounts = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """An image that one aggregation cannot use, so that it is worth nothing, and why."""

    aggregation: str
    reason: str


def contributions(
    aggregations: Iterable[Aggregation], record: StreamRecord
) -> tuple[list[Contribution], list[Unusable]]:
    """What a record changes, in every aggregation it touches, and which aggregations must tell somebody of it.

    A record that moves between groups has two contributions to one aggregation. An image that an aggregation cannot use
    is worth nothing to it, so that the correction of such an item, whose old image is worth nothing, too, brings its
    total right by itself. What is told of is the image that matters: the new one, or that of a removed item whose worth
    would be kept. An aggregation whose `since` is after the record's creation does not read it.

    Raises:
        StreamViewTypeError: a required image is missing: the stream does not deliver both images.
    """
    found: list[Contribution] = []
    unusable: list[Unusable] = []
    for aggregation in aggregations:
        if aggregation.since is not None and record.created_at < aggregation.since:
            continue
        changes, problem = (_removed if record.event_name is EventName.REMOVE else _written)(aggregation, record)
        found += changes
        if problem is not None:
            unusable.append(Unusable(aggregation.name, problem))
    return found, unusable


Worth = tuple[Group, Amounts] | None
"""What an image adds to which group; `None` if it is worth nothing."""

_Found = tuple[list[Contribution], str | None]


def worth(aggregation: Aggregation, image: Image | None) -> tuple[Worth, str | None]:
    """What an image is worth; if it cannot be used, nothing, and why it cannot."""
    try:
        return None if image is None else aggregation.value(image), None
    except MalformedValueError as error:
        return None, str(error)


def _written(aggregation: Aggregation, record: StreamRecord) -> _Found:
    old, _ = worth(aggregation, record.old_image)
    new, problem = worth(aggregation, record.new_image)
    if old is not None and new is not None and old[0] == new[0]:
        return _unless_zero(aggregation, new[0], tuple(map(EXACT.subtract, new[1], old[1]))), problem
    changes = [] if old is None else _unless_zero(aggregation, old[0], tuple(map(EXACT.minus, old[1])))
    if new is not None:
        changes += _unless_zero(aggregation, *new)
    return changes, problem


def _removed(aggregation: Aggregation, record: StreamRecord) -> _Found:
    policy = aggregation.remove
    if policy is RemovePolicy.IGNORE:
        return [], None
    if record.old_image is None:
        raise StreamViewTypeError.missing("OldImage", record.event_name, record.sequence_number)
    old, problem = worth(aggregation, record.old_image)
    keeps = policy is RemovePolicy.KEEP or (policy is RemovePolicy.RETRACT_UNLESS_EXPIRED and record.expired)
    if old is None:
        return [], problem if keeps else None
    if not keeps:
        return _unless_zero(aggregation, old[0], tuple(map(EXACT.minus, old[1]))), None
    nothing = (_ZERO,) * len(old[1])
    return [Contribution(aggregation, old[0], nothing, old[1])] if any(old[1]) else [], None


def _unless_zero(aggregation: Aggregation, group: Group, amounts: Amounts) -> list[Contribution]:
    """The contribution, if there is one: an update that changes no measure writes nothing."""
    return [Contribution(aggregation, group, amounts)] if any(amounts) else []
