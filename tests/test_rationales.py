"""Rung 4: beside each demonstration stands what the model, as it was at the start, wrote about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from text_sdft.core import SDFTConfig, TeacherContext
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.cli import main
from vlm_sdft.images.files import load_image
from vlm_sdft.zoo import resolve_data

BUILTIN, DESCRIBE = "builtin:tiny-qwen3-vl", "Describe this."


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> DemoSet:
    made = tmp_path_factory.mktemp("made")
    return DemoSet.from_folder(resolve_data("builtin:novel-objects", made, n_types=3, n_unlabelled=1, n_test=2, n_old=1))


def bound(demos: DemoSet, **settings: Any) -> tuple[ImageAdapter, Any]:
    adapter = ImageAdapter(demos, n_types=3, rationale_question=DESCRIBE, **settings)
    model = adapter.load_model(BUILTIN)
    return adapter.bind(model), model


def shown(adapter: ImageAdapter, demos: DemoSet, rung: int = 4) -> dict[Any, tuple[str, str]]:
    """By image: what stands after the question, and the answer."""
    example = adapter.examples(demos.test)[0]
    found = adapter.demonstrations(example, TeacherContext(3, rung=rung))
    return {
        d.messages[0]["content"][0]["image"]: (
            "".join(part["text"] for part in d.messages[0]["content"][2:]),
            d.messages[-1]["content"],
        )
        for d in found
    }


def written_by_generate(model: Any, processor: Any, image: Any, answer: str) -> str:
    """As transformers does it by itself."""

    def asked(question: str) -> dict[str, Any]:
        return {
            "role": "user",
            "content": [{"type": "image", "image": load_image(image)}, {"type": "text", "text": question}],
        }

    conversation = [asked("What is this?"), {"role": "assistant", "content": answer}, asked(DESCRIBE)]
    inputs = processor.apply_chat_template(
        [conversation], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def test_each_demonstration_has_its_cues_and_what_the_model_wrote(demos):
    adapter, model = bound(demos)
    found, cued = shown(adapter, demos), shown(adapter, demos, rung=3)
    assert len(found) == 6
    for row in demos.labelled:
        wrote = written_by_generate(model, adapter.processing_class, row.images[0], str(row.answer))
        assert len(wrote.split()) >= 3
        assert found[row.images[0]] == (f"{cued[row.images[0]][0]} ({wrote})", row.answer)
    assert len({words for words, _ in found.values()}) >= 3, "rationales differ"


def test_the_settings_reach_it(demos):
    adapter, model = bound(demos, rung=4, template="quoted", system_prompt="You are a helpful assistant.")
    example = adapter.examples(demos.test)[0]
    assert adapter.demonstrations(example, TeacherContext(3)) == adapter.demonstrations(example, TeacherContext(3, rung=4))
    asked = []
    adapter = adapter.bind(model)
    encode = adapter.encode
    adapter.encode = lambda conversations: asked.extend(conversations) or encode(conversations)  # type: ignore[method-assign]
    assert shown(adapter, demos) and len(asked) == len(demos.labelled), "each is asked about once"
    assert all([m["role"] for m in conversation] == ["system", "user"] for conversation in asked)
    assert all("expert answered" in str(conversation) and DESCRIBE in str(conversation) for conversation in asked)
    assert shown(adapter, demos) and len(asked) == len(demos.labelled)


def trainer(policy: str, demos: DemoSet, folder: Path, rung: int) -> SDFTTrainer:
    """With a teacher that moves, at a rate at which it soon writes otherwise."""
    adapter, _ = bound(demos, rung=rung, policy=policy)
    settings = {**vlm(), "learning_rate": 3e-3, "max_steps": 4, "save_steps": 2, "teacher_model_kind": "ema"}
    settings |= {"teacher_update_rate": 0.5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    args = SDFTConfig(str(folder), **settings, use_cpu=True, disable_tqdm=True, save_strategy="steps")
    return SDFTTrainer(BUILTIN, args, adapter=adapter, train_dataset=demos.labelled)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "rung"), [("fixed", 4), ("ladder", 2)])
def test_the_model_at_the_start_writes_them_in_a_run_that_goes_on_too(demos, tmp_path, policy, rung):
    right = shown(bound(demos)[0], demos)
    whole = trainer(policy, demos, tmp_path / "whole", rung)
    whole.train()
    assert shown(whole.adapter, demos) == right
    assert shown(whole.adapter.bind(whole.module), demos) != right, "the trained model writes otherwise"
    resumed = trainer(policy, demos, tmp_path / "resumed", rung)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert shown(resumed.adapter, demos) == right
    for (name, one), other in zip(whole.module.named_parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_the_probe_measures_it_and_a_config_asks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = json.dumps({"n_types": 2, "n_unlabelled": 1, "n_test": 2, "n_retain": 1, "n_old": 1})
    args = ["--model", BUILTIN, "--data", "builtin:novel-objects", "--data.options", options]
    args += ["--demonstrations.n_types", "2", "--demonstrations.rationale_question", DESCRIBE]
    main(["probe", *args, "--train.output_dir", "runs/probe"])
    found = json.loads(Path("runs/probe/probe.json").read_text())
    assert found["accuracy"]["with its own rationale"]["n"] == 4 and "with its own rationale" in found["gaps"]
    capsys.readouterr()
    main(["preview", *args, "--demonstrations.rung", "4", "--train.output_dir", "runs/preview"])
    assert " ) ( a" in capsys.readouterr().out.replace("\n", " "), "cues, then the rationale"
