"""The architecture as docs/architecture.md draws it: a file imports only from floors below its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Longest prefix wins.
FLOORS = {
    "text_sdft.core": 0,
    "text_sdft.fast": 1,
    "text_sdft.methods": 3,
    "text_sdft.training": 3,
    "text_sdft": 3,
    "text_sdft.experiments": 4,
    "text_sdft.tasks": 5,
    "vlm_sdft": 5,
    "vlm_sdft.cli": 6,
    "vlm_sdft.__main__": 6,
}


def floor(module: str) -> int | None:
    parts = module.split(".")
    prefixes = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
    return next((FLOORS[prefix] for prefix in prefixes if prefix in FLOORS), None)


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FILES = sorted([*(ROOT / "text_sdft").rglob("*.py"), *(ROOT / "vlm_sdft").rglob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_go_downwards(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    here = floor(module)
    for name in imports(file):
        there = floor(name)
        assert there is None or there <= here, f"{module} (floor {here}) imports {name} (floor {there})"


def test_text_never_imports_vision():
    for file in (ROOT / "text_sdft").rglob("*.py"):
        assert not any(name.split(".")[0] in ("vlm_sdft", "torchvision", "open_clip") for name in imports(file)), file


def test_importing_the_packages_loads_nothing_heavy():
    code = "import sys, text_sdft, vlm_sdft; print([m for m in ('torch', 'torchvision', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_text_path_loads_no_open_clip_and_nothing_of_vision_itself():
    """(transformers and peft load torchvision by themselves where it is installed.)"""
    code = (
        "import sys, peft; from transformers import AutoTokenizer, Trainer; before = set(sys.modules)\n"
        "from text_sdft import TextAdapter, SDFTTrainer; import text_sdft.experiments.run\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'torchvision', 'open_clip', 'vlm_sdft'}), 'open_clip' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[] False"


def test_public_names_exist():
    import text_sdft
    import vlm_sdft

    for package in (text_sdft, vlm_sdft):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError):
            package.nothing_of_the_kind  # noqa: B018
