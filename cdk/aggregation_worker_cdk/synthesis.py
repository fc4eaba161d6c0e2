"""Synthesis: reads the flags and the definitions file, and writes the template and the function's bundle.

Whatever a user can get wrong ends in one sentence and status 1.
"""

import sys

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from aggregation_worker.aggregations.definitions import DefinitionError, load_definitions
from aggregation_worker.deployment.settings import DeploymentError
from aggregation_worker_cdk.bundle import BundlingError, FunctionBundling
from aggregation_worker_cdk.options import OptionError, read_options
from aggregation_worker_cdk.stack import AggregationStack


def main(app: cdk.App | None = None) -> int:
    """Synthesizes the stack into an app, by default the one that the CDK CLI runs; returns the exit status."""
    app = app or cdk.App()
    bundling: FunctionBundling | None = None
    try:
        options = read_options(app.node.get_all_context())
        definitions = load_definitions(options.definitions_file)
        bundling = FunctionBundling(options.definitions_file)
        AggregationStack(app, options.stack_name, definitions=definitions, options=options, bundling=bundling)
        # Every synthesis is checked, not only the one of the tests; a finding fails it.
        cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
        app.synth()
    except (OptionError, DefinitionError, DeploymentError, BundlingError) as error:
        return _fail(error)
    except RuntimeError as error:
        # An error that has passed through JavaScript has lost its type.
        if bundling is not None and bundling.error is not None:
            return _fail(bundling.error)
        if not str(error).startswith("ValidationFailed"):
            raise
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"error: {error}\n")
    return 1
