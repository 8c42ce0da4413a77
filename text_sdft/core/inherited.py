"""transformers' own settings: which cannot do here what their help says, with what to do instead; bounds of numbers."""

from __future__ import annotations

from text_sdft.core.settings import Bounds

_SCORED = "answers are scored by the adapter: leave it out"
#: Settings that do nothing here, or harm: refused with this remedy where they are not at their default.
REFUSED = {
    "label_smoothing_factor": "there are no labels to smooth: leave it out",
    "label_names": "rows have no labels: leave it out",
    "length_column_name": "rows have no tokens before a step: leave it out",
    "remove_unused_columns": "must stay off: the adapter reads the rows",
    "resume_from_checkpoint": "give --resume, or trainer.train(resume_from_checkpoint=…) in Python",
    "do_train": "`vlm-sdft train` trains: leave it out",
    "do_predict": "`vlm-sdft eval` measures: leave it out",
    "average_tokens_across_devices": "losses are always means over the queries of all processes: leave it out",
    "auto_find_batch_size": "a step would have fewer queries than asked for: halve per_device_train_batch_size, and double "
    "gradient_accumulation_steps",
    "use_cache": "sampling always has its cache, and training needs none: leave it out",
    "use_liger_kernel": "must stay off: it replaces forwards whose hidden states are read here",
    "liger_kernel_config": "must stay unset: it replaces forwards whose hidden states are read here",
    "include_num_input_tokens_seen": "results.json counts tokens: leave it out",
    "parallelism_config": "models are sharded by FSDP or DeepSpeed alone: leave it out",
    "bf16_full_eval": "must stay off: answers come from the model as it is trained",
    "fp16_full_eval": "must stay off: answers come from the model as it is trained",
    "prediction_loss_only": _SCORED,
    "eval_do_concat_batches": _SCORED,
    "eval_use_gather_object": _SCORED,
    "eval_accumulation_steps": _SCORED,
    "include_for_metrics": _SCORED,
    "batch_eval_metrics": _SCORED,
}
#: Bounds of other numbers; those that `SDFTConfig` has itself stand there.
BOUNDS = {
    "num_train_epochs": Bounds(0, 1_000_000, above=True),
    "max_steps": Bounds(),
    "weight_decay": Bounds(0),
    "adam_beta1": Bounds(0, 0.999999),
    "adam_beta2": Bounds(0, 0.999999),
    "adam_epsilon": Bounds(0),
    "max_grad_norm": Bounds(0),
    "neftune_noise_alpha": Bounds(0, above=True),
    "torch_empty_cache_steps": Bounds(1),
    "eval_steps": Bounds(0, above=True),
    "eval_delay": Bounds(0),
    "per_device_eval_batch_size": Bounds(1, 65_536),
    "save_total_limit": Bounds(1),
    "seed": Bounds(0, 2**32 - 1),
    "data_seed": Bounds(0, 2**32 - 1),
    "dataloader_num_workers": Bounds(0, 1_024),
    "dataloader_prefetch_factor": Bounds(1, 65_536),
    "ddp_bucket_cap_mb": Bounds(1),
    "ddp_timeout": Bounds(1),
}
