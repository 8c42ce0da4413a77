"""The benchmark on unseen types: its folders, its episodes, one small cell, and its tables; without a network."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import hints
import numpy as np
import pytest
import run
import sequence
import settings
import sources
import tables
import torch
from PIL import Image, ImageDraw
from scipy import stats
from transformers import TrainerControl, TrainerState

from text_sdft import SDFTConfig
from text_sdft.experiments.answers import completions, score_all
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.demos.sets import ImageRow
from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.few_shot import FewShot

FOLDER = Path(__file__).parent.parent / "benchmarks" / "unseen_types"
RESULTS = ("unseen_types", "hints", "sequence")
SMALL = settings.Setting(types=2, unlabelled=1, steps=1)


def disc(kind: str, rng: np.random.Generator, held_out: bool) -> Image.Image:
    """A disc in the kind's colour: bright where it is held out, dark where not."""
    image = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(image).ellipse([2, 2, 29, 29], fill=(*((230 if held_out else 30) * (c == kind) for c in "rgb"), 255))
    return image


def test_folder_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discs = sources.Source({"validation": ["r", "g"], "test": ["b", "r", "g"], "making": []}, disc)
    monkeypatch.setitem(sources.SOURCES, "discs", lambda: discs)
    folder = sources.write_folder("discs", tmp_path, FewShot(n_types=3, shots=2, n_unlabelled=4, n_test=2))
    demos = DemoSet.from_folder(folder)
    assert (len(demos.labelled), len(demos.unlabelled), len(demos.test)) == (6, 12, 6)
    assert len({row.answer for row in demos.labelled} - {row.answer for row in demos.old}) == 3
    assert demos.retain and any(row.type is None for row in demos.old)
    # The middle of a test picture is bright, that of all others dark: only test pictures are the held-out kind.
    shown, held_out = ([_middle(row.images[0]) for row in rows] for rows in (demos.labelled + demos.unlabelled, demos.test))
    assert min(held_out) > 120 > max(shown)
    # Unlabelled files in the order of their names do not follow the types.
    colours = [int(np.asarray(Image.open(str(row.images[0])))[32, 32].argmax()) for row in demos.unlabelled]
    assert sum(a != b for a, b in itertools.pairwise(colours)) > 2
    tested = sources.write_folder("discs", tmp_path, FewShot(n_types=3, shots=2, n_unlabelled=4, n_test=2), as_tested=True)
    bright = DemoSet.from_folder(tested)
    assert min(_middle(row.images[0]) for row in bright.unlabelled) > 120, "in the style of the test images"
    assert max(_middle(row.images[0]) for row in bright.labelled) < 120
    before = {file: file.read_bytes() for file in folder.rglob("*.png")}
    sources.write_folder("discs", tmp_path, FewShot(n_types=3, shots=2, n_unlabelled=4, n_test=2))
    assert {file: file.read_bytes() for file in folder.rglob("*.png")} == before


def test_folders_with_other_first_types_share_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discs = sources.Source({"validation": [], "test": ["b", "r", "g"], "making": []}, disc)
    monkeypatch.setitem(sources.SOURCES, "discs", lambda: discs)
    counts = {"shots": 1, "n_unlabelled": 0, "n_test": 1}
    parts = [
        DemoSet.from_folder(sources.write_folder("discs", tmp_path, FewShot(first=first, n_types=n, **counts))).labelled
        for first, n in ((0, 3), (0, 1), (1, 2))
    ]
    whole, *halves = [{row.type: Path(str(row.images[0])).read_bytes() for row in rows} for rows in parts]
    assert len(whole) == 3 and halves[0] | halves[1] == whole and not halves[0].keys() & halves[1].keys()


def _middle(file: object) -> int:
    return int(np.asarray(Image.open(str(file)))[32, 32].max())


def test_splits_of_kinds_are_apart() -> None:
    kinds = [str(i) for i in range(50)]
    parts = sources.split(kinds, 10)
    assert [len(parts[name]) for name in ("validation", "test", "making")] == [10, 10, 30]
    assert sorted(itertools.chain(*parts.values())) == sorted(kinds)


@pytest.mark.slow
def test_described_objects_answer_with_the_description_then_the_name(tmp_path: Path) -> None:
    named, told = (
        DemoSet.from_folder(resolve_data("builtin:novel-objects", tmp_path, n_types=2, n_unlabelled=0, **options))
        for options in ({}, {"described": True})
    )
    described = {(row.type, row.images[0].name): row.answer for row in told.old if row.type is None}  # type: ignore[union-attr]
    assert described == {(row.type, row.images[0].name): row.answer for row in named.old if row.type is None}  # type: ignore[union-attr]
    for short, long in zip(named.labelled, told.labelled, strict=True):
        description, _, name = str(long.answer).rpartition(" called ")
        assert name == short.answer and description.split()[0] in ("a", "an")
        assert Path(str(long.images[0])).read_bytes() == Path(str(short.images[0])).read_bytes()


@pytest.mark.slow
def test_other_types_are_not_the_new_ones_and_the_model_learns_them_in_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "EPISODES", 20)
    monkeypatch.setattr(settings, "OTHERS", 8)
    asked = run.episodes(SMALL.other_types("test", 0), 0)
    for example in asked:
        answers = [m["content"] for m in example.messages if m["role"] == "assistant"]
        assert len(answers) == run.WAYS * run.SHOWN and answers.count(example.reference) == run.SHOWN
    untrained = run.run(SMALL, "test", 0, run.NOBODY, 0.0, tmp_path)
    assert untrained["in_context"] > 0.85 and untrained["teacher"] > 0.85 and untrained["old"] > 0.9
    assert untrained["new"] < 0.1 and untrained[f"{tables.RIVAL}nearest labelled image (own features)"] > 0.85


@pytest.mark.slow
def test_labels_of_replay_are_those_of_the_pictures(tmp_path: Path) -> None:
    """The builtin model names and describes the old types, and agrees with the labels."""
    demos = run.with_old_labels(SMALL.demos("test", 0, tmp_path), 0)
    rows = [replace(row, split="old") for row in demos.retain[::7]]
    adapter = ImageAdapter(replace(demos, old=rows), n_types=2, shots=2)
    trainer = run.make_trainer(adapter, demos.train, 1e-4, 1, 0)
    examples = adapter.examples(rows)
    right = score_all(
        adapter, examples, list(map(trainer.adapter.decode, completions(trainer, examples, None, 50, "test")))
    )
    assert len({row.question for row in rows}) == 2 and sum(right) > 0.9 * len(rows)


@pytest.mark.slow
def test_a_cell_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "EPISODES", 5)
    monkeypatch.setattr(settings, "OTHERS", 6)
    setting = settings.Setting(types=2, unlabelled=1, steps=30, described=True)
    scores = run.run(setting, "validation", 0, "SFT", 3e-3, tmp_path)
    assert set(scores) == {"new", "name", "old", "describing", "in_context"}
    assert scores["name"] >= scores["new"] and scores["name"] > 0.5
    assert scores["describing"] < 0.95  # nothing kept it


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["SDFT + retention, LoRA", "SFT, attention only", "SFT + labelled replay", "SDFT + retention, labels shown"]
)
def test_a_step_of_other_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(run, "EPISODES", 2)
    monkeypatch.setattr(settings, "OTHERS", 6)
    scores = run.run(SMALL, "validation", 0, method, run.rates_of(method)[0], tmp_path)
    assert scores["old"] > 0.8, "one step destroys nothing"


@pytest.mark.parametrize("method", run.CALLBACK_OF)
def test_attempts_differ_from_what_they_are_named_after(method: str) -> None:
    """The average is of the weights after each step; the weight of retention prompts grows from nothing to twice itself."""
    model, args = torch.nn.Linear(1, 1, bias=False), SDFTConfig("unused", retain_weight=0.5, max_steps=3, use_cpu=True)
    callback, state, weights = run.CALLBACK_OF[method](), TrainerState(max_steps=3), []
    for step in range(3):
        state.global_step = step
        callback.on_step_begin(args, state, TrainerControl())
        weights.append(args.retain_weight)
        torch.nn.init.constant_(model.weight, float(step))
        callback.on_step_end(args, state, TrainerControl(), model=model)
    callback.on_train_end(args, state, TrainerControl(), model=model)
    averaged = 0.95 * (0.95 * 0.0 + 0.05 * 1.0) + 0.05 * 2.0
    grown = "growing" in method
    assert weights == ([0.0, 0.5, 1.0] if grown else [0.5] * 3)
    assert model.weight.item() == pytest.approx(2.0 if grown else averaged)


def test_names_say_what_settings_are() -> None:
    found = settings.SETTINGS["objects, noise 90, 8 random types shown, 5 unlabelled"]
    assert (found.noise, found.shown, found.selection, found.unlabelled) == (90, 8, "random", 5)
    assert settings.SETTINGS["emoji, builtin model"] == settings.Setting("emoji")
    assert all(rates in settings.SETTINGS for rates in settings.RATES_FROM.values())


@pytest.mark.slow
def test_rows_from_labels_stand_in_each_setting_with_the_same_labels(tmp_path: Path) -> None:
    """They are trained once: their labelled images, retention prompts and tests are the same files' content."""
    name, plain = "objects, noise 150, 8 random types shown, 5 unlabelled", "objects, noise 150"
    assert settings.of_labels(name) == plain
    assert settings.of_labels("emoji, 5 labelled, 1 type shown") == "emoji, 5 labelled"
    assert settings.of_labels("objects, noise 150, 300 steps") == "objects, noise 150, 300 steps"
    few, many = (replace(SMALL, noise=150, unlabelled=n).demos("test", 0, tmp_path) for n in (1, 3))
    assert len(few.unlabelled) < len(many.unlabelled)
    for part in ("labelled", "retain", "test", "old"):
        one, other = ([_content(row) for row in getattr(demos, part)] for demos in (few, many))
        assert one == other, part
    base = {"new": 0.0, "old": 0.9, "describing": 0.5, "in_context": 1.0, "teacher": 0.9}
    done = {f"{name}/test/{seed}/untrained/0": base for seed in range(3)}
    done |= {f"{plain}/test/{seed}/SFT/0.001": {**base, "new": 0.7} for seed in range(4)}
    text = tables.report(run.rows_in(done))
    assert "| SFT, 0.001 | 3 | 70.0 ± 0.0 |" in text, "for the three seeds that the setting has"


def _content(row: ImageRow) -> tuple[object, ...]:
    return row.question, row.answer, Path(str(row.images[0])).read_bytes()


def test_a_rate_is_judged_by_new_types_and_by_what_is_kept() -> None:
    before = {"new": 0.0, "old": 1.0, "describing": 0.2, "in_context": 0.8}
    after = {"new": 0.9, "old": 0.5, "describing": 0.3, "in_context": 0.4}
    assert run.quality(after, before) == pytest.approx(stats.hmean([0.9, 0.5, 1.0, 0.5]))


def test_tables_hold_means_intervals_and_paired_differences() -> None:
    base = {
        "new": 0.0,
        "old": 0.9,
        "describing": 0.5,
        "in_context": 1.0,
        "teacher": 0.8,
        "rival: linear probe (own features)": 0.7,
    }
    new = [0.9, 0.92, 0.97]
    done: dict[str, dict[str, float]] = {f"a/test/{s}/untrained/0": base for s in range(3)}
    done |= {f"a/test/{s}/SDFT + retention/0.001": {**base, "new": v} for s, v in enumerate(new)}
    done["a/validation/0/SDFT + retention/0.0001"] = {**base, "new": 0.1}
    text = tables.report(tables.collect(done, ["a", "b"], ["untrained", "SDFT + retention"]))
    half = stats.t.ppf(0.975, 2) * stats.sem(np.asarray(new) * 100)
    assert f"| SDFT + retention, 0.001 | 3 | 93.0 ± {half:.1f} |" in text
    assert f"| SDFT + retention, 0.001 − teacher | 3 | **+13.0 ± {half:.1f}** |" in text
    assert "| linear probe | 3 | 70.0 ± 0.0 |" in text
    assert f"| a | 80.0 ± 0.0 | – | – | – | – | 93.0 ± {half:.1f} | +0.0 ± 0.0 | +0.0 ± 0.0 |" in text, "the summary"
    assert "### b" not in text and "10.0" not in text


def test_goals_are_bold_where_they_are_missed() -> None:
    base = {"new": 0.0, "old": 0.9, "describing": 0.5, "in_context": 1.0, "teacher": 0.9}
    done: dict[str, dict[str, float]] = {f"a/test/{s}/untrained/0": base for s in range(3)}
    after = {"new": 0.89, "old": 0.85, "describing": 0.5, "in_context": 0.99}
    done |= {f"a/test/{s}/SDFT + retention/0.001": after for s in range(3)}
    done |= {f"a/test/{s}/SFT/0.001": {**base, "new": 0.85 + 0.03 * s} for s in range(3)}
    done |= {f"a/test/{s}/SFT + retention/0.001": {**base, "new": 0.5} for s in range(3)}
    methods = ["untrained", "SFT", "SFT + retention", "SDFT + retention"]
    text = tables.report(tables.collect(done, ["a"], methods))
    half = stats.t.ppf(0.975, 2) * 3 / np.sqrt(3)
    row = f"| a | -1.0 ± 0.0 | **+1.0 ± {half:.1f}** | – | **-5.0 ± 0.0** | **-5.0 ± 0.0** | +0.0 ± 0.0 | -1.0 ± 0.0 |"
    assert row in text, "SFT is its own best; its interval holds 0"


def test_the_docs_hold_the_tables_of_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run.py --table`, `hints.py` and `sequence.py` print them again: nothing there is typed by hand."""
    benchmarks, docs = FOLDER.parent, FOLDER.parent.parent / "docs"
    results = {name: json.loads((benchmarks / "results" / f"{name}.json").read_text()) for name in RESULTS}
    found = run.rows_in(results["unseen_types"])
    for page in ("results-visual.md", "results-visual-tables.md"):
        (tmp_path / page).write_text((docs / page).read_text(encoding="utf-8"), encoding="utf-8")
    assert set(tables.HEADLINES) <= dict(tables.by_variant(found)).keys()
    tables.write_pages(found, tmp_path)
    for page in ("results-visual.md", "results-visual-tables.md"):
        assert (tmp_path / page).read_text(encoding="utf-8") == (docs / page).read_text(encoding="utf-8"), "run.py --table"
    assert sequence.table(results["sequence"]) in (docs / "sequences.md").read_text(encoding="utf-8")
    for table in hints.report(results["hints"]):
        assert table in (docs / "hints.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("row", "best"), [("SDFT", 3e-4), ("SDFT" + tables.ALONE, 1e-3)])
def test_a_row_for_new_types_alone_has_the_rate_that_is_best_for_them(tmp_path: Path, row: str, best: float) -> None:
    # The highest rate learns most and forgets all else; both rows read the same validation cells.
    kept = {1e-4: (0.2, 1.0), 3e-4: (0.8, 1.0), 1e-3: (0.9, 0.1)}
    scores = {f"SDFT/{rate:g}": (new, old) for rate, (new, old) in kept.items()} | {f"{run.NOBODY}/0": (0.0, 1.0)}
    cells = {
        f"emoji/validation/{seed}/{key}": {"new": new, "old": old, "describing": old, "in_context": old}
        for key, (new, old) in scores.items()
        for seed in range(3)
    }
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run.best_rate(run.Cells(tmp_path / "cells.json"), "emoji", row, seeds=3) == best
