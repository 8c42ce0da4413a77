"""One thread a test process, and the fixtures that several modules share.

(Tiny models are faster on one thread, and results do not depend on the machine's cores.)
"""

from __future__ import annotations

import pytest
import torch

from tests.families import FAMILIES

torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def family_name(request: pytest.FixtureRequest) -> str:
    """Every family whose processor can be made here."""
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' SmolVLM processor needs it")
    return request.param
