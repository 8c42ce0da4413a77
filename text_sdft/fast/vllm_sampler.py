"""Completions sampled by vLLM, in the same process, from the weights that the module has at that moment.

The engine starts empty beside the model and is handed its tensors: nothing goes through a file or another process. Its
kernels round otherwise than the trainer's forward, so each token's own log-probability comes back with it, and the
divergence weighs tokens by the clipped ratio (``distillation_is_clip``).

Shapes: B rows · T completion tokens · L tokens of a prompt.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from text_sdft.core.config import SDFTConfig
from text_sdft.core.data import Model
from text_sdft.core.errors import UserError
from text_sdft.core.inputs import ModelInputs, RowInputs
from text_sdft.core.sampling import Rollout, Sampler, TransformersSampler, eos_ids
from text_sdft.core.scoring import base_model
from text_sdft.fast.prefill import common_tokens_read_once

REMEDY = "Set train.sampler to transformers."
#: Engines by what they hold, and whose weights each has. vLLM keeps an engine until the process ends, so trainings one
#: after the other (`compare`, `sequence`) share one.
ENGINES: dict[str, tuple[Any, tuple[Any, list[int]]]] = {}
#: vLLM's largest bias against a token: one in e^100.
LARGEST_BIAS = -100.0


class VLLMSampler:
    """`Sampler` for one model with a vLLM engine, which starts at the first call.

    A row's completion hangs on its seed, not on its batch, but it is not the one that `TransformersSampler` draws.

    Args:
        max_completion_length, temperature, top_p: as `TransformersSampler`'s.
        processor: the model's processor, which the engine reads images with; None, or a tokenizer: text only.
        folder: takes the model's config and processor, which the engine wants as files.
        cache_bytes: memory of the device for the engine's keys and values, beside its own copy of the weights.
        dtype: the engine's; None: the module's.

    Raises `UserError` where vLLM is not installed.
    """

    def __init__(
        self,
        max_completion_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        *,
        processor: Any,
        folder: Path,
        cache_bytes: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        if find_spec("vllm") is None:
            raise UserError(f"train.sampler is vllm, which is not installed: see docs/benchmarks.md. {REMEDY}")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where it can be handed tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it has dozens of lines to say, at each sync too
        self._settings = {"max_tokens": max_completion_length, "temperature": temperature, "top_p": top_p}
        self._processor = processor if hasattr(processor, "image_processor") else None
        self._folder, self._cache_bytes, self._dtype = folder, cache_bytes, dtype

    @torch.no_grad()
    def sample(self, model: Model, inputs: ModelInputs, seeds: Sequence[int] | None) -> Rollout:
        """One completion a row. Raises `UserError` where vLLM cannot take the model or its images."""
        from vllm import SamplingParams

        ends = eos_ids(model)
        params = [
            SamplingParams(
                **self._settings | ({"temperature": 0.0} if seed is None else {"seed": seed}),
                stop_token_ids=sorted(ends),
                ignore_eos=True,  # of the engine's own config: those above count
                logit_bias=dict.fromkeys(inputs.placeholder_ids, LARGEST_BIAS),
                logprobs=0,  # of the drawn token alone
                detokenize=False,
            )
            for seed in (seeds if seeds is not None else [None] * len(inputs))
        ]
        prompts = [_prompt(inputs, row) for row in inputs.rows]
        with torch.autocast(model.device.type, enabled=False):
            outputs = self._engine(model).generate(prompts, params, use_tqdm=False)
        for row, output in zip(inputs.rows, outputs, strict=True):
            if output.prompt_token_ids != row.tokens["input_ids"].tolist():
                raise UserError(f"vLLM reads images of this model's family as other tokens. {REMEDY}")
        drawn = [output.outputs[0] for output in outputs]
        logps = [[of[i].logprob for of, i in zip(one.logprobs, one.token_ids, strict=True)] for one in drawn]
        return Rollout(
            ids=[torch.tensor(one.token_ids) for one in drawn],
            logps=[torch.tensor(row) for row in logps],
            finished=[one.finish_reason == "stop" for one in drawn],
        )

    def _engine(self, model: Model) -> Any:
        """The engine, with the weights that the model has now (a teacher's may be swapped in)."""
        hashes = torch.stack([torch.hash_tensor(p) for p in model.parameters() if p.requires_grad]).tolist()
        config = base_model(model).config.to_json_string()
        key = f"{config} {self._processor!r} {self._dtype or model.dtype} {self._cache_bytes}"
        engine, held = ENGINES.get(key, (None, None))
        if held != (self, hashes):
            with _weights(model) as weights:
                if engine is None:
                    engine = self._start(model, weights)
                else:
                    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
                    engine.reset_prefix_cache()
                    engine.llm_engine.reset_encoder_cache()
            ENGINES[key] = engine, (self, hashes)
        return engine

    def _start(self, model: Model, weights: dict[str, Tensor]) -> Any:
        from vllm import LLM
        from vllm.model_executor.model_loader import register_model_loader
        from vllm.model_executor.model_loader.base_loader import BaseModelLoader

        @register_model_loader("memory")
        class FromMemory(BaseModelLoader):
            def download_model(self, model_config: Any) -> None:
                pass

            def load_weights(self, model: Any, model_config: Any) -> None:
                model.load_weights(iter(weights.items()))

        inner = base_model(model)
        config = type(inner.config).from_dict({**inner.config.to_dict(), "architectures": [type(inner).__name__]})
        config.save_pretrained(self._folder)
        if self._processor is not None:
            self._processor.save_pretrained(self._folder)
        with _randomness_kept():
            try:
                return LLM(
                    str(self._folder),
                    skip_tokenizer_init=self._processor is None,
                    limit_mm_per_prompt={"video": 0} if self._processor is not None else {},
                    load_format="memory",
                    dtype=self._dtype or model.dtype,
                    generation_config="vllm",  # only the given settings: see `rollout._generation_config`
                    logprobs_mode="processed_logprobs",  # after temperature and top_p, as drawn
                    max_model_len=-1,  # what the cache has room for
                    kv_cache_memory_bytes=self._cache_bytes,
                    gpu_memory_utilization=0.01,  # only checked against what training leaves free: the line above counts
                    distributed_executor_backend="uni",
                    enforce_eager=model.device.type == "cpu",
                )
            except (ValueError, NotImplementedError) as error:
                raise UserError(f"vLLM cannot take this {type(inner).__name__}: {error} {REMEDY}") from error


def _prompt(inputs: ModelInputs, row: RowInputs) -> dict[str, Any]:
    """A row as vLLM takes it: an image is itself, and one placeholder token that the engine repeats."""
    ids_L = row.tokens["input_ids"]
    if row.media and not (row.images and inputs.media_encoder is not None):
        raise UserError(f"vLLM takes images only where the vision tower stays and its features are kept. {REMEDY}")
    if not row.images or inputs.media_encoder is None:
        return {"prompt_token_ids": ids_L.tolist()}
    lengths = inputs.media_encoder.lengths(row.images)
    places = torch.isin(ids_L, torch.tensor(inputs.placeholder_ids)).nonzero().squeeze(-1)
    keep_L = torch.ones_like(ids_L, dtype=torch.bool)
    for image_places in places.split(lengths):
        keep_L[image_places[1:]] = False
    return {
        "prompt_token_ids": ids_L[keep_L].tolist(),
        "multi_modal_data": {"image": inputs.media_encoder.load(row.images)},
        "multi_modal_uuids": {"image": [image.key for image in row.images]},
    }


@contextmanager
def _weights(model: Model) -> Iterator[dict[str, Tensor]]:
    """All weights by their names in a checkpoint, adapters added in.

    They are added to copies, and the weights themselves come back after it: nothing is subtracted, so nothing is rounded.
    """
    inner = base_model(model)
    own: list[tuple[nn.Parameter, Tensor]] = []
    layers: list[Any] = [layer for layer in inner.modules() if isinstance(layer, BaseTunerLayer)]
    try:
        for layer in layers:
            for p in layer.get_base_layer().parameters():
                own.append((p, p.data))
                p.data = p.data.clone()
            layer.merge()
        weights = revert_weight_conversion(inner, dict(_plain(inner)))
        yield weights
        weights.clear()  # vLLM remembers the loader that was given them
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for p, data in own:
            p.data = data


def _plain(inner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names that they have without an adapter."""
    for name, tensor in inner.state_dict().items():
        if ".base_layer." in name:
            yield name.replace(".base_layer.", "."), tensor
        elif ".modules_to_save." in name:
            before, _, after = name.partition(".modules_to_save.")
            yield f"{before}.{after.partition('.')[2]}", tensor
        elif ".original_module." not in name and ".lora_" not in name:
            yield name, tensor


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """The engine seeds all generators of the process when it starts; a run's own must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


#: They end where `eos_ids` says; another sampler may end otherwise.
OWN_SAMPLERS = (TransformersSampler, VLLMSampler)


def make_sampler(args: SDFTConfig, processor: Any, autocast: Callable[[], AbstractContextManager[None]]) -> Sampler:
    """The sampler of a config. Raises `UserError` where vLLM is wanted, and missing or in one of several processes."""
    settings = (args.max_completion_length, args.temperature, args.top_p)
    if args.sampler == "transformers":
        return TransformersSampler(*settings, autocast, common_tokens_read_once)
    if args.world_size > 1:
        raise UserError(f"train.sampler vllm works in one process, and this is one of {args.world_size}. {REMEDY}")
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    folder, cache_bytes = Path(str(args.output_dir)) / "vllm", int(args.vllm_cache_gib * 2**30)
    return VLLMSampler(*settings, processor=processor, folder=folder, cache_bytes=cache_bytes, dtype=dtype)
