import os

# What the CDK has deprecated is an error, which Node would only print.
os.environ["JSII_DEPRECATED"] = "fail"

import aggregation_worker_cdk  # noqa: F401  # before anything that imports the CDK: it silences jsii's banner
