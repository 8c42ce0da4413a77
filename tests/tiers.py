"""The two tiers of the tests: `pytest` runs every promise once, `pytest -m slow` whole runs and further cases."""

from __future__ import annotations

from typing import Any

import pytest


def further(*cases: Any) -> list[Any]:
    """Cases for the second tier, beside the one or two that carry a promise; a tuple is a case of several parameters."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
