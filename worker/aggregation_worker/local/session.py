"""`aggregator local`: the pipeline kept running on this machine, for trying things out by hand."""

import shlex
import signal
import threading
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from aggregation_worker.deployment.example import put_item_command, query_command
from aggregation_worker.local.delivery import DiscardedBatch, Invocation
from aggregation_worker.local.demo import QUIET_FUNCTION, quiet_mapping
from aggregation_worker.local.pipeline import Pipeline, running_pipeline


def run_local(definitions_file: Path, *, port: int | None, verbose: bool) -> int:
    """Runs the pipeline until Ctrl-C or SIGTERM; prints the endpoint, commands to try, and a line per batch."""
    console = Console(highlight=False, soft_wrap=True)
    # A shell starts what it runs in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    def on_batch(invocation: Invocation) -> None:
        console.print(_batch_line(invocation))

    def on_discarded(batch: DiscardedBatch, key: str | None) -> None:
        where = f"kept in the bucket as {key}" if key else "dropped"
        console.print(f"[red]given up[/] {len(batch.records)} records ({batch.condition}), {escape(where)}")

    with (
        quiet_mapping(),
        running_pipeline(
            definitions_file,
            on_batch=on_batch,
            on_discarded=on_discarded,
            environment={} if verbose else QUIET_FUNCTION,
            port=port,
        ) as pipeline,
    ):
        _print_introduction(console, pipeline)
        try:
            pipeline.mapping.run(threading.Event())
        except KeyboardInterrupt:
            console.print("stopping; nothing is kept")
    return 0


def _print_introduction(console: Console, pipeline: Pipeline) -> None:
    server = pipeline.server
    options = ("--endpoint-url", server.endpoint, "--region", server.environment["AWS_REGION"])
    credentials = " ".join(
        f"{name}={shlex.quote(server.environment[name])}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )
    console.print(f"DynamoDB, SQS and S3 answer at [bold]{server.endpoint}[/]. Put an order:\n")
    console.print(escape(f"{credentials} {put_item_command(pipeline.definitions, *options)}"), "\n")
    for aggregation in pipeline.definitions.aggregations:
        console.print(f"and query {escape(aggregation.name)}:\n")
        console.print(escape(f"{credentials} {query_command(pipeline.definitions, aggregation, *options)}"), "\n")
    console.print("For aggregator dead-letters, replay --in-process, explain and verify in another terminal:\n")
    for name, value in pipeline.environment.items():
        console.print(escape(f"export {name}={shlex.quote(value)}"))
    console.print("\nCtrl-C ends it all.\n")


def _batch_line(invocation: Invocation) -> str:
    records = invocation.records
    first, last = records[0].sequence_number, records[-1].sequence_number
    outcome = "[green]done[/]" if invocation.succeeded else f"[yellow]{invocation.done} done, the rest again[/]"
    line = f"{len(records):5} records {first}..{last} {outcome} in {invocation.duration_ms:.0f} ms"
    if invocation.attempt > 1:
        line += f", attempt {invocation.attempt}"
    return line + (f" [red]{escape(invocation.error)}[/]" if invocation.error else "")
