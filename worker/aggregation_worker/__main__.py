"""`python -m aggregation_worker` is the `aggregator` command."""

import sys

from aggregation_worker.operations.cli import main

if __name__ == "__main__":
    sys.exit(main())
