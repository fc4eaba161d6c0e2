"""What the CDK CLI runs, see README.md in this folder."""

import sys

from aggregation_worker_cdk.synthesis import main

sys.exit(main())
