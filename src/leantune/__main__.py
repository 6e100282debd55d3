"""`python -m leantune` is the command `leantune`."""

import sys

from leantune.cli import main

sys.exit(main())
