"""SDFT and its rivals on types that the model has never seen: `python benchmarks/unseen_types/run.py --seeds 5`.

First `fetch.py` (pictures) and `build_model.py` (the broader model) for all settings but those on drawn objects. Every
method has the same labelled images, the same unlabelled ones where it can use them, the same optimiser steps and the same
grid of learning rates. The rate is chosen on validation types (of the setting `rates_from`), by the harmonic mean of new
types and what is kept of old types, of describing, and of learning from demonstrations of yet other types; in rows *for new
types alone* by the new types. Test types are measured once a row and seed. A finished cell is not run again; `--settings`
and `--methods` choose what is run (no method: the model as it is), `--table` runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from attempts import AveragedStudent, GrowingRetention
from build_model import MODEL as BROADER
from cells import MODEL, Cells, make_trainer, mixed_types
from PIL import Image
from sources import SOURCES, new_kinds, write_folder
from tables import ALONE, LORA, RIVAL, report
from transformers import set_seed

from text_sdft.core import Example, SDFTTrainer, default_lora
from text_sdft.experiments.method_trainer import MethodTrainer
from text_sdft.experiments.scores import contexts_for, evaluate
from vlm_sdft import DemoSet, ImageAdapter, retain_in_context
from vlm_sdft.selection import Selection
from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.drawing import draw
from vlm_sdft.zoo.few_shot import FewShot
from vlm_sdft.zoo.novel_objects import NovelObjects
from vlm_sdft.zoo.objects import base_types
from vlm_sdft.zoo.skills import user
from vlm_sdft.zoo.vocabulary import (
    DESCRIBE_AND_NAME_QUESTION,
    DESCRIBE_QUESTION,
    NAME_QUESTION,
    base_names,
    invented_names,
)

RATES = (1e-4, 3e-4, 1e-3)
#: what the tables call it -> the method's name in this package
METHODS = {
    "SFT": "sft/no_retain",
    "SFT + retention": "sft",
    "SFT from teacher": "sft_teacher/no_retain",
    "SFT from teacher + retention": "sft_teacher",
    "SDFT, labelled images only": "sdft/labelled/no_retain",
    "SDFT": "sdft/no_retain",
    "SDFT + retention": "sdft",
    "SDFT + retention, by entropy": "sdft/entropy",
    "SDFT + retention, by agreement": "sdft/agreement",
    "SDFT + retention, twice its weight": "sdft",
    "SDFT + retention, growing weight": "sdft",
    "SDFT + retention, averaged student": "sdft",
    "SDFT + retention, half in context": "sdft",
    "SFT from teacher + retention, half in context": "sft_teacher",
    "SDFT + retention, half in context, twice its weight": "sdft",
    "SFT, attention only": "sft_attention/no_retain",
    "SFT + labelled replay": "replay",
    "DFT + retention": "dft",
    "offline distillation + retention": "offline",
    "SFT from teacher + retention, fresh answers": "sft_teacher/fresh",
    "offline distillation + retention, fresh answers": "offline/fresh",
}
#: Rows that stand beside each other in each of the variants below.
MAIN = ("SFT", "SFT + retention", "SFT from teacher + retention", "SDFT + retention")
#: Those whose learning rate is chosen by new types alone.
METHODS |= {name + ALONE: METHODS[name] for name in MAIN}
#: Those that train an adapter instead of all weights of the language model, at ten times the rates.
METHODS |= {name + LORA: METHODS[name] for name in MAIN}
#: How some differ from the method that they are named after: settings, and a callback.
TWICE = {"retain_weight": 2.0}
SETTINGS_OF = {
    "SDFT + retention, twice its weight": TWICE,
    "SDFT + retention, half in context, twice its weight": TWICE,
}
CALLBACK_OF = {
    "SDFT + retention, growing weight": GrowingRetention,
    "SDFT + retention, averaged student": AveragedStudent,
}
#: In-context learning: questions, types of an episode, pictures of each, and types to draw them from.
EPISODES, WAYS, SHOWN, OTHERS = 150, 5, 2, 25


@dataclass(frozen=True)
class Setting:
    """What is learnt from what.

    ``broader``: by the model of `build_model.py`, not the builtin one; ``shown``: types that the teacher is shown,
    ``selection``: which ones (see `vlm_sdft.selection`);
    ``as_tested``: unlabelled images are in the style of the test images (see `write_folder`);
    ``described``: answers are descriptions that end in the name; ``rates_from``: the setting on whose validation types
    learning rates are chosen.
    """

    source: str = "objects"
    broader: bool = False
    noise: int = 0
    steps: int = 100
    shots: int = 2
    types: int = 10
    shown: int = 5
    selection: Selection = "retrieved"
    unlabelled: int = 20
    as_tested: bool = False
    described: bool = False
    rates_from: str = "objects, noise 90"

    @property
    def model(self) -> str:
        return str(BROADER) if self.broader else MODEL

    def demos(self, split: str, seed: int, cache: Path) -> DemoSet:
        """The setting's folder, drawn if need be."""
        spec = FewShot(n_types=self.types, shots=self.shots, n_unlabelled=self.unlabelled, seed=seed, split=split)
        if self.source == "objects":
            drawn = {**asdict(spec), "noise": self.noise, "described": self.described}
            folder = resolve_data("builtin:novel-objects", cache, **drawn)
        else:
            folder = write_folder(self.source, cache, spec, self.noise, self.as_tested)
        question = DESCRIBE_AND_NAME_QUESTION if self.described else NAME_QUESTION
        asked = list(dict.fromkeys([question, NAME_QUESTION, DESCRIBE_QUESTION]))
        return DemoSet.from_folder(folder, question=question, retain_questions=asked)

    def other_types(self, split: str, seed: int) -> list[tuple[list[Image.Image], list[Image.Image]]]:
        """Pictures of types that are neither new nor old: shown ones, and those that are asked about."""
        rng = np.random.default_rng([2031, seed])
        if self.source in SOURCES and self.source != "fashion":
            source = SOURCES[self.source]()
            kinds = new_kinds(source, split, seed)[self.types : self.types + OTHERS]
            picture = [partial(source.picture, kind, rng, noise=self.noise) for kind in kinds]
            return [([show(held_out=False) for _ in range(4)], [show(held_out=True) for _ in range(3)]) for show in picture]
        others = NovelObjects(n_types=OTHERS, first=self.types, seed=seed, split=split).new_types().values()
        return [tuple([draw(kind, rng, noise=self.noise) for _ in range(n)] for n in (4, 3)) for kind in others]  # type: ignore[misc]


SETTINGS = {
    "objects, noise 90": Setting(noise=90),
    "objects, noise 90, 300 steps": Setting(noise=90, steps=300, rates_from="objects, noise 90, 300 steps"),
    "objects, noise 150": Setting(noise=150, rates_from="objects, noise 150"),
    "objects, noise 150, 300 steps": Setting(noise=150, steps=300, rates_from="objects, noise 150"),
    "objects, noise 150, 5 unlabelled": Setting(noise=150, unlabelled=5, rates_from="objects, noise 150, 5 unlabelled"),
    "objects, long answers, noise 60": Setting(noise=60, described=True, rates_from="objects, long answers, noise 60"),
    **{
        f"objects, noise 90, {n} random types shown{', 5 unlabelled' * (unlabelled == 5)}": Setting(
            noise=90,
            shown=n,
            selection="random",
            unlabelled=unlabelled,
            rates_from=f"objects, noise 90, {n} random types shown{', 5 unlabelled' * (unlabelled == 5)}",
        )
        for n in (5, 8)
        for unlabelled in (20, 5)
    },
    "emoji": Setting("emoji", broader=True, rates_from="emoji"),
    "handwriting": Setting("handwriting", broader=True, rates_from="handwriting"),
    "fashion": Setting("fashion", broader=True, types=5, rates_from="fashion"),
    "objects, noise 150, 1 type shown": Setting(noise=150, shown=1, rates_from="objects, noise 150, 1 type shown"),
    "emoji, 1 type shown": Setting("emoji", broader=True, shown=1, rates_from="emoji, 1 type shown"),
    "handwriting, 1 type shown": Setting("handwriting", broader=True, shown=1, rates_from="handwriting, 1 type shown"),
    **{
        f"{source}, {shown} shown, unlabelled as tested": Setting(
            source, broader=True, shown=n, as_tested=True, rates_from=f"{source}, {shown} shown, unlabelled as tested"
        )
        for source in ("emoji", "handwriting")
        for shown, n in (("1 type", 1), ("5 types", 5))
    },
    "emoji, builtin model": Setting("emoji"),
    "handwriting, builtin model": Setting("handwriting"),
    "fashion, builtin model": Setting("fashion", types=5),
    "objects, noise 90, 5 labelled": Setting(noise=90, shots=5, rates_from="objects, noise 90, 5 labelled"),
    "emoji, 5 labelled": Setting("emoji", broader=True, shots=5, rates_from="emoji, 5 labelled"),
    "handwriting, 5 labelled": Setting("handwriting", broader=True, shots=5, rates_from="handwriting, 5 labelled"),
    "emoji, 5 labelled, 1 type shown": Setting(
        "emoji", broader=True, shots=5, shown=1, rates_from="emoji, 5 labelled, 1 type shown"
    ),
    "handwriting, 5 labelled, 1 type shown": Setting(
        "handwriting", broader=True, shots=5, shown=1, rates_from="handwriting, 5 labelled, 1 type shown"
    ),
}
NOBODY = "untrained"
IN_CONTEXT = "half in context"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation_seeds", type=int, default=3, help="by which learning rates are chosen")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unseen_types.json"))
    args = parser.parse_args()
    cells = Cells(args.out)
    if not args.table:
        for name in args.settings:
            rates = {
                method: best_rate(cells, SETTINGS[name].rates_from, method, args.validation_seeds)
                for method in args.methods
            }
            for seed in range(args.seeds):
                cell(cells, name, "test", seed, NOBODY, 0.0)
                for method in args.methods:
                    cell(cells, name, "test", seed, method, rates[method])
    print(report(cells.done, list(SETTINGS), [NOBODY, *METHODS]))


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
    adapter = ImageAdapter(demos, n_types=setting.shown, shots=setting.shots, selection=setting.selection)
    trained = method != NOBODY
    kind = partial(MethodTrainer, method=METHODS[method], full_batches=True) if trained else SDFTTrainer
    changes = SETTINGS_OF.get(method, {}) | ({"peft_config": default_lora()} if method.endswith(LORA) else {})
    set_seed(seed)  # an adapter's start
    trainer = make_trainer(adapter, demos.train, rate, setting.steps, seed, model=setting.model, kind=kind, **changes)  # type: ignore[arg-type]
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
        for rival, given in adapter.rivals(sets["new"], contexts_for(trainer, sets["new"])).items():
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
            messages += [user(turns[i][0], NAME_QUESTION), {"role": "assistant", "content": turns[i][1]}]
        messages.append(user(_some(others[kinds[asked]][1], 1, rng)[0], NAME_QUESTION))
        examples.append(Example(f"in context {number}", messages, reference=names[asked]))
    return examples


def _some(pictures: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    return [pictures[i] for i in rng.choice(len(pictures), count, replace=False)]


def last_name(answer: str) -> str:
    """The name at the end of a long answer."""
    return answer.rpartition(" called ")[2].strip()


if __name__ == "__main__":
    main()
