"""The kit passes on the adapters of this project and on an installed one, and catches broken ones."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.families import build_family
from tests.kinds import demo_set
from tests.tiny_text import save_tiny_text_model, tiny_text_model
from tests.toy import ToyAdapter, toy_model, toy_rows
from text_sdft import ModelInputs, RowInputs, TextAdapter
from text_sdft.testing import PROMISES, check_adapter
from vlm_sdft.adapter import ImageAdapter

ROOT = Path(__file__).parent.parent
ROWS = [
    {
        "id": "sum",
        "prompt": "What is 2 + 2?",
        "demonstrations": [
            {"prompt": "What is 1 + 1?", "answer": "two"},
            {"prompt": "What is 1 + 2?", "answer": "three"},
            {"prompt": "What is 5 + 2?", "answer": "seven"},
        ],
        "reference": "four",
    },
    {"id": "name", "prompt": "Name the ship.", "privileged_context": "The ship is the Argo.", "reference": "Argo"},
    {"id": "hello", "prompt": "Say hello.", "golden_response": "Hello, friend."},
    {"id": "kept", "prompt": "How are you?", "retain": True},
]


def sentence(name: str) -> str:
    promise = next(promise for promise in PROMISES if promise.__name__ == name)
    return (promise.__doc__ or "").splitlines()[0]


def bound(adapter):
    model, tokenizer = tiny_text_model()
    return adapter.bind(model, tokenizer), model


@pytest.mark.parametrize("template", [None, "turns", "quoted"])
def test_the_text_adapter_keeps_every_promise_but_media(template):
    adapter, model = bound(TextAdapter(teacher_prompt_template=template, system_prompt="Be brief."))
    rows = ROWS if template is None else [ROWS[0], ROWS[3]]  # "quoted" shows no privileged context
    assert check_adapter(adapter, model, rows) == [
        sentence(promise.__name__) for promise in PROMISES if promise.__name__ != "media_reach_the_model"
    ]


def test_the_image_adapter_keeps_every_promise():
    model, processor = build_family("qwen3_vl")
    adapter = ImageAdapter(demo_set(), n_types=3, shots=2).bind(model, processor)
    demos = demo_set()
    rows = [*demos.train[:2], *demos.test[:2], *(row for row in demos.train if row.split == "retain")]
    assert check_adapter(adapter, model, rows) == [sentence(promise.__name__) for promise in PROMISES]


def test_an_adapter_without_a_tokenizer_can_be_checked():
    assert sentence("batching_changes_nothing") in check_adapter(ToyAdapter(), toy_model(), toy_rows(4, retained=1))


def test_promises_that_rows_cannot_show_are_not_claimed():
    checked = check_adapter(*bound(TextAdapter()), [{"prompt": "How are you?"}])
    shown = {sentence(name) for name in ("context_moves_the_teacher", "scores_are_shares", "retention_views_are_equal")}
    assert not shown & set(checked)


# ---- broken adapters ----


class LeaksTheReference(TextAdapter):
    def student_messages(self, example):
        return [*super().student_messages(example)[:-1], {"role": "user", "content": f"Say {example.reference}"}]


class LeaksDemonstrations(TextAdapter):
    def student_messages(self, example):
        return [message for d in example.demonstrations for message in d.messages] + list(example.messages)


class AsksTheTeacherSomethingElse(TextAdapter):
    def teacher_messages(self, example, context):
        return [*super().teacher_messages(example, context)[:-1], {"role": "user", "content": "Well?"}]


class DropsDemonstrations(TextAdapter):
    def teacher_messages(self, example, context):
        return super().teacher_messages(replace(example, demonstrations=()), context)


class ForgetsTheContext(TextAdapter):
    def teacher_messages(self, example, context):
        return super().teacher_messages(replace(example, privileged_context=None), context)


class DrawsAtRandom(TextAdapter):
    counter = itertools.count()

    def demonstrations(self, example, context):
        shown = super().demonstrations(example, context)
        start = next(self.counter) % max(1, len(shown))
        return shown[start:] + shown[:start]


class TeachesRetention(TextAdapter):
    def teacher_messages(self, example, context):
        shown = super().teacher_messages(example, context)
        return [{"role": "system", "content": "Think."}, *shown] if example.retain else shown


class PadsInsideRows(TextAdapter):
    def encode(self, conversations):
        inputs = super().encode(conversations)
        width = max(inputs.lengths)
        rows = [torch.nn.functional.pad(row.tokens["input_ids"], (width - len(row), 0)) for row in inputs.rows]
        return replace(inputs, rows=[RowInputs({"input_ids": ids}) for ids in rows])


class DropsImages(TextAdapter):
    def teacher_messages(self, example, context):
        *before, last = super().teacher_messages(example, context)
        return [
            *before,
            {**last, "content": [{"type": "text", "text": last["content"]}, {"type": "image", "image": "a.png"}]},
        ]

    def encode(self, conversations):
        texts = [
            [{**m, "content": m["content"] if isinstance(m["content"], str) else m["content"][0]["text"]} for m in c]
            for c in conversations
        ]
        return super().encode(texts)


class UnmaskedPadding(ModelInputs):
    def batch(self, completions=None, device=None):
        out = super().batch(completions, device)
        return {"input_ids": out["input_ids"], "attention_mask": torch.ones_like(out["attention_mask"])}


class MisjudgesPadding(TextAdapter):
    def encode(self, conversations):
        inputs = super().encode(conversations)
        return UnmaskedPadding(inputs.rows, inputs.pad_token_id)


class IgnoresTheLimit(TextAdapter):
    def demonstrations(self, example, context):
        return super().demonstrations(example, replace(context, max_demonstrations=None))


class KeepsSpecialTokens(TextAdapter):
    def decode(self, ids):
        return self.processing_class.decode(ids)


class ScoresInPercent(TextAdapter):
    def score(self, example, answer):
        score = super().score(example, answer)
        return None if score is None else 100 * score


class RepeatsIds(TextAdapter):
    def examples(self, rows):
        return [replace(example, id="same") for example in super().examples(rows)]


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (LeaksTheReference, "student_sees_the_query_alone"),
        (LeaksDemonstrations, "student_sees_the_query_alone"),
        (AsksTheTeacherSomethingElse, "teacher_answers_the_same_query"),
        (DropsDemonstrations, "teacher_shows_its_demonstrations"),
        (ForgetsTheContext, "context_moves_the_teacher"),
        (DrawsAtRandom, "draws_are_deterministic"),
        (TeachesRetention, "retention_views_are_equal"),
        (PadsInsideRows, "rows_are_encoded_apart"),
        (MisjudgesPadding, "batching_changes_nothing"),
        (IgnoresTheLimit, "fewer_demonstrations_shorten_the_prompt"),
        (KeepsSpecialTokens, "decoding_leaves_out_special_tokens"),
        (ScoresInPercent, "scores_are_shares"),
        (RepeatsIds, "ids_are_unique_and_stable"),
    ],
)
def test_a_broken_adapter_is_caught_by_the_promise_it_breaks(broken, promise):
    with pytest.raises(AssertionError, match=re.escape(sentence(promise))):
        check_adapter(*bound(broken()), ROWS)


def test_images_that_are_dropped_are_caught():
    rows = [{"prompt": "What?", "demonstrations": [{"prompt": "Which?", "answer": "that"}]}]
    with pytest.raises(AssertionError, match="has no media tensor"):
        check_adapter(*bound(DropsImages()), rows)


def test_missing_methods_are_named():
    with pytest.raises(AssertionError, match=r"lacks bind, decode, .*score"):
        check_adapter(object(), toy_model(), [])


# ---- an adapter from another package ----


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that has `examples/board_adapter` installed."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(ROOT / "examples" / "board_adapter", folder / "source")  # building writes beside its source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(source)]
    if importlib.util.find_spec("setuptools"):  # else pip fetches it for the build
        pip += ["--no-build-isolation", "--no-index"]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    paths = os.pathsep.join([str(ROOT), str(folder / "site")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def test_a_new_modality_takes_less_than_a_hundred_lines_and_inherits_from_the_core_alone():
    source = (ROOT / "examples" / "board_adapter" / "board_adapter.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 100 and "(ChatAdapter)" in source
    assert not re.search(r"TextAdapter|ImageAdapter|vlm_sdft", source.replace('"vlm_sdft.adapters"', ""))
    assert f"```python\n{source}```" in (ROOT / "docs" / "writing-an-adapter.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_documented_example_installs_is_found_and_conforms(tmp_path, installed):
    """Runs the Python blocks of docs/writing-an-adapter.md behind the adapter itself."""
    text = (ROOT / "docs" / "writing-an-adapter.md").read_text(encoding="utf-8")
    _, *blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    code = "\n".join([f"MODEL = {save_tiny_text_model(tmp_path / 'model')!r}", *blocks])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checked = [sentence(promise.__name__) for promise in PROMISES if promise.__name__ != "media_reach_the_model"]
    assert done.stdout.splitlines() == checked


@pytest.mark.slow
def test_the_documented_example_trains_through_the_command_line(tmp_path, installed):
    model = save_tiny_text_model(tmp_path / "model")
    options = ["--model", model, "--lora.enabled", "false", "--force", "--eval.max_examples", "4"]
    train = {"output_dir": tmp_path / "run", "max_steps": 2, "max_completion_length": 4, "learning_rate": 1e-2}
    train |= {"bf16": "false", "use_cpu": "true", "disable_tqdm": "true", "mask_truncated_completions": "false"}
    options += [str(part) for name, value in train.items() for part in (f"--train.{name}", value)]
    argv = [sys.executable, "-m", "vlm_sdft.cli", "train", "examples/board_adapter/config.yaml", *options]
    done = subprocess.run(argv, capture_output=True, text=True, env=installed, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "44 positions, 16 of them with an expert's move" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["after"]["new"]["n"] == 4 and results["rows"]["rows of train"] == 44
