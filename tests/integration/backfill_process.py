"""`aggregator backfill` as a process of its own, for a stream that shows a record as soon as it is written.

    python -m tests.integration.backfill_process backfill --state FILE …

DynamoDB Local and ministack do; waiting for a lag that they do not have would only make tests slow.
"""

import sys

from aggregation_worker.operations import backfill
from aggregation_worker.operations.cli import main
from aggregation_worker.streams.reader import StreamReader
from tests.prompt_reader import PromptReader

if __name__ == "__main__":
    setattr(backfill, StreamReader.__name__, PromptReader)
    sys.exit(main())
