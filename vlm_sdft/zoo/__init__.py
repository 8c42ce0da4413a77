"""What comes with the package: a tiny vision-language model and drawn objects to teach it."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_sdft.demos.hub import HubTypes
    from vlm_sdft.zoo.novel_objects import NovelObjects

#: Builtin models: name -> folder in this package.
BUILTIN_MODELS = {"builtin:tiny-qwen3-vl": "tiny-qwen3-vl"}
#: Builtin data: name -> what it is.
BUILTIN_DATA = {"builtin:novel-objects": "drawn objects that the builtin model was never shown, in folders"}

__all__ = ["BUILTIN_DATA", "BUILTIN_MODELS", "options_of", "resolve_data", "resolve_model"]


def resolve_model(name: str) -> str:
    """The folder of a builtin model; any other name is returned as it is.

    Raises:
        ValueError: a ``builtin:`` name that does not exist.
    """
    if not name.startswith("builtin:"):
        return name
    if name not in BUILTIN_MODELS:
        raise ValueError(f"Unknown model {name!r}. Known: {', '.join(BUILTIN_MODELS)}.")
    return str(Path(__file__).parent / BUILTIN_MODELS[name])


def options_of(name: str) -> type[NovelObjects] | type[HubTypes] | None:
    """The options of data that is made by them, ``builtin:`` or ``hub:``; None for a folder or a file.

    Raises:
        ValueError: a ``builtin:`` name that does not exist.
    """
    if name.startswith("hub:"):
        from vlm_sdft.demos.hub import HubTypes

        return HubTypes
    if not name.startswith("builtin:"):
        return None
    if name not in BUILTIN_DATA:
        raise ValueError(f"Unknown data {name!r}. Known: {', '.join(BUILTIN_DATA)}, and hub:OWNER/NAME.")
    from vlm_sdft.zoo.novel_objects import NovelObjects

    return NovelObjects


def resolve_data(name: str, cache_dir: Path, **options: Any) -> Path:
    """The folder of builtin or hub data, made first if need be; any other name is returned as a path.

    Args:
        name: such as "builtin:novel-objects" or "hub:timm/oxford-iiit-pet" ("hub:./folder": a local data set), or a folder.
        cache_dir: where such data is kept: one folder for each set of options.
        options: fields of `options_of` the name; none for a folder.

    Raises:
        ValueError: a ``builtin:`` name that does not exist, options for a folder, or ones that cannot be fulfilled.
    """
    kind = options_of(name)
    if kind is None:
        if options:
            raise ValueError(f"Options {sorted(options)} are for builtin data and data of the hub; {name!r} is a folder.")
        return Path(name)
    known = [f.name for f in fields(kind)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ValueError(f"Unknown option {key!r}. {hint}")
    if name.startswith("hub:"):
        from vlm_sdft.demos.hub import write_hub_types

        return write_hub_types(name.removeprefix("hub:"), cache_dir, **options)
    from vlm_sdft.zoo.novel_objects import write_novel_objects

    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
    folder = f"novel-objects-{options.get('split', 'test')}-{options.get('seed', 0)}-{key}"
    return write_novel_objects(Path(cache_dir) / folder, **options)
