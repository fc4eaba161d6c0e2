"""The CDK app: a stack with one worker. Reads the options and writes the template and the functions' bundles.

Whatever a user can get wrong ends in one sentence and status 1.
"""

import json
import os
import sys
from pathlib import Path

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from aggregation_worker.errors import WorkerError
from aggregation_worker_cdk.deployed import refuse_to_take_apart
from aggregation_worker_cdk.options import Options, read_options
from aggregation_worker_cdk.worker import AggregationWorker


def main(app: cdk.App | None = None) -> int:
    """Synthesizes the stack into an app, by default the one that the CDK CLI runs; returns the exit status."""
    app = app or cdk.App()
    try:
        options = read_options(app.node.get_all_context(), _personal_keys())
        add_stack(app, options)
        # Every synthesis is checked, not only the one of the tests; a finding fails it.
        cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
        app.synth()
    except WorkerError as error:
        return _fail(error)
    except RuntimeError as error:
        if not str(error).startswith("ValidationFailed"):
            raise
        return _fail(error)
    return 0


def add_stack(app: cdk.App, options: Options) -> cdk.Stack:
    """Adds the stack of one worker to an app.

    Raises:
        WorkerError: the definitions or the options hold a mistake, or what is deployed would be taken apart.
    """
    stack = cdk.Stack(
        app,
        options.stack_name,
        description="Exact running totals from the stream of a DynamoDB table",
        termination_protection=not options.throwaway,
    )
    # `Default` leaves no trace in names: the stack is the worker.
    worker = AggregationWorker(
        stack,
        "Default",
        definitions=options.definitions_file,
        table_prefix=options.table_prefix,
        removal_policy=cdk.RemovalPolicy.DESTROY if options.throwaway else cdk.RemovalPolicy.RETAIN,
        alarm_email=options.alarm_email,
        reconcile=options.reconcile,
        reserved_concurrency=options.reserved_concurrency,
    )
    if not options.allow_source_change:
        unseen = refuse_to_take_apart(options.stack_name, worker.definitions, os.environ)
        if unseen is not None:
            cdk.Annotations.of(stack).add_warning(unseen)
    return stack


def _personal_keys() -> list[str]:
    """What the user's own ~/.cdk.json adds to the context of every app."""
    try:
        context = json.loads((Path.home() / ".cdk.json").read_text()).get("context", {})
    except (OSError, ValueError, AttributeError):
        return []
    return list(context)


def _fail(error: Exception) -> int:
    sys.stderr.write(f"error: {error}\n")
    return 1
