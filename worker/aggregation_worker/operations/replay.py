"""`aggregator replay`: the command line, the progress bar and the closing summary around `replaying`."""

import argparse
from contextlib import ExitStack

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.local.environment import environment_of
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.letters import Groups, LetterReader, source_of
from aggregation_worker.operations.options import add_deployment_options, positive
from aggregation_worker.operations.output import print_json, print_table, progress, say
from aggregation_worker.operations.queue import HeldMessages
from aggregation_worker.operations.replaying import Replay, Send, Summary, in_process, through_function
from aggregation_worker.operations.resources import Resources
from aggregation_worker.operations.selection import Selection, add_selection_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Sends the records of every dead letter that is there now through the deployed function, and deletes a letter "
        "when all of its records are done. A notice is deleted once its item is corrected or gone. Safe to interrupt, "
        "to repeat, and to run twice at once. Exit status 0 only if nothing was left, and nothing is parked again."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be replayed")
    parser.add_argument("--in-process", action="store_true", help="run the worker here, with your own credentials")
    add_selection_options(parser)
    parser.add_argument("--rate", type=positive(float), metavar="N", help="at most so many records a second")
    parser.add_argument(
        "--visibility-timeout",
        type=positive(int),
        default=120,
        metavar="SECONDS",
        help="how soon letters reappear if this command is killed (default: 120)",
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Replays; returns 0 if nothing is left in the queue of what was to be replayed, else 1, and 130 after Ctrl-C."""
    resources = Resources.of(options)
    resources.catalogue.check_image_reading()  # notices are judged here
    if options.in_process:
        resources.catalogue.check_deployed(resources.definitions.aggregations)
    with ExitStack() as stack:
        send: Send | None = None
        if options.in_process and not options.dry_run:
            stack.enter_context(environment_of(worker_environment(resources)))
            send = in_process()
        elif not options.dry_run:
            send = through_function(resources.client("lambda"), resources.function)
        held = stack.enter_context(HeldMessages(resources.sqs, resources.queue_url, options.visibility_timeout))
        read = LetterReader(resources, source_of(resources))
        replay = Replay(resources, held, read, Selection.of(options), send, options.rate)
        if not options.json:
            waiting = held.waiting()
            bar = stack.enter_context(progress())
            task = bar.add_task("replaying letters", total=min(waiting, options.limit or waiting))
            replay.progress = lambda count: bar.advance(task, count)
        summary = replay.run()
    print_summary(summary, as_json=options.json)
    if summary.interrupted:
        return 130
    if summary.ended_by is not None:
        raise CommandError(summary.ended_by)
    return 1 if (summary.left or summary.told_anew) and not options.dry_run else 0


def worker_environment(resources: Resources) -> dict[str, str]:
    """The environment of a function that runs in this process.

    Raises:
        DefinitionError: the definitions file holds a mistake.
    """
    options = resources.options
    definitions = resources.definitions
    chosen = {
        "AWS_PROFILE": options.profile,
        "AWS_DEFAULT_REGION": options.region,
        "AWS_ENDPOINT_URL": options.endpoint_url,
    }
    return {
        **{name: value for name, value in chosen.items() if value},
        "AGGREGATIONS_FILE": str(resources.definitions_file),
        "SOURCE_STREAM_ARN": definitions.source.stream_arn or "",
        "TABLE_PREFIX": definitions.table_prefix,
        "LEDGER_TABLE": resources.ledger_table,
        "LEDGER_RETENTION_DAYS": str(resources.ledger_retention_days),
        "DEAD_LETTER_QUEUE_URL": resources.queue_url,
        "DEAD_LETTER_BUCKET": resources.bucket,
        # The function's log and metrics belong to the function, not to this command's output.
        "POWERTOOLS_LOG_LEVEL": "CRITICAL",
        "POWERTOOLS_METRICS_DISABLED": "true",
    }


def print_summary(summary: Summary, *, as_json: bool) -> None:
    """What a replay did."""
    if as_json:
        print_json(summary.as_json())
        return
    records = summary.records
    rows = [
        ("applied", records[RecordOutcome.APPLIED]),
        ("duplicates, counted already", records[RecordOutcome.DUPLICATE]),
        ("contribute nothing", records[RecordOutcome.NOT_COUNTED]),
        ("counted, but a notice tells of an item that cannot be used", records[RecordOutcome.NOTICED]),
        ("not counted: parked again", records[RecordOutcome.PARKED]),
    ]
    print_table("Records", ("outcome", "records"), [row for row in rows if row[1]] or [("none sent", 0)])
    if summary.left:
        groups = Groups()
        for one in summary.left:
            groups.add((one.kind, one.why), example=", ".join(one.sequence_numbers) or one.message_id)
        left = [(group.count, *group.what, group.example) for group in groups.by_size()]
        print_table("Left in the queue", ("letters", "kind", "why", "for example"), left)
    told_anew = f", {summary.told_anew} told of anew" if summary.told_anew else ""
    not_selected = f", {summary.skipped} not selected" if summary.skipped else ""
    say(f"{summary.done} letters done{told_anew}, {len(summary.left)} left{not_selected}.")
    if summary.interrupted:
        say("Interrupted: every other letter is still in the queue. Run the same command again to go on.")
