"""`aggregator status`: one screen that says whether the worker is current, whether it loses anything, what waits."""

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.definitions import moment_text
from aggregation_worker.deployment.settings import Output
from aggregation_worker.errors import WorkerError
from aggregation_worker.operations.errors import message_of
from aggregation_worker.operations.freshness import counted_up_to
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import duration, print_json, print_table
from aggregation_worker.operations.resources import Resources
from aggregation_worker.telemetry import NAMESPACE, SERVICE, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PERIOD = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the screen.

    Attributes:
        value: for people; where it is not known, the reason.
        good: `False` if an operator should look.
    """

    name: str
    value: str
    good: bool = True


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "One screen: mapping, dead letters, iterator age, the last hour's records, up to which second all shards are "
        "counted, alarms. Exit status 0 only if there is nothing to look at."
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the facts; returns 0 if all are good, else 1."""
    facts = facts_of(Resources.of(options), datetime.now(UTC))
    if options.json:
        print_json([{"name": fact.name, "value": fact.value, "good": fact.good} for fact in facts])
    else:
        rows = [(fact.name, fact.value, "" if fact.good else "look") for fact in facts]
        print_table("Aggregation worker", ("", "now", ""), rows)
    return 0 if all(fact.good for fact in facts) else 1


def facts_of(resources: Resources, now: datetime) -> list[Fact]:
    """Asks every service; one that does not answer costs its own lines only.

    Raises:
        WorkerError, BotoCoreError, ClientError: the first service's, where none answers.
    """
    questions: Sequence[tuple[str, Callable[[], list[Fact]]]] = (
        ("event source mapping", lambda: _mapping(resources)),
        ("dead letters", lambda: _dead_letters(resources)),
        ("metrics", lambda: _metrics(resources, now)),
        ("counted up to", lambda: _counted_up_to(resources, now)),
        ("alarms", lambda: _alarms(resources)),
    )
    facts: list[Fact] = []
    errors: list[Exception] = []
    for name, ask in questions:
        try:
            facts.extend(ask())
        except (WorkerError, BotoCoreError, ClientError) as error:
            errors.append(error)
            facts.append(Fact(name, f"not known: {message_of(error)}", good=False))
    if len(errors) == len(questions):
        raise errors[0]
    return facts


def _mapping(resources: Resources) -> list[Fact]:
    mapping = resources.client("lambda").get_event_source_mapping(UUID=resources.name(Output.EVENT_SOURCE_MAPPING))
    state = mapping["State"]
    result = mapping.get("LastProcessingResult", "")
    return [Fact("event source mapping", f"{state}, {result}" if result else state, good=state == "Enabled")]


def _dead_letters(resources: Resources) -> list[Fact]:
    attributes = resources.sqs.get_queue_attributes(
        QueueUrl=resources.queue_url,
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )["Attributes"]
    waiting, held = (
        int(attributes["ApproximateNumberOfMessages"]),
        int(attributes["ApproximateNumberOfMessagesNotVisible"]),
    )
    being_replayed = f", {held} being replayed" if held else ""
    return [Fact("dead letters", f"{waiting} waiting{being_replayed}", good=waiting == 0)]


def _metrics(resources: Resources, now: datetime) -> list[Fact]:
    function = {"Name": "FunctionName", "Value": resources.function}
    service = {"Name": "service", "Value": service_of(resources)}
    counted = (Metric.RECORDS_APPLIED, Metric.RECORDS_DUPLICATE, Metric.RECORDS_NOTICED, Metric.RECORDS_PARKED)
    queries: list[dict[str, Any]] = [_query("age", "AWS/Lambda", "IteratorAge", [function], "Maximum")]
    queries += [_query(metric.name.lower(), NAMESPACE, metric.value, [service], "Sum") for metric in counted]
    answer = resources.client("cloudwatch").get_metric_data(
        MetricDataQueries=queries, StartTime=now - _PERIOD, EndTime=now, ScanBy="TimestampDescending"
    )
    values = {result["Id"]: result["Values"] for result in answer["MetricDataResults"]}
    age = values.get("age")
    facts = [
        Fact("iterator age, last hour's highest", duration(timedelta(milliseconds=max(age))) if age else "no batches")
    ]
    for metric in counted:
        total = sum(values.get(metric.name.lower(), []))
        facts.append(
            Fact(
                f"{metric.value}, last hour",
                f"{total:.0f}",
                good=metric not in (Metric.RECORDS_NOTICED, Metric.RECORDS_PARKED) or total == 0,
            )
        )
    return facts


def _counted_up_to(resources: Resources, now: datetime) -> list[Fact]:
    second = counted_up_to(resources.client("cloudwatch"), resources.function, service_of(resources), now)
    return [
        Fact("counted up to, in all shards", "no batches in the last hour" if second is None else moment_text(second))
    ]


def _query(name: str, namespace: str, metric: str, dimensions: list[dict[str, str]], stat: str) -> dict[str, Any]:
    return {
        "Id": name,
        "MetricStat": {
            "Metric": {"Namespace": namespace, "MetricName": metric, "Dimensions": dimensions},
            "Period": 300,  # seconds
            "Stat": stat,
        },
    }


def service_of(resources: Resources) -> str:
    """The dimension of this deployment's metrics: what the function's environment says."""
    try:
        configuration = resources.client("lambda").get_function_configuration(FunctionName=resources.function)
    except (BotoCoreError, ClientError):
        return SERVICE
    variables: dict[str, str] = configuration.get("Environment", {}).get("Variables", {})
    return variables.get("POWERTOOLS_SERVICE_NAME", SERVICE)


def _alarms(resources: Resources) -> list[Fact]:
    stack = resources.stack
    pages = resources.client("cloudwatch").get_paginator("describe_alarms").paginate(StateValue="ALARM")
    ringing = [
        alarm["AlarmName"]
        for page in pages
        for alarm in page["MetricAlarms"]
        if stack in alarm["AlarmName"] or stack in alarm.get("AlarmDescription", "")
    ]
    return [Fact("alarms", ", ".join(ringing) or "none", good=not ringing)]
