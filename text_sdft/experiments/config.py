"""The sections of an experiment's YAML that do not depend on the modality, and what they resolve to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text_sdft.core.settings import setting

if TYPE_CHECKING:  # at runtime the command line reads the sections before it loads any of these
    from peft import LoraConfig

    from text_sdft.core import ExperimentAdapter, Model, SDFTConfig, Splits


@dataclass
class LoRASettings:
    """Section ``lora``: whether an adapter is trained instead of all weights."""

    enabled: bool | None = setting(None, "Train a LoRA adapter. Unset: yes, except for builtin models.")
    r: int = setting(16, "Rank.", least=1, most=65_536)
    alpha: int = setting(32, "Scale: updates are multiplied by alpha / r.", least=0)
    dropout: float = setting(0.0, "Dropout on the adapter's input.", least=0, most=0.99)

    def trains_adapter(self, model: str) -> bool:
        """Whether a LoRA adapter of this model is trained, rather than all weights."""
        return not model.startswith("builtin:") if self.enabled is None else self.enabled

    def resolve(self, model: str) -> LoraConfig | None:
        """The peft config for this model, or None where all weights are trained."""
        from text_sdft.training import default_lora

        if not self.trains_adapter(model):
            return None
        return replace(default_lora(), r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout)


@dataclass
class EvalSettings:
    """Section ``eval``: what is measured before and after training."""

    max_examples: int | None = setting(None, "Rows of each set at most; unset: all.", least=0)
    teacher: bool = setting(True, "Also measure the model's in-context accuracy: the teacher, at the start and after.")
    batch_size: int = setting(16, "Answers generated at once.", least=1, most=65_536)


@dataclass
class Experiment:
    """A resolved experiment.

    Attributes:
        model: its name as the user wrote it.
        adapter, splits: the modality and its data.
        args: training settings; ``args.output_dir`` is the `folder`.
        peft_config: LoRA, or None.
        eval: evaluation settings.
        settings: the whole resolved YAML, for ``config.yaml``.
        defaults: the same with nothing set: what a setting is where it is left out.
        method: what trains, see `text_sdft.methods.table`.
        start: a loaded model to go on from, in place of ``model`` as it comes.
    """

    model: str
    adapter: ExperimentAdapter
    splits: Splits
    args: SDFTConfig
    peft_config: LoraConfig | None
    eval: EvalSettings
    settings: dict[str, Any]
    method: str = "sdft"
    start: Model | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from text_sdft.core.adapter import with_defaults

        self.adapter = with_defaults(self.adapter)

    @property
    def test_rows_remedy(self) -> str:
        """The remedy where nothing can be measured, by the key of the section ``data`` that has test rows."""
        key = "data.test" if "test" in self.defaults.get("data", {}) else "data.path"
        return f"add test rows with a reference ({key}; `--help` says how)"

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(str(self.args.output_dir))
