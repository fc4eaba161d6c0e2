"""The worker as a construct, `AggregationWorker`, and the CDK app's stack of one.

Importing anything from here first keeps jsii, which the CDK runs on, from printing a banner of ten lines about Node 20
in every process; this app and its tests run on Node 20 and newer.
"""

import os

os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

from aggregation_worker_cdk.worker import AggregationWorker

__all__ = ["AggregationWorker"]
