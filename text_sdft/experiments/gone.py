"""Settings that are gone, of ours and of transformers: what a config of an older version may still say, and what to use."""

from __future__ import annotations

from typing import Any, NamedTuple

from text_sdft.core.errors import UserError

Settings = dict[str, Any]


class Gone(NamedTuple):
    """The value at which a setting changed nothing, by which old runs are read; and a sentence on what to do instead."""

    default: Any
    remedy: str


_BEGUN = "a run that began with it goes on with the version that it began with"
_USELESS = ("use_ipex", "jit_mode_eval", "past_index", "mp_parameters", "tpu_num_cores", "model_parallel")
GONE = {
    "train.confidence": Gone("none", f"No weighting by confidence was worth it: leave it out ({_BEGUN})."),
    "train.distillation_add_tail": Gone(False, f"The tail changed no result: leave it out ({_BEGUN})."),
    "demonstrations.context": Gone("teacher", f"Only the teacher is shown demonstrations: leave it out ({_BEGUN})."),
    "data.image_features_dir": Gone(
        None, "Keeping features on disk was not faster: leave it out; data.image_features_gib keeps them in memory."
    ),
    "data.image_features_dir_gib": Gone(50.0, "It was the size of data.image_features_dir, which is gone: leave it out."),
    "train.vllm_gpu_memory_utilization": Gone(0.3, "Use train.vllm_cache_gib, in GiB."),
    # transformers'
    "train.overwrite_output_dir": Gone(False, "A run never overwrites another: name a new folder, or give --resume."),
    "train.group_by_length": Gone(False, "Leave it out: a forward takes rows of similar length together by itself."),
    "train.logging_dir": Gone(None, "Logs are in the run's folder; of TensorBoard set TENSORBOARD_LOGGING_DIR."),
    "train.evaluation_strategy": Gone("no", "Use train.eval_strategy."),
    "train.warmup_ratio": Gone(0.0, "Use train.warmup_steps with a value below 1."),
    "train.no_cuda": Gone(False, "Use train.use_cpu."),
    "train.use_mps_device": Gone(False, "Leave it out: such a device is used where there is one."),
    "train.adafactor": Gone(False, "Use train.optim adafactor."),
    "train.save_safetensors": Gone(True, "Leave it out: weights are always written as safetensors."),
    "train.include_tokens_per_second": Gone(False, "Leave it out: results.json counts a run's tokens and seconds."),
    "train.include_inputs_for_metrics": Gone(False, "Leave it out: the adapter scores answers."),
    "train.push_to_hub_model_id": Gone(None, "Use train.hub_model_id."),
    "train.push_to_hub_organization": Gone(None, "Use train.hub_model_id OWNER/NAME."),
    "train.push_to_hub_token": Gone(None, "Use train.hub_token, or `hf auth login`."),
    "train.per_gpu_train_batch_size": Gone(None, "Use train.per_device_train_batch_size."),
    "train.per_gpu_eval_batch_size": Gone(None, "Use train.per_device_eval_batch_size."),
    "train.fp16_opt_level": Gone("O1", "Use train.bf16 or train.fp16."),
    "train.fp16_backend": Gone("auto", "Use train.bf16 or train.fp16."),
    "train.half_precision_backend": Gone("auto", "Use train.bf16 or train.fp16."),
    "train.torchdynamo": Gone(None, "Use train.torch_compile_backend."),
    "train.ray_scope": Gone("last", "Leave it out: `vlm-sdft compare` chooses learning rates."),
    "train.tpu_metrics_debug": Gone(False, "Use train.debug tpu_metrics_debug."),
    **dict.fromkeys((f"train.{name}" for name in _USELESS), Gone(False, "Leave it out.")),
    "train.fsdp_min_num_params": Gone(0, "Use train.fsdp_config."),
    "train.fsdp_transformer_layer_cls_to_wrap": Gone(None, "Use train.fsdp_config."),
    "train.dispatch_batches": Gone(None, "Use train.accelerator_config."),
    "train.split_batches": Gone(None, "Use train.accelerator_config."),
}


def still_there(settings: Settings) -> Settings:
    """An experiment's settings without those that are gone and changed nothing.

    Raises:
        UserError: one that is gone had a value that did change something.
    """
    kept = dict(settings)
    for key, gone in GONE.items():
        section, _, name = key.partition(".")
        below = kept.get(section)
        if isinstance(below, dict) and name in below:
            if below[name] not in (gone.default, None):
                raise UserError(gone_message(key, below[name]))
            kept[section] = {other: value for other, value in below.items() if other != name}
    return kept


def gone_message(key: str, value: Any = "") -> str:
    """That a setting is gone, and what to do instead."""
    return f"{f'{key} {value}'.rstrip()}: this setting is gone. {GONE[key].remedy}"
