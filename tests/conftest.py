"""One thread a test process, and the fixtures that several modules share.

(Tiny models are faster on one thread, and results do not depend on the machine's cores.)
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.families import FAMILIES, family_folder
from tests.image_files import WHOLE, fill
from tests.tiers import further

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(params=FAMILIES)
def family_name(request: pytest.FixtureRequest) -> str:
    """Every family whose processor can be made here."""
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' SmolVLM processor needs it")
    return request.param


#: One family whose images are encoded one by one, and one whose images are not.
SAMPLE = ("qwen3_vl", "llava_onevision")


@pytest.fixture(params=[*SAMPLE, *further(*(name for name in FAMILIES if name not in SAMPLE))])
def trained_family(request: pytest.FixtureRequest) -> str:
    """Every family, for tests that train: two of them in the default tier."""
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' SmolVLM processor needs it")
    return request.param


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of images with every part that a folder may have; tests leave it as it is."""
    return str(fill(tmp_path_factory.mktemp("data") / "my objects", WHOLE))


@pytest.fixture(scope="session")
def model() -> str:
    """The folder of a tiny vision-language model."""
    return str(family_folder("qwen3_vl"))
