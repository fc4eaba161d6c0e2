"""The stack as a picture: its boxes are the resources of the synthesized template, and its arrows what they refer to.

Where a box stands is decided here; that it is there, and the numbers in it, are the template's.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from tests.infrastructure.stacks import Stack, plain, synthesized

_WIDTH, _HEIGHT = 960, 376
_BOX_WIDTH, _BOX_HEIGHT = 190, 78
_COLUMNS = (20, 266, 512, 750)
_ROWS = (20, 150, 280)
# What belongs to a box and needs none of its own.
_NOT_DRAWN = {
    "AWS::IAM::Policy",
    "AWS::IAM::Role",
    "AWS::KMS::Key",
    "AWS::Logs::LogGroup",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::QueuePolicy",
}


@dataclass(frozen=True, slots=True)
class Box:
    """A place of the picture.

    Attributes:
        holds: how the names of its resources begin, and of which type they are.
        lines: what is written below its title; `{…}` is a property of its first resource, or their `{count}`.
    """

    column: int
    row: int
    colour: str
    title: str
    holds: tuple[str, str]
    lines: tuple[str, ...]

    @property
    def x(self) -> int:
        """Its left edge."""
        return _COLUMNS[self.column]

    @property
    def y(self) -> int:
        """Its upper edge."""
        return _ROWS[self.row]


@dataclass(frozen=True, slots=True)
class Arrow:
    """What one box sends to another.

    Attributes:
        told_by: the resource that refers to both ends, if it is not one of them.
    """

    start: str
    end: str
    label: str
    told_by: str


_BLUE, _ORANGE, _RED, _GREY = "#dbeafe", "#ffedd5", "#fee2e2", "#eceff3"
BOXES = {
    "source": Box(0, 0, _BLUE, "Source table", ("TablesSource", "AWS::DynamoDB::Table"), ("{TableName}", "its stream")),
    "mapping": Box(
        1,
        0,
        _ORANGE,
        "Event source mapping",
        ("WorkerMapping", "AWS::Lambda::EventSourceMapping"),
        ("{BatchSize:,} records or {MaximumBatchingWindowInSeconds} s", "retries, bisects"),
    ),
    "function": Box(
        2,
        0,
        _ORANGE,
        "Worker function",
        ("WorkerFunction", "AWS::Lambda::Function"),
        ("counts each change once", "{Runtime}, {MemorySize:,} MB"),
    ),
    "targets": Box(
        3,
        0,
        _BLUE,
        "Target tables",
        ("TablesTarget", "AWS::DynamoDB::Table"),
        ("totals, with their", "newest receipts"),
    ),
    "ledger": Box(
        3, 1, _BLUE, "Ledger", ("TablesLedger", "AWS::DynamoDB::Table"), ("older receipts,", "the catalogue")
    ),
    "bucket": Box(
        1, 1, _RED, "Dead-letter bucket", ("DeadLettersBucket", "AWS::S3::Bucket"), ("batches that Lambda", "gave up")
    ),
    "queue": Box(
        2, 1, _RED, "Dead-letter queue", ("DeadLettersQueue", "AWS::SQS::Queue"), ("all that needs", "a person")
    ),
    "alarms": Box(1, 2, _GREY, "{count} alarms", ("", "AWS::CloudWatch::Alarm"), ("one runbook each",)),
    "topic": Box(2, 2, _GREY, "Alarm topic", ("AlarmTopic", "AWS::SNS::Topic"), ("tells you",)),
    "dashboard": Box(3, 2, _GREY, "Dashboard", ("Dashboard", "AWS::CloudWatch::Dashboard"), ("all of it on a page",)),
}
ARROWS = (
    Arrow("source", "mapping", "changes", "WorkerMapping"),
    Arrow("mapping", "function", "batches", "WorkerMapping"),
    Arrow("function", "targets", "adds", "WorkerRole"),
    Arrow("function", "ledger", "archives", "WorkerRole"),
    Arrow("function", "queue", "parks", "WorkerRole"),
    Arrow("mapping", "bucket", "given up", "WorkerMapping"),
    Arrow("bucket", "queue", "tells", "DeadLettersBucket"),
    Arrow("alarms", "topic", "ring", ""),
)


class NotDrawnError(Exception):
    """The stack and the picture have come apart; the message says where."""


def draw(stack: Stack | None = None) -> str:
    """The picture as SVG, of the stack that a plain deploy makes unless another one is given.

    Raises:
        NotDrawnError: a resource has no box, a box no resource, or an arrow is not in the template.
    """
    resources: dict[str, dict[str, Any]] = {}
    for kind in {one["Type"] for one in (stack or synthesized()).template["Resources"].values()}:
        resources |= (stack or synthesized()).of_type(kind.removeprefix("AWS::"))
    held = _held(resources)
    for arrow in ARROWS:
        _check(arrow, held, resources)
    parts = [*_arrows(), *_command(), *(part for name, box in BOXES.items() for part in _box(box, held[name]))]
    return _document(parts)


def _held(resources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The resources of each box."""
    held: defaultdict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for name, resource in resources.items():
        boxes = [box for box, of in BOXES.items() if resource["Type"] == of.holds[1] and name.startswith(of.holds[0])]
        if len(boxes) != 1 and resource["Type"] not in _NOT_DRAWN:
            raise NotDrawnError(f"{name} ({resource['Type']}) is in these boxes: {boxes or 'none'}")
        for box in boxes:
            held[box][name] = resource
    if missing := BOXES.keys() - held:
        raise NotDrawnError(f"these boxes have no resource: {sorted(missing)}")
    return held


def _check(
    arrow: Arrow, held: Mapping[str, Mapping[str, Mapping[str, Any]]], resources: Mapping[str, Mapping[str, Any]]
) -> None:
    """That the template knows of an arrow; without `told_by`, each resource at its start must refer to its end."""
    for teller in [arrow.told_by] if arrow.told_by else held[arrow.start]:
        said = str(plain(resources[teller]["Properties"]))
        for end in (arrow.start, arrow.end):
            # The function's role is the function's.
            its_own = teller in held[end] or (end == "function" and teller == "WorkerRole")
            if not its_own and not any(f"<{name}" in said for name in held[end]):
                raise NotDrawnError(f"{teller} says nothing of {end}")


def _box(box: Box, held: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    properties = {**next(iter(held.values())).get("Properties", {}), "count": len(held)}
    middle = box.x + _BOX_WIDTH / 2
    yield (
        f'<rect x="{box.x}" y="{box.y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="8" fill="{box.colour}" '
        'stroke="#57606a"/>'
    )
    yield _text(middle, box.y + 24, box.title.format(**properties), bold=True)
    for line, words in enumerate(box.lines):
        yield _text(middle, box.y + 44 + 17 * line, words.format(**properties))


def _command() -> Iterator[str]:
    """What the operator has beside the resources."""
    x, y = _COLUMNS[0], _ROWS[1]
    yield (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="8" fill="#ffffff" stroke="#57606a" '
        'stroke-dasharray="5 4"/>'
    )
    yield _text(x + _BOX_WIDTH / 2, y + 24, "aggregator", bold=True)
    for line, words in enumerate(("status, explain, replay,", "backfill, reconcile")):
        yield _text(x + _BOX_WIDTH / 2, y + 44 + 17 * line, words)


def _arrows() -> Iterator[str]:
    """Lines between the edges that face each other."""
    for arrow in ARROWS:
        start, end = BOXES[arrow.start], BOXES[arrow.end]
        if start.column == end.column:
            x1 = x2 = start.x + _BOX_WIDTH / 2
            y1, y2 = float(start.y + _BOX_HEIGHT), float(end.y)
            label = _text(x1 + 8, (y1 + y2) / 2 + 4, arrow.label, anchor="start", size=12)
        else:
            x1, x2 = float(start.x + _BOX_WIDTH), float(end.x)
            y1, y2 = (one.y + _BOX_HEIGHT / 2 for one in (start, end))
            down = start.row != end.row
            y1 += 26 if down else 0
            x, y, anchor = ((x1 + x2) / 2 - 8, (y1 + y2) / 2, "end") if down else ((x1 + x2) / 2, y1 - 8, "middle")
            label = _text(x, y, arrow.label, anchor=anchor, size=12)
        yield f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="#57606a" stroke-width="1.5" marker-end="url(#tip)"/>'
        yield label


def _text(x: float, y: float, words: str, *, bold: bool = False, anchor: str = "middle", size: int = 13) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _document(parts: list[str]) -> str:
    """On white, so that it can be read on a dark page, too."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" fill="#1b1f24" '
            'font-family="Helvetica, Arial, sans-serif">',
            "<title>The stack: tables, event source mapping, function, dead letters, alarms</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )
