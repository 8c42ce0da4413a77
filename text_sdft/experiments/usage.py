"""A trained model put to use, from the folder ``model/`` of its run alone: answers to new queries, and an export.

``model/usage.json`` says how the model was asked in training. It holds no data and no path but the base model's name.

Shapes: T tokens of one answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from peft import PeftModel

from text_sdft.core import Example, ExperimentAdapter, Model, SDFTConfig, UserError, adapter_class
from text_sdft.core.adapter import bound_adapter
from text_sdft.core.chat import with_system
from text_sdft.core.sampling import TransformersSampler
from text_sdft.core.views import encode_student
from text_sdft.experiments.answers import slices
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.folder import Record, read_json, read_json_lines, write_json
from text_sdft.training.modeling import load_model, prompt_limit

USAGE_FILE = "usage.json"
#: Labelled images that `predict` tells of.
NEAREST = 3
#: Queries answered at once.
BATCH_SIZE = 16
#: An export may differ from the model it was made of by so much, in nats a token.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def write_usage(experiment: Experiment) -> Record:
    """Write how the model was asked in training beside its weights; returns what the model card's code needs to know."""
    folder = experiment.folder / "model"
    usage = {
        "base_model": experiment.model,
        "adapter": experiment.settings["adapter"],
        "adapter_settings": experiment.adapter.usage(),
        "prompt": experiment.settings.get("data", {}).get("question"),
        "max_completion_length": experiment.args.max_completion_length,
    }
    if read_json(folder / USAGE_FILE) != usage:
        write_json(folder / USAGE_FILE, usage)
    lora = read_json(folder / "adapter_config.json")
    return {
        "usage": usage,
        "is_lora": lora is not None,
        "base": None if lora is None else lora["base_model_name_or_path"],
        "takes_images": any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")),
        "folder": experiment.args.hub_model_id if experiment.args.push_to_hub else None,
    }


class TrainedModel(NamedTuple):
    """A run's model, loaded to answer: with the adapter that is bound to it, and how it was asked (`write_usage`)."""

    model: Model
    adapter: ExperimentAdapter
    usage: Record
    folder: Path


def load_trained(run: Path, merged: bool = False) -> TrainedModel:
    """The model of a run, on the GPU where there is one.

    Args:
        run: the run's folder, or its ``model/`` alone.
        merged: LoRA's updates are added to the base's weights, in their own dtype.

    Raises:
        UserError: there is no such model, it does not say how it was asked, or its base cannot be loaded.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder: give what --train.output_dir named, or its model/.")
    folder = run / "model" if (run / "model").is_dir() else run
    usage = read_json(folder / USAGE_FILE)
    if usage is None:
        why = "the run has not finished" if (run / "config.yaml").is_file() else "it is no folder of a finished run"
        raise UserError(f"{folder} has no {USAGE_FILE}: {why}. Give the folder that --train.output_dir named.")
    adapter = adapter_class(usage["adapter"])(**usage["adapter_settings"])
    is_lora = (folder / "adapter_config.json").is_file()
    args = SDFTConfig(report_to="none", model_init_kwargs={"dtype": "auto"})
    model: Model = load_model(usage["base_model"] if is_lora else str(folder), adapter, args, None)
    if is_lora:
        model = PeftModel.from_pretrained(model, str(folder))
        if merged:
            model = model.merge_and_unload()
    model.to(PartialState().device).eval()
    return TrainedModel(model, bound_adapter(adapter, model), usage, folder)


def predict(
    trained: TrainedModel, images: Sequence[Any], prompt: str | None = None, labelled: ExperimentAdapter | None = None
) -> Iterator[Record]:
    """The most probable answer to a question about each image, or to the prompt alone where there are no images.

    Args:
        images: paths or PIL images.
        prompt: what is asked; None: what was asked in training.
        labelled: an adapter with the run's data: its labelled images most like each image are told too.

    Returns:
        Of each ``image`` (its path): ``prompt``, ``answer``, ``confidence`` (the probability that the model gives to this
        very answer, its end included), ``logp`` (nats a token of it), ``cut`` (whether the length limit ended it), and with
        ``labelled`` ``nearest`` (``image`` and ``answer`` of labelled images).

    Raises:
        UserError: nothing is asked, an image is missing or cannot be read, or a prompt is too long.
    """
    asked = trained.usage["prompt"] if prompt is None else prompt
    if images and trained.usage["prompt"] is None:
        raise UserError("This model was trained on text and takes no images: give --prompt TEXT alone.")
    if asked is None:
        raise UserError("Nothing is asked: give --prompt TEXT.")
    if trained.usage["prompt"] is not None and not images:
        raise UserError("No image is given: name image files or folders of them.")
    queries = [query(trained, asked, [image]) for image in images] or [query(trained, asked, [])]
    bound = bound_adapter(labelled, trained.model) if labelled is not None else None
    for asking, image, answer in zip(queries, images or [None], answers(trained, queries), strict=True):
        record = {**({"image": str(image)} if image is not None else {}), "prompt": asked, **answer}
        if bound is not None:
            nearest = bound.nearest_labelled(asking, NEAREST)
            record["nearest"] = [{"image": str(source), "answer": label} for source, label in nearest]
        yield record


def query(trained: TrainedModel, prompt: str, images: Sequence[Any]) -> Example:
    """A question, with its images before it, as the model was asked in training."""
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    turn = {"role": "user", "content": parts if images else prompt}
    return Example("query", with_system([turn], trained.usage["adapter_settings"].get("system_prompt")))


def answers(trained: TrainedModel, queries: Sequence[Example]) -> Iterator[Record]:
    """``answer``, ``confidence``, ``logp`` and ``cut`` of each query, as `predict` says."""
    model, adapter, usage, _ = trained
    length = usage["max_completion_length"]
    sampler = TransformersSampler(length)
    limit = prompt_limit(model, SDFTConfig(max_completion_length=length, report_to="none"))
    for part in slices(len(queries), BATCH_SIZE):
        rollout = sampler.sample(model, encode_student(adapter, queries[part], limit), seeds=None)
        for ids_T, logps_T, finished in zip(rollout.ids, rollout.logps, rollout.finished, strict=True):
            logp = float(logps_T.double().sum())
            yield {
                "answer": adapter.decode(ids_T),
                "confidence": math.exp(logp),
                "logp": logp / len(ids_T),
                "cut": not finished,
            }


def export(run: Path, out: Path) -> TrainedModel:
    """Write the run's model as a checkpoint of its own: whole weights in the base's dtype, and all that lies beside them.

    The keys of the weights are those of the base model's checkpoint.

    Raises:
        UserError: ``out`` is not empty, or as `load_trained`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: give a folder that is new or empty.")
    trained = load_trained(run, merged=True)
    trained.model.save_pretrained(str(out))
    trained.adapter.processing_class.save_pretrained(str(out))
    write_json(out / USAGE_FILE, trained.usage)
    return trained


def export_difference(run: Path, out: Path) -> Record:
    """An export beside the model that it was made of, on the run's own samples.

    Returns:
        ``n`` samples, ``equal`` answers among them, ``logp`` (the largest difference of an answer's log-probability, in
        nats a token), and ``tolerance``, which it should not pass in the export's dtype.

    Raises:
        UserError: the run's folder holds no samples that can be asked again, or as `load_trained`.
    """
    asked = _sampled_queries(run)
    if not asked:
        raise UserError(f"{run / 'samples.jsonl'} holds no answers of the trained model: there is nothing to compare on.")
    trained, exported = load_trained(run), load_trained(out)
    pairs = [
        tuple(next(answers(model, [query(model, prompt, images)])) for model in (trained, exported))
        for prompt, images in asked
    ]
    return {
        "n": len(pairs),
        "equal": sum(before["answer"] == after["answer"] for before, after in pairs),
        "logp": max(abs(before["logp"] - after["logp"]) for before, after in pairs),
        "tolerance": TOLERANCE.get(exported.model.dtype, 0.1),
    }


def _sampled_queries(run: Path, limit: int = 32) -> list[tuple[str, list[str]]]:
    """Prompts and images that a run asked its trained model; images that are no files cannot be asked again."""
    records = read_json_lines(run / "samples.jsonl")
    asked = [r for r in records if r.get("phase") == "after" and r.get("view") == "student" and all(r.get("images", [1]))]
    return [(r["prompt"], r.get("images", [])) for r in asked[:limit]]
