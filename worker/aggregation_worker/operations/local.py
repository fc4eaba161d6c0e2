"""`aggregator local`: the pipeline kept running on this machine, for trying things out by hand, until Ctrl-C."""

import argparse
import os
import shlex
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import groupby, islice
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.text import Text

from aggregation_worker.aggregations.definitions import definitions_file
from aggregation_worker.aggregations.numbers import Amounts, canonical_text, sum_of
from aggregation_worker.batch import BatchResult, RecordOutcome
from aggregation_worker.deployment.example import put_item_command, query_command
from aggregation_worker.ledger.receipts import Aggregate
from aggregation_worker.local.delivery import DiscardedBatch, Invocation
from aggregation_worker.local.demo import QUIET_FUNCTION, quiet_mapping
from aggregation_worker.local.pipeline import Pipeline, deployed_handler, running_pipeline
from aggregation_worker.operations.options import add_definitions_option
from aggregation_worker.operations.output import console, number_of, print_json_line, say, shown

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Of one batch, for people.
_MOST_TOTALS = 10
_MOST_ITEMS = 3
_INDENT = len("12:34:56  ")

_WORDS = {
    RecordOutcome.APPLIED: "counted",
    RecordOutcome.DUPLICATE: "counted already",
    RecordOutcome.NOT_COUNTED: "contributing nothing",
    RecordOutcome.NOTICED: "noticed",
    RecordOutcome.PARKED: "parked",
    RecordOutcome.RETRIED: "to come again",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Keeps source table, stream, worker, totals and dead-letter queue running on this machine until Ctrl-C, and "
        "prints what became of each batch."
    )
    add_definitions_option(parser)
    parser.add_argument("--port", type=_port, help="port of the endpoint on 127.0.0.1 (default: a free one)")
    parser.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    parser.add_argument(
        "--quiet", action="store_true", help="print the variables to set, and then only batches that need somebody"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for the start, each batch and the end"
    )


def run(options: argparse.Namespace) -> int:
    """Returns 0 when it was stopped."""
    # A shell starts what it runs in the background with SIGINT ignored.
    _on_signals(signal.default_int_handler)
    stop = threading.Event()
    most_totals = None if options.json else _MOST_TOTALS
    tell = print_json_line if options.json else _print
    results: dict[str, BatchResult] = {}

    def on_batch(invocation: Invocation) -> None:
        result = results.pop(invocation.request_id, None)
        if not options.quiet or not invocation.succeeded or (result and result.reasons):
            tell(batch_facts(pipeline.dynamodb, invocation, result, most_totals))

    def on_discarded(batch: DiscardedBatch, key: str | None) -> None:
        tell(_event("given up", records=len(batch.records), reason=batch.condition.value, bucketKey=key))

    with (
        quiet_mapping(),
        running_pipeline(
            definitions_file(options.definitions, os.environ),
            handler=deployed_handler(results.__setitem__),
            on_batch=on_batch,
            on_discarded=on_discarded,
            environment={} if options.verbose else QUIET_FUNCTION,
            port=options.port,
        ) as pipeline,
    ):
        if options.json:
            tell(_event("started", endpoint=pipeline.server.endpoint, environment=pipeline.environment))
        else:
            _introduce(pipeline, quiet=options.quiet)
        # What is under way ends first, undisturbed by an exception in its middle.
        _on_signals(lambda *_: stop.set())
        pipeline.mapping.run(stop)
        tell(_event("stopped"))
    return 0


def _on_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


# --- What happened, for programs ------------------------------------------------------------------------------------


def _event(name: str, **facts: Any) -> dict[str, Any]:
    return {"event": name, "time": datetime.now().astimezone().isoformat(timespec="milliseconds"), **facts}


def batch_facts(
    dynamodb: "DynamoDBClient", invocation: Invocation, result: BatchResult | None, most_totals: int | None = None
) -> dict[str, Any]:
    """What one invocation did.

    Args:
        result: what became of the records; `None` if the function raised.
        most_totals: at most so many of the totals that changed are read.
    """
    outcomes = () if result is None else result.outcomes
    changes = {} if result is None else _changes(result)
    records = [record.event["dynamodb"] for record in invocation.records]
    return _event(
        "batch",
        records=len(records),
        firstSequenceNumber=records[0]["SequenceNumber"],
        lastSequenceNumber=records[-1]["SequenceNumber"],
        attempt=invocation.attempt,
        milliseconds=round(invocation.duration_ms),
        outcomes={outcome.value: outcomes.count(outcome) for outcome in RecordOutcome if outcome in outcomes},
        error=invocation.error,
        attention=[
            {
                "outcome": outcomes[index].value,
                "key": {name: str(next(iter(value.values()))) for name, value in records[index]["Keys"].items()},
                "sequenceNumber": records[index]["SequenceNumber"],
                "reasons": list(reasons),
            }
            for index, reasons in sorted(result.reasons.items() if result else ())
        ],
        changed=len(changes),
        totals=[_total(dynamodb, *change) for change in islice(changes.items(), most_totals)],
    )


def _changes(result: BatchResult) -> dict[Aggregate, Amounts]:
    """What a batch changed of each aggregate."""
    contributions: dict[Aggregate, list[Amounts]] = {}
    for posting in result.commit.applied:
        contributions.setdefault(posting.aggregate, []).append(posting.amounts)
    changes = {aggregate: sum_of(amounts[1:], amounts[0]) for aggregate, amounts in contributions.items()}
    changed = [aggregate for aggregate, change in changes.items() if any(change)]
    changed.sort(key=lambda aggregate: (aggregate.aggregation.name, aggregate.row.group))
    return {aggregate: changes[aggregate] for aggregate in changed}


def _total(dynamodb: "DynamoDBClient", aggregate: Aggregate, change: Amounts) -> dict[str, Any]:
    row = dynamodb.get_item(TableName=aggregate.row.table, Key=aggregate.row.key(), ConsistentRead=True).get("Item", {})
    return {
        "aggregation": aggregate.aggregation.name,
        "group": aggregate.row.group,
        "measures": {
            measure.name: {"total": row.get(measure.name, {}).get("N"), "change": canonical_text(amount)}
            for measure, amount in zip(aggregate.aggregation.measures, change, strict=True)
        },
    }


# --- What happened, for people --------------------------------------------------------------------------------------


def _introduce(pipeline: Pipeline, *, quiet: bool) -> None:
    server = pipeline.server
    options = ("--endpoint-url", server.endpoint, "--region", server.environment["AWS_REGION"])
    credentials = " ".join(
        f"{name}={shlex.quote(server.environment[name])}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )
    exports = [f"export {name}={shlex.quote(value)}" for name, value in pipeline.environment.items()]
    lines = [
        f"DynamoDB, SQS and S3 answer at {server.endpoint}. Put an order:",
        f"\n{credentials} {put_item_command(pipeline.definitions, *options)}\n",
    ]
    for aggregation in pipeline.definitions.aggregations:
        query = query_command(pipeline.definitions, aggregation, *options)
        lines += [f"and query {aggregation.name}:", f"\n{credentials} {query}\n"]
    lines.append("For aggregator dead-letters, replay --in-process, explain and verify in another terminal:\n")
    for line in exports if quiet else [*lines, *exports, "\nCtrl-C ends it all.\n"]:
        # As one line, however long, so that it can be copied.
        console().print(shown(line), soft_wrap=True)


def _print(facts: Mapping[str, Any]) -> None:
    screen = console()
    if facts["event"] == "stopped":
        screen.print("stopped; nothing is kept")
        return
    clock = f"{datetime.fromisoformat(facts['time']):%H:%M:%S}"
    if facts["event"] == "given up":
        where = f"kept in the bucket as {facts['bucketKey']}" if facts["bucketKey"] else "dropped"
        screen.print(_records(clock, facts), shown("given up", "red"), shown(f"({facts['reason']}), {where}"))
        return
    outcomes = ", ".join(f"{count} {_WORDS[RecordOutcome(name)]}" for name, count in facts["outcomes"].items())
    line = _records(clock, facts) + shown(f" {outcomes or 'failed'}", "green" if outcomes else "red")
    attempt = f", attempt {facts['attempt']}" if facts["attempt"] > 1 else ""
    screen.print(line + shown(f" in {facts['milliseconds']} ms{attempt}"))
    if facts["error"]:
        say(facts["error"], _INDENT, "red")
    _print_attention(facts["attention"])
    for total in facts["totals"]:
        measures = ", ".join(
            f"{name} {one['total']} ({'' if one['change'].startswith('-') else '+'}{one['change']})"
            for name, one in total["measures"].items()
        )
        say(f"{total['aggregation']}: {', '.join(total['group'])}: {measures}", _INDENT)
    if more := facts["changed"] - len(facts["totals"]):
        say(f"and {more} more totals changed", _INDENT)


def _records(clock: str, facts: Mapping[str, Any]) -> Text:
    return shown(f"{clock}  {number_of(facts['records'], 'record')}:")


def _print_attention(attention: list[dict[str, Any]]) -> None:
    """Each outcome and reason once, with the keys of some of the items."""

    def why(one: Mapping[str, Any]) -> tuple[str, str]:
        return _WORDS[RecordOutcome(one["outcome"])], "; ".join(one["reasons"])

    for (outcome, reason), found in groupby(sorted(attention, key=why), why):
        keys = [", ".join(f"{name} {value}" for name, value in one["key"].items()) for one in found]
        more = f"; and {len(keys) - _MOST_ITEMS} more" if len(keys) > _MOST_ITEMS else ""
        say(f"{outcome}: {reason}", _INDENT, "yellow")
        say(f"of {'; '.join(keys[:_MOST_ITEMS])}{more}", _INDENT)
