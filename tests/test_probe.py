"""The probe's numbers mean what they say, and its verdict follows from them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from tests.tiny_text import save_tiny_text_model, tiny_text_model
from text_sdft import TextAdapter
from text_sdft.core import Demonstration, Example, SDFTConfig, TeacherContext
from text_sdft.experiments.measure import answer_positions, right_answer_reading
from text_sdft.experiments.probe import VOTE
from text_sdft.experiments.scores import contexts_for, sample
from text_sdft.experiments.stats import Gap
from text_sdft.experiments.verdict import CHEAPER, Evidence, verdict
from text_sdft.training import SDFTTrainer
from vlm_sdft import DemoSet, ImageAdapter, vlm
from vlm_sdft.cli import main
from vlm_sdft.demos.controls import CONTROLS
from vlm_sdft.zoo import resolve_data

BUILTIN = "builtin:tiny-qwen3-vl"
CLEAR, NONE = Gap(0.8, 0.7, 0.9, 100), Gap(0.01, -0.03, 0.05, 100)
UP, DOWN = Gap(0.1, 0.02, 0.18, 100), Gap(-0.3, -0.4, -0.2, 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return resolve_data(
        "builtin:novel-objects", tmp_path_factory.mktemp("made"), n_types=4, n_unlabelled=1, n_test=6, n_old=1
    )


def bound(folder, **options) -> SDFTTrainer:
    """An untrained trainer on these images; they are its adapter's demonstrations."""
    adapter = ImageAdapter(DemoSet.from_folder(folder), n_types=4, **options)
    return SDFTTrainer(BUILTIN, SDFTConfig("runs/x", **{**vlm(), "use_cpu": True}), adapter=adapter)


def test_verdicts():
    good = verdict(Evidence(0.1, 0.9, CLEAR, kept={"blank images": (0.2, DOWN)}, rivals={"1-NN": 0.5}))
    assert good.decision == "train" and not good.notes and "teacher 90 %, student 10 %" in good.reason
    assert verdict(Evidence(0.1, 0.9, CLEAR, rivals={"1-NN": 0.9})).notes[0].startswith("1-NN is right in 90 %")
    blind = verdict(Evidence(0.1, 0.9, CLEAR, kept={"blank images": (0.6, UP), "shuffled labels": (0.1, DOWN)}))
    assert blind.decision == "do not train" and "blank images: 60 %" in blind.reason
    cued = verdict(Evidence(0.1, 0.9, CLEAR, others={"--demonstrations.rung 3": (1.0, CLEAR, UP)}))
    assert cued.decision == "train" and cued.option == "--demonstrations.rung 3" and "100 %" in cued.reason


def test_the_vote_of_disagreeing_draws_stands_for_the_teacher():
    voted = verdict(Evidence(0.5, 0.5, NONE, vote=(0.9, CLEAR, UP)))
    assert (
        voted.decision == "train"
        and "vote of its draws 90 %" in voted.reason
        and "Draws of the demonstrations disagree" in voted.notes[0]
    )
    told = verdict(Evidence(0.5, 0.5, NONE, vote=(0.9, CLEAR, UP), answer_alone=0.95))
    assert "demonstrations.rung 5" in told.notes[0] and "demonstrations.rung" not in voted.notes[0]
    agreed = verdict(Evidence(0.5, 0.5, NONE, vote=(0.51, NONE, NONE)))
    assert agreed.decision != "train" and "vote" not in agreed.reason
    assert not any("disagree" in note for note in agreed.notes)


def test_where_every_step_shows_the_same_the_cheaper_method_is_named():
    assert verdict(Evidence(0.1, 0.9, CLEAR, alike=True)).notes == (CHEAPER,)
    blind = Evidence(0.1, 0.9, CLEAR, kept={"blank images": (0.6, UP)}, alike=True)
    for nothing_to_learn in (blind, Evidence(0.8, 0.81, NONE, alike=True)):
        assert CHEAPER not in verdict(nothing_to_learn).notes


def test_verdicts_without_a_gap():
    no_gap = verdict(Evidence(0.8, 0.81, NONE))
    assert no_gap.decision == "do not train" and "no better" in no_gap.reason and "stronger model" in no_gap.notes[0]
    assert "more demonstrations" in no_gap.notes[0], "texts have no images"
    assert "Even with the right answer" in verdict(Evidence(0.1, 0.11, NONE, answer_alone=0.2)).notes[0]
    assert "knows this already" in verdict(Evidence(0.99, 1.0, NONE)).reason
    instead = verdict(Evidence(0.1, 0.11, NONE, others={"--demonstrations.shots 4": (0.5, CLEAR, UP)}))
    assert instead.decision == "try first" and instead.option == "--demonstrations.shots 4"
    unclear = verdict(Evidence(0.1, 0.2, Gap(0.1, -0.1, 0.3, 20)))
    assert unclear.decision == "try first" and unclear.option == "--eval.max_examples 80"
    few = verdict(Evidence(0.0, 0.0, Gap.of([0.0, 0.0], [0.0, 0.0])))
    assert few.decision == "try first" and "2 examples" in few.reason and "add test rows" in few.reason
    assert verdict(Evidence(0.0, 0.0, Gap.of([0.0] * 10, [0.0] * 10))).decision == "do not train"


def test_notes_on_a_teacher_that_does_not_follow_its_context():
    assert "exchanged" in verdict(Evidence(0.1, 0.9, CLEAR, permuted=0.3)).notes[0]
    assert "positions" in verdict(Evidence(0.1, 0.9, CLEAR, permuted=0.9, position_p=1e-5)).notes[0]


@pytest.mark.parametrize(("both", "first", "second", "neither"), [(120, 90, 30, 160), (10, 5, 60, 325), (380, 10, 4, 6)])
def test_the_paired_gap_agrees_with_the_bootstrap(both, first, second, neither):
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(0.0, 0.0)] * neither
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    gap = Gap.of(a.tolist(), b.tolist())
    drawn = stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert gap.mean == pytest.approx((first - second) / len(pairs))
    assert (gap.low, gap.high) == (pytest.approx(drawn.low, abs=0.012), pytest.approx(drawn.high, abs=0.012))


def test_the_paired_gap_never_collapses_and_takes_shares():
    assert Gap.of([1.0], [0.0]).low < 0 < Gap.of([1.0] * 40, [0.0] * 40).low < 1
    same = Gap.of([1.0] * 40, [1.0] * 40)
    assert same.low < 0 < same.high
    a, b = [0.2, 0.9, 0.4, 0.7], [0.1, 0.5, 0.4, 0.2]
    gap, reference = Gap.of(a, b), stats.ttest_rel(a, b).confidence_interval()
    assert (gap.low, gap.high) == (pytest.approx(reference.low), pytest.approx(reference.high))


def test_a_sample_is_drawn_from_all():
    examples = [Example(str(i), []) for i in range(100)]
    drawn = [int(example.id) for example in sample(examples, 20)]
    assert len(drawn) == 20 and drawn == sorted(drawn) and max(drawn) > 60
    assert sample(examples, None) == sample(examples, 200) == examples


def test_the_builtin_model_can_teach_itself_and_only_through_its_demonstrations(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["probe", "--model", BUILTIN, "--data", str(folder), "--train.output_dir", "runs/x", "--sweep"])
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    accuracy = {name: value["accuracy"] for name, value in numbers["accuracy"].items()}
    assert code == 0 and numbers["verdict"]["train"]
    assert accuracy["student"] <= 0.1 and accuracy["teacher"] >= 0.9
    assert VOTE not in accuracy, "all draws show the same demonstrations, in other orders"
    assert max(accuracy[name] for name in (*CONTROLS, "own type missing")) <= 0.4  # 4 types: chance is 0.25
    assert accuracy["permuted label words"] >= 0.9, "it follows its context"
    assert accuracy["the answer alone"] >= 0.9
    swept = {"--demonstrations.shots 1", "--demonstrations.selection random", "--demonstrations.n_types 1"}
    assert swept <= set(numbers["gaps"])
    assert numbers["answer"]["teacher"]["logp_answer"] > -1 > numbers["answer"]["student"]["logp_answer"]
    assert sum(numbers["positions"]["counts"]) >= 20
    assert numbers["tokens"]["teacher"] > numbers["tokens"]["student"]
    assert numbers["divergence"] > 0.5
    printed = capsys.readouterr().out
    assert "Train: with demonstrations" in printed and "nearest demonstration" in printed
    assert "--method sft_teacher" in printed, "each step shows a query the same demonstrations"


@pytest.mark.slow
def test_draws_that_show_different_types_vote(tmp_path, monkeypatch, capsys):
    """Two of four types at random: one draw shows the query's type half of the time, more of sixteen than any other."""
    monkeypatch.chdir(tmp_path)
    made = resolve_data("builtin:novel-objects", tmp_path, n_types=4, n_unlabelled=1, n_test=12, n_old=1)
    args = ["--model", BUILTIN, "--data", str(made), "--train.output_dir", "runs/x", "--demonstrations.n_types", "2"]
    assert main(["probe", *args, "--demonstrations.selection", "random"]) == 0
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    accuracy = {name: value["accuracy"] for name, value in numbers["accuracy"].items()}
    assert 0.25 < accuracy["teacher"] < 0.75 and accuracy[VOTE] > accuracy["teacher"] + 0.2
    assert numbers["gaps"][VOTE]["mean"] == pytest.approx(accuracy[VOTE] - accuracy["student"])
    assert "vote of its draws" in numbers["verdict"]["reason"] and "sft_teacher" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_judges_every_setting_by_what_a_student_may_reach(tmp_path, monkeypatch):
    """By the vote where draws disagree: of the settings tried, and of the present one, which others must beat."""
    monkeypatch.chdir(tmp_path)
    made = resolve_data("builtin:novel-objects", tmp_path, n_types=4, n_unlabelled=1, n_test=12, n_old=1, noise=150)
    args = ["--model", BUILTIN, "--data", str(made), "--train.output_dir", "runs/x", "--demonstrations.n_types", "2"]
    main(["probe", *args, "--demonstrations.selection", "retrieved", "--sweep"])
    found = json.loads(Path("runs/x/probe.json").read_text())["gaps"]
    random_draw = "--demonstrations.selection random"
    assert found[f"{random_draw}, {VOTE}"]["mean"] > found[random_draw]["mean"] + 0.1
    assert f"--demonstrations.n_types 1, {VOTE}" not in found, "retrieval shows the same in every draw"
    main(["probe", *args, "--demonstrations.selection", "random", "--sweep", "--eval.max_examples", "24"])
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    gaps, option = numbers["gaps"], numbers["verdict"]["option"]
    better = {name for name in gaps if name.startswith("--") and gaps[name]["mean"] > gaps[VOTE]["mean"]}
    assert {option, f"{option}, {VOTE}"} & better, option


def test_one_type_shown_is_a_teacher_too(folder, tmp_path, monkeypatch):
    """Selection decides and the model copies: that grey images would do as well is no reason not to train."""
    monkeypatch.chdir(tmp_path)
    args = ["--model", BUILTIN, "--data", str(folder), "--train.output_dir", "runs/x", "--demonstrations.n_types", "1"]
    assert main(["probe", *args]) == 0
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    accuracy = {name: value["accuracy"] for name, value in numbers["accuracy"].items()}
    assert not set(CONTROLS) & set(accuracy) and accuracy["own type missing"] == 0.0
    assert accuracy["teacher"] == pytest.approx(accuracy["nearest demonstration (own features)"], abs=0.1)


@pytest.mark.slow
def test_a_student_that_knows_the_types_has_nothing_to_learn(tmp_path, monkeypatch, capsys):
    """Four of the types that the builtin model can name are taught as if they were new."""
    monkeypatch.chdir(tmp_path)
    made = resolve_data("builtin:novel-objects", tmp_path / "made", n_types=1, n_unlabelled=0, n_test=1, n_old=5)
    for kind in sorted(file for file in (made / "old").iterdir() if file.is_dir())[:4]:
        for split, pattern in (("train", "00[01].png"), ("test", "00[234].png")):
            Path("known", split, kind.name).mkdir(parents=True)
            for file in kind.glob(pattern):
                shutil.copy(file, Path("known", split, kind.name))
    answers = yaml.safe_load((made / "types.yaml").read_text())
    known = {folder.name: answers[folder.name] for folder in Path("known/train").iterdir()}
    Path("known/types.yaml").write_text(yaml.safe_dump(known))
    args = ["--model", BUILTIN, "--data", "known", "--train.output_dir", "runs/x"]
    assert main(["probe", *args]) == 3
    assert "Do not train" in capsys.readouterr().out
    numbers = json.loads(Path("runs/x/probe.json").read_text())
    assert numbers["divergence"] < 0.2
    train = ["train", *args, "--train.max_steps", "1", "--train.output_dir", "runs/y", "--eval.max_examples", "8"]
    assert main(train) == 3
    assert "Do not train" in capsys.readouterr().err and not Path("runs/y").exists()
    assert main([*train, "--force", "--train.disable_tqdm", "true"]) == 0
    assert Path("runs/y/results.json").exists()


def test_text_is_probed_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_text_model(tmp_path / "tiny")
    rows = [{"prompt": f"What is {i}?", "privileged_context": f"It is {i}.", "reference": str(i)} for i in range(6)]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    args = ["--adapter", "text", "--model", model, "--data", "rows.jsonl", "--data.test", "rows.jsonl"]
    assert main(["probe", *args, "--train.max_completion_length", "4"]) == 3
    numbers = json.loads(Path("runs/rows/probe.json").read_text())
    assert set(numbers["accuracy"]) == {"student", "teacher", "the answer alone"}
    assert main(["probe", *args[:6], "--train.max_completion_length", "4"]) == 2
    assert "with a reference" in capsys.readouterr().err


def test_only_rows_that_show_the_teacher_something_are_probed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bare = [{"prompt": f"What is {i}?", "reference": str(i)} for i in range(6)]
    shown = {"prompt": "What is 6?", "reference": "6", "privileged_context": "It is 6."}
    args = ["probe", "--adapter", "text", "--model", save_tiny_text_model(tmp_path / "tiny"), "--eval.max_examples", "3"]
    args += ["--train.max_completion_length", "4", "--data", "rows.jsonl", "--data.test", "rows.jsonl"]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in [*bare, shown]))
    assert main(args) == 3
    assert json.loads(Path("runs/rows/probe.json").read_text())["gap"]["n"] == 1
    Path("bare.jsonl").write_text("\n".join(json.dumps(row) for row in bare))
    assert main([*args[:-1], "bare.jsonl"]) == 2
    assert "Give those rows what the teacher alone is shown: demonstrations" in capsys.readouterr().err


def test_a_teacher_that_is_shown_answers_in_training_is_measured_without_them(folder):
    """Else it would be right whatever it is worth, and so would the nearest demonstration."""
    trainer, plain = bound(folder, rung=5), bound(folder)
    examples = trainer.adapter.examples(trainer.adapter.demos.test)[:3]
    contexts = contexts_for(trainer, examples)
    for example, context in zip(examples, contexts, strict=True):
        shown = trainer.adapter.demonstrations(example, context)
        assert shown == plain.adapter.demonstrations(example, context) and len(shown) > 1


def test_how_probable_the_right_answer_is(folder):
    """Against the model's own forward on prompt and answer, one example at a time."""
    trainer = bound(folder)
    examples = trainer.adapter.examples(trainer.adapter.demos.test)[:3]
    contexts = contexts_for(trainer, examples)
    read = right_answer_reading(trainer, examples, contexts, size=2)
    logps, entropies = [], []
    tokenizer = trainer.adapter.processing_class.tokenizer
    for example, context in zip(examples, contexts, strict=True):
        inputs = trainer.adapter.encode([trainer.adapter.teacher_messages(example, context)])
        ids = torch.tensor([*tokenizer(example.reference)["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logits_LV = trainer.module(**inputs.batch([ids])).logits[0].float()
        logp_TV = logits_LV[-len(ids) - 1 : -1].log_softmax(-1)
        logps.append(logp_TV.gather(-1, ids[:, None]).squeeze(-1))
        entropies.append(-(logp_TV.exp() * logp_TV).sum(-1))
    assert read is not None
    assert read["logp_answer"] == pytest.approx(float(torch.stack([row.sum() for row in logps]).mean()), abs=1e-4)
    assert read["logp_token"] == pytest.approx(float(torch.cat(logps).mean()), abs=1e-4)
    assert read["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), abs=1e-4)


def test_the_right_answer_ends_as_the_chat_template_ends_it(tmp_path):
    """A chat model that may also stop at <|endoftext|> (here: <|pad|>, a smaller id) never writes it after an answer."""
    model, tokenizer = tiny_text_model()
    rows = [{"prompt": "A?", "reference": "yes"}]

    def read(ends: int | list[int]) -> dict[str, float] | None:
        model.generation_config.eos_token_id = ends
        trainer = SDFTTrainer(
            model, SDFTConfig(str(tmp_path), use_cpu=True), adapter=TextAdapter(), processing_class=tokenizer
        )
        return right_answer_reading(trainer, trainer.adapter.examples(rows), None, size=1)

    assert read([tokenizer.eos_token_id, tokenizer.pad_token_id]) == read(tokenizer.eos_token_id)


class Shown:
    """Ten answers in an order drawn by the seed."""

    def demonstrations(self, example: Example, context: TeacherContext) -> list[Demonstration]:
        words = random.Random(context.seed).sample([f"word {i}" for i in range(5)] * 2, 10)
        return [Demonstration([{"role": "user", "content": "?"}, {"role": "assistant", "content": w}]) for w in words]


def test_positions_that_are_favoured_show():
    examples = [Example(str(i), []) for i in range(300)]
    contexts = [TeacherContext(seed) for seed in range(300)]
    shown = [
        [d.messages[-1]["content"] for d in Shown().demonstrations(e, c)] for e, c in zip(examples, contexts, strict=True)
    ]
    fair = answer_positions(Shown(), examples, contexts, ["Word 3."] * 300)
    last = answer_positions(Shown(), examples, contexts, [words[-1] for words in shown])
    assert fair is not None and sum(fair["counts"]) == 300 and fair["p"] > 0.01
    assert last is not None and last["p"] < 1e-6 and last["counts"][-1] == max(last["counts"])
    assert answer_positions(Shown(), examples, contexts, ["other"] * 300) is None
    few = answer_positions(Shown(), examples[:9], contexts[:9], ["word 1"] * 9)
    assert few is not None and few["p"] is None
