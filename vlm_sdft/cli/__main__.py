"""`python -m vlm_sdft.cli`: the command without its script."""

import sys

from vlm_sdft.cli import main

sys.exit(main())
