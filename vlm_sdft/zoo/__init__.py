"""What comes with the package: a tiny vision-language model and drawn objects to teach it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from text_sdft.core.errors import listed

#: Builtin models: name -> folder in this package.
BUILTIN_MODELS = {"builtin:tiny-qwen3-vl": "tiny-qwen3-vl"}
BUILTIN_DATA = "builtin:novel-objects"


def resolve_model(name: str) -> str:
    """The folder of a builtin model; any other name is returned as it is. Raises `ValueError` for an unknown one."""
    if not name.startswith("builtin:"):
        return name
    if name not in BUILTIN_MODELS:
        raise ValueError(f"Unknown model {name!r}. Known: {', '.join(BUILTIN_MODELS)}.")
    return str(Path(__file__).parent / BUILTIN_MODELS[name])


def limits(model: str, names: Iterable[str]) -> list[str]:
    """A sentence on names that a builtin model has no words for; none for other models."""
    if model not in BUILTIN_MODELS:
        return []
    tokenizer = json.loads((Path(resolve_model(model)) / "tokenizer.json").read_text(encoding="utf-8"))
    strange = [name for name in names if not all(w in tokenizer["model"]["vocab"] for w in name.lower().split())]
    told = (
        f"{model} reads drawings of 32 × 32 pixels, and knows no words but a few: it will hardly learn to say "
        f"{listed(strange)}. Your own images need a larger model: --model Qwen/Qwen3-VL-8B-Instruct, for example."
    )
    return [told] if strange else []


def resolve_data(name: str, cache_dir: Path, **options: Any) -> Path:
    """The folder of builtin data, made first if need be; any other name is returned as a path.

    Args:
        name: "builtin:novel-objects", or a folder.
        cache_dir: where such data is kept: one folder for each set of options.
        options: fields of `NovelObjects`; none for a folder.

    Raises `ValueError` for a ``builtin:`` name that does not exist, options for a folder, or ones that cannot be fulfilled.
    """
    if not name.startswith("builtin:"):
        if options:
            raise ValueError(f"Options {sorted(options)} are for builtin data and data of the hub; {name!r} is a folder.")
        return Path(name)
    if name != BUILTIN_DATA:
        raise ValueError(f"Unknown data {name!r}. Known: {BUILTIN_DATA}, and hub:OWNER/NAME.")
    from vlm_sdft.zoo.novel_objects import write_novel_objects

    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
    folder = f"novel-objects-{options.get('split', 'test')}-{options.get('seed', 0)}-{key}"
    return write_novel_objects(Path(cache_dir) / folder, **options)
