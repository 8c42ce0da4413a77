"""Whether work that goes on has the settings with which it began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from text_sdft.core.data import Demonstration, Example
from text_sdft.core.files import fingerprint
from text_sdft.experiments.gone import GONE, Gone

Settings = dict[str, Any]

#: Settings by which no number changes: where things lie, what is kept and shown, how much is done at once.
FREE = {"data.cache", "data.image_features_dir", "eval.batch_size"} | {
    f"train.{name}"
    for name in (
        "output_dir", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "push_to_hub",
        "resume_from_checkpoint", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
        "activation_checkpointing_kwargs", "distillation_chunk_size",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    )
}  # fmt: skip
FREE_BEGINNINGS = ("train.save_", "train.log", "train.hub_")
FREE_END = "_gib"
#: One query to a forward pass or several, on one process or more: a step is the mean over all of its queries.
BATCH = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")
QUERIES = f"processes × {' × '.join(BATCH)}"


def flattened(settings: Settings) -> Settings:
    """``{section: {key: value}}`` as ``{section.key: value}``, with values as JSON keeps them."""
    flat: Settings = {}
    for section, part in json.loads(json.dumps(settings, default=str)).items():
        flat |= {f"{section}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {section: part}
    return flat


def resumable(settings: Settings, processes: int = 1) -> Settings:
    """Those of a run's settings, flattened, that must stay as they are when it goes on."""
    flat = flattened(settings)
    kept = {
        k: v for k, v in flat.items() if k not in FREE and not k.startswith(FREE_BEGINNINGS) and not k.endswith(FREE_END)
    }
    if all(key in kept for key in BATCH):
        kept[QUERIES] = kept.pop(BATCH[0]) * kept.pop(BATCH[1]) * processes
    return kept


def first_change(before: Settings, now: Settings, defaults: Settings) -> str | None:
    """``KEY OLD, not NEW`` of the first key, in the order of the alphabet, whose value is another; None where none is.

    Args:
        defaults: what a key that is missing stands for: settings leave out some defaults, and an older version did not know
            those that have been added since.
    """
    for key in sorted(before.keys() | now.keys()):
        gone = GONE.get(key.rpartition(": ")[2], Gone(None, ""))
        old, new = (settings.get(key, defaults.get(key, gone.default)) for settings in (before, now))
        if old != new:
            return f"{key} {old}, not {new}"
    return None


def other_content(before: Settings, now: Settings) -> str | None:
    """The sets of rows whose digests are others; None where none is, and for what an older version did not write."""
    names = [name for name, digest in now.items() if before.get(name, digest) != digest]
    return f"as many rows, but another {' and '.join(names)}" if names else None


def content_digest(content: Any) -> str:
    """A hash of rows by what they hold: texts, numbers, and images by their pixels or their file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    _digest_into(digest, content)
    return digest.hexdigest()


def _digest_into(digest: Any, value: Any, name: str = "") -> None:
    if isinstance(value, Example | Demonstration):  # `meta` may hold paths, and nothing is learnt from it
        value = {key: part for key, part in vars(value).items() if key != "meta"}
    if isinstance(value, Mapping):
        for key, part in value.items():
            digest.update(f"{key}:".encode("utf-8", "backslashreplace"))
            _digest_into(digest, part, str(key))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for part in value:
            _digest_into(digest, part)
    elif isinstance(value, PathLike) or (name == "image" and isinstance(value, str)):
        digest.update(fingerprint(Path(value)).encode() if Path(value).is_file() else b"-")
    elif hasattr(value, "tobytes"):
        digest.update(value.tobytes())
    else:
        digest.update(repr(value).encode("utf-8", "backslashreplace"))
