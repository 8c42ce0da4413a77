"""The architecture as docs/architecture.md draws it: imports go to floors below, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parent.parent
#: Longest prefix wins.
FLOORS = {
    "text_sdft.core": 0,
    "text_sdft.fast": 1,
    "text_sdft.methods": 2,
    "text_sdft.training": 3,
    "text_sdft": 3,
    "text_sdft.experiments": 4,
    "text_sdft.tasks": 5,
    "vlm_sdft.zoo": 5,
    "vlm_sdft.images": 6,
    "vlm_sdft.demos": 7,
    "vlm_sdft": 8,
    "vlm_sdft.cli": 9,
    "vlm_sdft.__main__": 9,
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
#: Each module and what it names in its imports, those within functions included.
IMPORTS = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports(file) for file in FILES
}


def test_imports_go_downwards():
    upwards = [
        f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"
        for module, names in IMPORTS.items()
        for name in sorted(names)
        if (floor(name) or 0) > (floor(module) or 0)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other_in_a_circle():
    modules = list(IMPORTS)
    arrows = np.array([[other in IMPORTS[module] for other in modules] for module in modules])
    count, circle = connected_components(arrows, connection="strong")
    circles = [[module for module, own in zip(modules, circle, strict=True) if own == number] for number in range(count)]
    assert not [members for members in circles if len(members) > 1]


def test_text_never_imports_vision():
    for file in (ROOT / "text_sdft").rglob("*.py"):
        assert not any(name.split(".")[0] in ("vlm_sdft", "torchvision", "open_clip") for name in imports(file)), file


def test_importing_the_packages_loads_nothing_heavy():
    code = "import sys, text_sdft, vlm_sdft; print([m for m in ('torch', 'torchvision', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_text_path_loads_nothing_of_vision_itself_and_no_adapter_loads_open_clip():
    """(transformers and peft load torchvision by themselves where it is installed.)"""
    code = (
        "import sys, peft; from transformers import AutoTokenizer, Trainer; before = set(sys.modules)\n"
        "from text_sdft import TextAdapter, SDFTTrainer; import text_sdft.experiments.run\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'torchvision', 'open_clip', 'vlm_sdft'}), 'open_clip' in sys.modules)\n"
        "import vlm_sdft.adapter; print('open_clip' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", "False", "False"]


def test_public_names_exist():
    import text_sdft
    import vlm_sdft

    for package in (text_sdft, vlm_sdft):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError):
            package.nothing_of_the_kind  # noqa: B018
