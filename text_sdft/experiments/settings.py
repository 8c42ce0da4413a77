"""Whether work that goes on has the settings with which it began."""

from __future__ import annotations

import json
from typing import Any

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
#: One query to a forward pass or several: a step is the mean over all of its queries.
BATCH = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")


def flattened(settings: Settings) -> Settings:
    """``{section: {key: value}}`` as ``{section.key: value}``, with values as JSON keeps them."""
    flat: Settings = {}
    for section, part in json.loads(json.dumps(settings, default=str)).items():
        flat |= {f"{section}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {section: part}
    return flat


def resumable(settings: Settings) -> Settings:
    """Those of a run's settings, flattened, that must stay as they are when it goes on."""
    flat = flattened(settings)
    kept = {
        k: v for k, v in flat.items() if k not in FREE and not k.startswith(FREE_BEGINNINGS) and not k.endswith(FREE_END)
    }
    if all(key in kept for key in BATCH):
        kept[" × ".join(BATCH)] = kept.pop(BATCH[0]) * kept.pop(BATCH[1])
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
