"""Prior skills by lm-evaluation-harness, on a model in memory. Needs the extra ``skills``.

A task is one of the harness's own names, whose data comes from the hub, or a YAML file of a task in the harness's format,
whose data may be local (``configs/skills/``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from text_sdft.core import UserError
from text_sdft.core.chat import tokenizer_of
from text_sdft.training import SDFTTrainer

#: The six benchmarks of arXiv 2601.19897 and the metric that it reports of each.
PAPER = {
    "hellaswag": "acc",
    "humaneval": "pass@1",
    "ifeval": "inst_level_loose_acc",
    "mmlu": "acc",
    "truthfulqa_mc1": "acc",
    "winogrande": "acc",
}
#: Reported of any other task: the first of these that it has.
METRICS = ("acc", "exact_match", "pass@1")


def prior_skills(
    trainer: SDFTTrainer, tasks: Sequence[str], batch_size: int, limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """{task: {"metric", "score", "stderr" (None where the harness gives none)}} of the trainer's model as it is now.

    Args:
        tasks: names or YAML files; "paper" stands for the paper's six.
        limit: items of each task at most.

    Raises `UserError` where the harness is not installed, does not know a task, or cannot reach a task's data.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"Prior skills need lm-evaluation-harness ({error}): pip install 'vlm-sdft[skills]'.") from error
    chosen = [_task(name) for given in tasks for name in (PAPER if given == "paper" else [given])]
    processor = trainer.adapter.processing_class
    model = HFLM(trainer.module, tokenizer=tokenizer_of(processor), batch_size=batch_size)
    try:
        with trainer.accelerator.autocast():
            found = simple_evaluate(
                model,
                tasks=chosen,
                limit=limit,
                log_samples=False,
                confirm_run_unsafe_code=os.environ.get("HF_ALLOW_CODE_EVAL") == "1",  # HumanEval runs what is written
            )
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"lm-evaluation-harness cannot measure {', '.join(tasks)}: {error}. `lm-eval ls tasks` lists its tasks; "
            "without the hub give YAML files of local ones, such as configs/skills/hellaswag_100.yaml."
        ) from error
    assert found is not None  # None on other processes than the first, and there is one
    names = [task if isinstance(task, str) else task["task"] for task in chosen]
    return {name: _reported(name, found["results"][name]) for name in names}


def _task(name: str) -> str | dict[str, Any]:
    if not name.endswith((".yaml", ".yml")):
        return name
    if not Path(name).is_file():
        raise UserError(f"There is no task file {name}.")
    return yaml.safe_load(Path(name).read_text(encoding="utf-8"))


def _reported(task: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The metric that is reported, out of the harness's "metric,filter" keys."""
    keys = [key for key in measured if "," in key and "_stderr" not in key]
    wanted = [PAPER[task]] if task in PAPER else METRICS
    key = next((key for metric in wanted for key in keys if key.partition(",")[0] == metric), keys[0])
    metric, _, filtered = key.partition(",")
    stderr = measured.get(f"{metric}_stderr,{filtered}")
    return {"metric": metric, "score": measured[key], "stderr": stderr if isinstance(stderr, float) else None}
