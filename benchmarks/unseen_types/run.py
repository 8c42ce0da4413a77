"""SDFT and its rivals on types that the model has never seen: `python benchmarks/unseen_types/run.py --seeds 5`.

First `fetch.py` (pictures) and `build_model.py` (the broader model) for all settings but those on drawn objects. Every
method has the same labelled images, the same unlabelled ones where it can use them, the same optimiser steps and the same
grid of learning rates. The rate is chosen on validation types (of the setting `rates_from`), by the harmonic mean of new
types and what is kept of old types, of describing, and of learning from demonstrations of yet other types; in rows *for new
types alone* by the new types. Test types are measured once a row and seed. A finished cell is not run again; `--settings`
and `--methods` choose what is run (no method: the model as it is), `--table` runs nothing. The tables are printed and, from
the results that the repository holds, written into docs/results-visual.md and docs/results-visual-tables.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from attempts import AveragedStudent, GrowingRetention
from cells import Cells, make_trainer, mixed_types
from PIL import Image
from settings import SETTINGS, Setting, of_labels
from tables import ALONE, ANSWERED, FRESH, LORA, RIVAL, Rows, collect, report, write_pages

from text_sdft.core import Example
from text_sdft.experiments.scores import contexts_for, evaluate
from text_sdft.training import SDFTTrainer, default_lora
from vlm_sdft import DemoSet, ImageAdapter, retain_in_context
from vlm_sdft.demos.examples import demonstration
from vlm_sdft.demos.sets import ImageRow
from vlm_sdft.zoo.objects import base_types
from vlm_sdft.zoo.vocabulary import (
    DESCRIBE_QUESTION,
    NAME_QUESTION,
    base_names,
    invented_names,
)

RATES = (1e-4, 3e-4, 1e-3)
#: Rows that stay in the tables, of weights by the teacher's confidence, which brought nothing and is gone.
RETIRED = ["SDFT + retention, by entropy", "SDFT + retention, by agreement"]
#: What the tables call it -> the method's name in this package.
METHODS = {
    "SFT": "sft/no_retain",
    "SFT + retention": "sft",
    "SFT from teacher, labelled images only": "sft_teacher/labelled/no_retain",
    "SFT from teacher": "sft_teacher/no_retain",
    "SFT from teacher + retention": "sft_teacher",
    "SDFT, labelled images only": "sdft/labelled/no_retain",
    "SDFT": "sdft/no_retain",
    "SDFT + retention": "sdft",
    "SDFT + retention, twice its weight": "sdft",
    "SDFT + retention, growing weight": "sdft",
    "SDFT + retention, averaged student": "sdft",
    "SDFT + retention, half in context": "sdft",
    "SDFT + retention, half in context, twice its weight": "sdft",
    "SFT from teacher + retention, half in context": "sft_teacher",
    "SDFT + retention" + ANSWERED: "sdft",
    "SFT from teacher + retention" + ANSWERED: "sft_teacher",
    "SFT, attention only": "sft_attention/no_retain",
    "SFT + labelled replay": "replay",
    "DFT + retention": "dft",
    "offline distillation + retention": "offline",
    "SFT from teacher + retention" + FRESH: "sft_teacher/fresh",
    "offline distillation + retention" + FRESH: "offline/fresh",
}
#: Rows that stand beside each other in each of the variants below.
MAIN = ("SFT", "SFT + retention", "SFT from teacher + retention", "SDFT + retention")
#: These learn from labelled images alone: their cells are those of the setting `of_labels`.
LABELS = ("SFT", "SFT + retention")
#: Those whose learning rate is chosen by new types alone.
METHODS |= {name + ALONE: METHODS[name] for name in MAIN}
#: Those that train an adapter instead of all weights of the language model, at ten times the rates.
METHODS |= {name + LORA: METHODS[name] for name in MAIN}
#: How some differ from the method that they are named after: settings, and a callback.
SETTINGS_OF: dict[str, dict[str, Any]] = {
    f"SDFT + retention{variant}, twice its weight": {"retain_weight": 2.0} for variant in ("", ", half in context")
}
CALLBACK_OF = {
    "SDFT + retention, growing weight": GrowingRetention,
    "SDFT + retention, averaged student": AveragedStudent,
}
#: In-context learning: questions, types of an episode, pictures of each.
EPISODES, WAYS, SHOWN = 150, 5, 2


RESULTS, DOCS = Path("benchmarks/results/unseen_types.json"), Path("docs")
NOBODY = "untrained"
IN_CONTEXT = "half in context"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation_seeds", type=int, default=3, help="by which learning rates are chosen")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="*", default=list(MAIN), choices=list(METHODS))
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    cells = Cells(args.out)
    if not args.table:
        for name in args.settings:
            rates = {
                method: best_rate(cells, SETTINGS[name].rates_from or name, method, args.validation_seeds)
                for method in args.methods
            }
            for seed in range(args.seeds):
                cell(cells, name, "test", seed, NOBODY, 0.0)
                for method in args.methods:
                    cell(cells, name, "test", seed, method, rates[method])
    found = rows_in(cells.done)
    print(report(found))
    if args.out == RESULTS:
        write_pages(found, DOCS)


def rows_in(done: Mapping[str, dict[str, Any]]) -> dict[str, Rows]:
    """All settings' rows for the tables; those that learn from labels alone stand in each setting that has the same labels,
    for the seeds it has."""
    found = dict(done)
    for key, scores in done.items():
        name, rest = key.split("/", 1)
        split, seed, method, _ = rest.split("/")
        for other in SETTINGS if method in LABELS else ():
            if of_labels(other) == name and f"{other}/{split}/{seed}/{NOBODY}/0" in done:
                found[f"{other}/{rest}"] = scores
    rows = [NOBODY, *METHODS]
    place = rows.index("SDFT + retention") + 1
    return collect(found, list(SETTINGS), [*rows[:place], *RETIRED, *rows[place:]])


def best_rate(cells: Cells, name: str, method: str, seeds: int) -> float:
    """The learning rate that is best on the setting's validation types, on average over so many seeds."""
    trained = method.removesuffix(ALONE)

    def total(rate: float) -> float:
        found = [cell(cells, name, "validation", seed, trained, rate) for seed in range(seeds)]
        if trained != method:
            return sum(after["new"] for after in found)
        before = [cell(cells, name, "validation", seed, NOBODY, 0.0) for seed in range(seeds)]
        return sum(map(quality, found, before))

    return max(rates_of(method), key=total)


def rates_of(method: str) -> tuple[float, ...]:
    """The grid of a row: an adapter takes ten times the rates of all weights (see `text_sdft.lora`)."""
    return tuple(10 * rate for rate in RATES) if method.endswith(LORA) else RATES


def quality(after: dict[str, float], before: dict[str, float]) -> float:
    """Harmonic mean of the accuracy on new types and of the share kept of each other skill, at most 1.

    Shares, because a skill that noise leaves little of would else outweigh all others.
    """
    kept = [min(1.0, after[skill] / before[skill]) for skill in ("old", "describing", "in_context")]
    return (1 + len(kept)) / sum(1 / max(value, 1e-3) for value in (after["new"], *kept))


def cell(cells: Cells, name: str, split: str, seed: int, method: str, rate: float) -> dict[str, Any]:
    name = of_labels(name) if method in LABELS else name
    return cells.get(f"{name}/{split}/{seed}/{method}/{rate:g}", lambda: run(SETTINGS[name], split, seed, method, rate))


def run(
    setting: Setting, split: str, seed: int, method: str, rate: float, cache: Path = Path("runs/data")
) -> dict[str, float]:
    """Train once, unless it is for measuring the model as it is, and measure the four skills.

    Returns:
        Accuracies: *new* types (with long answers the whole answer; *name* for the name in it), *old* types, *describing*,
        *in_context* (`EPISODES` about other types). Untrained also *teacher* (the new types with demonstrations in context;
        *teacher_name*) and each of the adapter's rivals that train no language model.
    """
    demos = setting.demos(split, seed, cache)
    if IN_CONTEXT in method:
        demos = retain_in_context(demos, 0.5)
    if METHODS.get(method) == "replay":
        demos = with_old_labels(demos, seed)
    rung = 5 if method.endswith(ANSWERED) else 2
    adapter = ImageAdapter(demos, n_types=setting.shown, shots=setting.shots, selection=setting.selection, rung=rung)
    trained = method != NOBODY
    kind = partial(SDFTTrainer, method=METHODS[method], full_batches=True) if trained else SDFTTrainer
    changes = SETTINGS_OF.get(method, {}) | ({"peft_config": default_lora()} if method.endswith(LORA) else {})
    trainer = make_trainer(adapter, demos.train, rate, setting.steps, seed, model=setting.model, kind=kind, **changes)
    if method in CALLBACK_OF:
        trainer.add_callback(CALLBACK_OF[method]())
    if trained:
        trainer.train()
    sets = {
        "new": adapter.examples(demos.test),
        "old": adapter.examples([row for row in demos.old if row.type]),
        "describing": adapter.examples([row for row in demos.old if not row.type]),
        "in_context": episodes(setting.other_types(split, seed), seed),
    }
    scores, records = evaluate(trainer, sets, teacher=not trained, batch_size=50, phase="eval")
    result = {name: score["accuracy"] for name, score in scores.items()}
    if setting.described:
        for view, name in (("student", "name"), ("teacher", "teacher_name")):
            answered = [r for r in records if r["set"] == "new" and r["view"] == view]
            right = [last_name(r["answer"]) == last_name(r["reference"]) for r in answered]
            result |= {name: sum(right) / len(right)} if right else {}
    if not trained:
        for rival, given in trainer.adapter.rivals(sets["new"], contexts_for(trainer, sets["new"])).items():
            right = [answer == example.reference for answer, example in zip(given, sets["new"], strict=True)]
            result[f"{RIVAL}{rival}"] = sum(right) / len(right)
    return result


def with_old_labels(demos: DemoSet, seed: int) -> DemoSet:
    """With the right answers to retention prompts (names and descriptions of drawn old types), for labelled replay."""
    kinds = list(zip(base_names(), base_types(), strict=True))
    answers = [{NAME_QUESTION: name, DESCRIBE_QUESTION: kind.description} for name, kind in kinds]
    numbers = mixed_types(demos.retain, 5, seed, len(kinds))
    retain = [replace(row, answer=answers[n].get(row.question)) for row, n in zip(demos.retain, numbers, strict=True)]
    return replace(demos, retain=retain)


def episodes(others: list[tuple[list[Image.Image], list[Image.Image]]], seed: int) -> list[Example]:
    """Questions about types that are shown in earlier turns of the same conversation, with names of their own."""
    examples = []
    for number in range(EPISODES):
        rng = np.random.default_rng([2030, seed, number])
        kinds, names = rng.choice(len(others), WAYS, replace=False), invented_names(WAYS, rng)
        asked = int(rng.integers(WAYS))
        turns = [(picture, names[w]) for w in range(WAYS) for picture in _some(others[kinds[w]][0], SHOWN, rng)]
        messages: list[dict[str, Any]] = []
        for i in rng.permutation(len(turns)):
            messages += _named(*turns[i])
        messages += _named(_some(others[kinds[asked]][1], 1, rng)[0], "")[:1]
        examples.append(Example(f"in context {number}", messages, reference=names[asked]))
    return examples


def _named(picture: Image.Image, name: str) -> Sequence[dict[str, Any]]:
    """The question about a picture, and its name as the answer."""
    return demonstration(ImageRow("", (picture,), NAME_QUESTION, name, None, "train")).messages


def _some(pictures: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    return [pictures[i] for i in rng.choice(len(pictures), count, replace=False)]


def last_name(answer: str) -> str:
    """The name at the end of a long answer."""
    return answer.rpartition(" called ")[2].strip()


if __name__ == "__main__":
    main()
