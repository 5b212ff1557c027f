"""`python -m leanvit`."""

import sys

from leanvit.cli import main

sys.exit(main())
