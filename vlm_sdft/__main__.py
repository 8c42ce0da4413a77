"""`python -m vlm_sdft`: the command without its script."""

import vlm_sdft.cli.__main__  # noqa: F401
