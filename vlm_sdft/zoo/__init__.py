"""What comes with the package: a tiny vision-language model and drawn objects to teach it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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
