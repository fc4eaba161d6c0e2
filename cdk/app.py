"""What the CDK CLI runs, see README.md in this folder."""

import sys

from infrastructure.synthesis import main

sys.exit(main())
