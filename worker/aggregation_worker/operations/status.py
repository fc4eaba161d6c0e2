"""`aggregator status`: one screen that says whether the worker is current, whether it loses anything, what waits."""

import argparse
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError  # noqa: A004 - botocore's

from aggregation_worker.aggregations.contributions import contributions
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.deployment.settings import Output
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.reading import read_stored
from aggregation_worker.ledger.receipts import postings
from aggregation_worker.operations.errors import message_of
from aggregation_worker.operations.freshness import counted_up_to, query
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import duration, print_json, print_table
from aggregation_worker.operations.resources import Resources, is_on_this_machine
from aggregation_worker.operations.source import stream_arn_of, stream_reader
from aggregation_worker.streams.records import read_record, stream_of
from aggregation_worker.telemetry import NAMESPACE, SERVICE, Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

_PERIOD = timedelta(hours=1)
_INTERVAL = timedelta(minutes=5)
# A scheduled reconcile runs every day or week.
_RECONCILED = timedelta(days=8)
_POLL_SECONDS = 0.02
# As the alarm iterator-age has it.
_LATE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the screen.

    Attributes:
        value: for programs: a number where it is one; `None` where it is not known.
        text: for people; where it is not known, the reason.
        good: `False` if an operator should look.
    """

    name: str
    value: str | float | None
    text: str
    good: bool = True

    @classmethod
    def number(cls, name: str, number: float, *, good: bool = True) -> "Fact":
        """A fact that is a whole number."""
        return cls(name, int(number), f"{number:.0f}", good)

    @classmethod
    def age(cls, name: str, age: timedelta, *, good: bool = True) -> "Fact":
        """A fact that is an age; for programs in seconds."""
        return cls(name, round(age.total_seconds(), 3), duration(age), good)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "One screen: mapping, iterator age, up to which second all shards are counted, dead letters, the last hour's "
        "records, drift, alarms. Exit status 0 only if there is nothing to look at."
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the facts; returns 0 if all are good, else 1."""
    facts = facts_of(Resources.of(options), datetime.now(UTC))
    if options.json:
        print_json([asdict(fact) for fact in facts])
    else:
        rows = [(fact.name, fact.text, "" if fact.good else "look") for fact in facts]
        print_table("Aggregation worker", ("", "now", ""), rows)
    return 0 if all(fact.good for fact in facts) else 1


def facts_of(resources: Resources, now: datetime) -> list[Fact]:
    """Asks every service; one that does not answer costs its own lines only.

    Raises:
        WorkerError, BotoCoreError, ClientError: the first service's, where none answers or it cannot be reached.
    """
    questions: list[tuple[str, Callable[[], list[Fact]]]] = [("dead letters", lambda: _dead_letters(resources, now))]
    if not resources.options.stack and is_on_this_machine(resources.dynamodb):
        questions.append(("worker", lambda: _worker_on_this_machine(resources)))
    else:
        questions += [
            ("event source mapping", lambda: _mapping(resources)),
            ("metrics", lambda: _metrics(resources, now)),
            ("counted up to, in all shards", lambda: _counted_up_to(resources, now)),
            ("alarms", lambda: _alarms(resources)),
            ("alarms' topic", lambda: _subscribers(resources)),
        ]
    facts: list[Fact] = []
    errors: list[Exception] = []
    for name, ask in questions:
        try:
            facts.extend(ask())
        except (WorkerError, BotoCoreError, ClientError) as error:
            if isinstance(error, ConnectionError) and not facts:
                raise  # the others are as far away, and each would take as long
            errors.append(error)
            facts.append(Fact(name, None, f"not known: {message_of(error)}", good=False))
    if len(errors) == len(questions):
        raise errors[0]
    return facts


def _mapping(resources: Resources) -> list[Fact]:
    mapping = resources.client("lambda").get_event_source_mapping(UUID=resources.name(Output.EVENT_SOURCE_MAPPING))
    state, result, stream = mapping["State"], mapping.get("LastProcessingResult", ""), mapping["EventSourceArn"]
    table = resources.dynamodb.describe_table(TableName=stream_of(stream).table)["Table"]
    is_read = table.get("LatestStreamArn") == stream and table.get("StreamSpecification", {}).get("StreamEnabled")
    says = [
        state,
        *([result] if result else []),
        *([] if is_read else ["its stream is disabled or not the newest one"]),
    ]
    # "OK", "No records processed", or "PROBLEM: …".
    good = state == "Enabled" and not result.startswith("PROBLEM") and bool(is_read)
    return [Fact("event source mapping", ", ".join(says), ", ".join(says), good)]


def _worker_on_this_machine(resources: Resources) -> list[Fact]:
    """Whether the newest record of the stream is counted: a pipeline on this machine has no mapping to ask."""
    definitions = resources.definitions
    reader = stream_reader(resources, stream_arn_of(resources), "TRIM_HORIZON")
    now, raw = time.monotonic(), None
    while not reader.has_passed(now):
        for page in reader.pages():
            raw = page[-1]
        time.sleep(_POLL_SECONDS)
    record = None if raw is None else read_record(raw, definitions.source.origin)
    changes = [] if record is None else contributions(definitions.aggregations, record)[0]
    waiting = [
        posting.aggregate
        for posting in postings([(0, record, changes)] if record is not None else [])
        if posting.receipt not in read_stored(resources.dynamodb, resources.ledger_table, posting.aggregate).receipts
    ]
    text = "has not counted the newest record" if waiting else "has counted all there is"
    return [Fact("worker", text, text, good=not waiting)]


def _dead_letters(resources: Resources, now: datetime) -> list[Fact]:
    names: list[QueueAttributeNameType] = [
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesDelayed",
        "ApproximateNumberOfMessagesNotVisible",
    ]
    attributes = resources.sqs.get_queue_attributes(QueueUrl=resources.queue_url, AttributeNames=names)["Attributes"]
    visible, delayed, held = (int(attributes.get(name, 0)) for name in names)
    facts = [
        Fact.number("dead letters waiting", visible + delayed, good=visible + delayed == 0),
        Fact.number("dead letters that a command holds", held, good=held == 0),
    ]
    if visible:
        oldest = oldest_sent(resources.sqs, resources.queue_url)
        facts += [] if oldest is None else [Fact.age("oldest dead letter, as far as seen", now - oldest, good=False)]
    return facts


def oldest_sent(sqs: "SQSClient", queue_url: str) -> datetime | None:
    """When the oldest of those messages was sent that one read of the queue shows, and leaves in it.

    SQS's own metric leaves out what was received three times.
    """
    answer = sqs.receive_message(
        QueueUrl=queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0, MessageSystemAttributeNames=["SentTimestamp"]
    )
    sent = [int(message["Attributes"]["SentTimestamp"]) for message in answer.get("Messages", [])]
    return datetime.fromtimestamp(min(sent) / 1000, UTC) if sent else None


def _metrics(resources: Resources, now: datetime) -> list[Fact]:
    function, service = {"FunctionName": resources.function}, {"service": service_of(resources)}
    counted = (
        Metric.RECORDS_APPLIED,
        Metric.RECORDS_DUPLICATE,
        Metric.RECORDS_RETRIED,
        Metric.RECORDS_NOTICED,
        Metric.RECORDS_PARKED,
    )
    queries = [query("age", "AWS/Lambda", "IteratorAge", function, "Maximum", _INTERVAL)]
    queries += [query(metric.name.lower(), NAMESPACE, metric.value, service, "Sum", _INTERVAL) for metric in counted]
    values = _newest_first(resources, queries, now - _PERIOD, now)
    drift = [query("drift", NAMESPACE, Metric.AGGREGATE_DRIFT.value, service, "Maximum", _PERIOD)]
    drifted = _newest_first(resources, drift, now - _RECONCILED, now).get("drift")
    facts = [Fact("iterator age", None, "no batches in the last hour")]
    if age := values.get("age"):
        newest = timedelta(milliseconds=age[0])
        facts = [
            Fact.age("iterator age", newest, good=newest < _LATE),
            Fact.age("iterator age, last hour's highest", timedelta(milliseconds=max(age))),
        ]
    for metric in counted:
        total = sum(values.get(metric.name.lower(), []))
        good = metric not in (Metric.RECORDS_NOTICED, Metric.RECORDS_PARKED) or total == 0
        facts.append(Fact.number(f"{metric.value}, last hour", total, good=good))
    if drifted:
        facts.append(Fact.number("totals that differ, by the last reconcile", drifted[0], good=drifted[0] == 0))
    else:
        none = f"no reconcile has told in the last {duration(_RECONCILED)}"
        facts.append(Fact("totals that differ, by the last reconcile", None, none))
    return facts


def _counted_up_to(resources: Resources, now: datetime) -> list[Fact]:
    second = counted_up_to(resources.client("cloudwatch"), resources.function, service_of(resources), now)
    text = "no batches in the last hour" if second is None else moment_text(second)
    return [Fact("counted up to, in all shards", second, text)]


def _newest_first(
    resources: Resources, queries: "list[dict[str, Any]]", start: datetime, end: datetime
) -> dict[str, list[float]]:
    answer = resources.client("cloudwatch").get_metric_data(
        MetricDataQueries=queries, StartTime=start, EndTime=end, ScanBy="TimestampDescending"
    )
    return {result["Id"]: result["Values"] for result in answer["MetricDataResults"]}


def service_of(resources: Resources) -> str:
    """The dimension of this deployment's metrics: what the function's environment says."""
    if resources.stands_alone and not resources.options.function:
        return resources.environment.get("POWERTOOLS_SERVICE_NAME") or SERVICE
    try:
        configuration = resources.client("lambda").get_function_configuration(FunctionName=resources.function)
    except (BotoCoreError, ClientError):
        return SERVICE
    variables: dict[str, str] = configuration.get("Environment", {}).get("Variables", {})
    return variables.get("POWERTOOLS_SERVICE_NAME", SERVICE)


def _alarms(resources: Resources) -> list[Fact]:
    if resources.stands_alone:
        return [Fact("alarms", None, "no stack is asked")]
    pages = resources.client("cloudwatch").get_paginator("describe_alarms")
    found = pages.paginate(StateValue="ALARM", AlarmNamePrefix=f"{resources.name(Output.NAME)}-")
    ringing = [alarm["AlarmName"] for page in found for alarm in page["MetricAlarms"]]
    return [Fact("alarms", ", ".join(ringing), ", ".join(ringing) or "none", good=not ringing)]


def _subscribers(resources: Resources) -> list[Fact]:
    if resources.stands_alone:
        return []
    pages = resources.client("sns").get_paginator("list_subscriptions_by_topic")
    found = pages.paginate(TopicArn=resources.name(Output.ALARM_TOPIC))
    # One that is not confirmed yet has no ARN but a word in its place.
    arns = [one["SubscriptionArn"] for page in found for one in page["Subscriptions"]]
    subscribers = sum(arn.startswith("arn:") for arn in arns)
    text = str(subscribers) if subscribers else "none: nobody is told of an alarm"
    return [Fact("subscribers of the alarms' topic", subscribers, text, good=subscribers > 0)]
