"""``python -m pshard`` is the command ``pshard``."""

import sys

from pshard.cli import main

sys.exit(main())
