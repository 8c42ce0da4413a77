"""transformers' own settings: which do here what their help says, and which cannot, with what to do instead.

A test compares both lists with the installed `TrainingArguments`, so that a new setting is put into one of them.
"""

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
#: Settings that do what their help says.
TAKEN = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "neftune_noise_alpha", "torch_empty_cache_steps", "logging_strategy", "logging_steps", "logging_first_step",
    "log_on_each_node", "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "report_to",
    "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
    "eval_steps", "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_only_model", "save_strategy",
    "save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "full_determinism", "seed", "data_seed", "use_cpu", "accelerator_config", "dataloader_drop_last",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "train_sampling_strategy", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config",
    "deepspeed", "debug", "skip_memory_metrics", "do_eval", "local_rank",
}  # fmt: skip
#: Bounds of the numbers among them; those that `SDFTConfig` has itself stand there.
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
