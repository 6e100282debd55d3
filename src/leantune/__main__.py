"""`python -m leantune` is the command `leantune`."""

import sys

from leantune.cli.parser import main

sys.exit(main())
