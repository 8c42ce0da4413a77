"""What the teacher is shown at each rung and under each control, and what its rivals see."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from text_sdft import TextAdapter
from text_sdft.core import TeacherContext, UserError
from text_sdft.experiments.measure import answer_positions
from vlm_sdft import DemoSet, ImageAdapter
from vlm_sdft.demos.controls import BLANK, CONTROLS, SHUFFLED
from vlm_sdft.images.files import load_image
from vlm_sdft.zoo import resolve_data

BUILTIN = "builtin:tiny-qwen3-vl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return resolve_data(
        "builtin:novel-objects", tmp_path_factory.mktemp("made"), n_types=4, n_unlabelled=1, n_test=3, n_old=1
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A small open_clip model with random weights."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    place = tmp_path_factory.mktemp("clip")
    (place / "ViT-small-with-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(place)
    torch.save(open_clip.create_model("ViT-small-with-words").state_dict(), place / "weights.pt")
    return f"open_clip:ViT-small-with-words/{place / 'weights.pt'}"


def parts(shown):
    return [(d.messages[0]["content"][0]["image"], d.messages[-1]["content"]) for d in shown]


def test_controls_spoil_what_they_say(folder):
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, selection="fixed", n_types=4)
    example = adapter.examples(demos.test)[0]
    right = adapter.demonstrations(example, TeacherContext(3))
    blank, shuffled = (parts(adapter.demonstrations(example, TeacherContext(3, control=c))) for c in (BLANK, SHUFFLED))
    assert [answer for _, answer in blank] == [answer for _, answer in parts(right)]
    assert all(len(load_image(image).getcolors() or []) == 1 for image, _ in blank)
    pairs = {(before, after) for (_, before), (_, after) in zip(parts(right), shuffled, strict=True)}
    assert len(pairs) == 4 and all(before != after for before, after in pairs), "one wrong answer for each type"
    assert [image for image, _ in shuffled] == [image for image, _ in parts(right)]
    moved = adapter.relabelled(example, TeacherContext(3, control=SHUFFLED))
    assert moved is not None and moved.reference == dict(pairs)[example.reference]
    assert adapter.score(moved, moved.reference) == 1.0 and adapter.score(moved, example.reference) == 0.0


def test_rungs_show_what_they_say(folder):
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, selection="fixed", n_types=4)
    test, unlabelled = adapter.examples([demos.test[0], demos.unlabelled[0]])
    assert adapter.rungs(test) == (0, 1, 2, 3, 4, 5) and adapter.rungs(unlabelled) == (0, 2, 3, 4)

    def shown(rung):
        return adapter.demonstrations(test, TeacherContext(3, rung=rung))

    assert shown(0) == [] and adapter.teacher_messages(test, TeacherContext(rung=0)) == adapter.student_messages(test)
    assert test.reference not in {answer for _, answer in parts(shown(1))} and len(shown(1)) == 6
    assert shown(2) == adapter.demonstrations(test, TeacherContext(3))
    kind = demos.types[demos.test[0].type]
    cued = next(d.messages[0]["content"] for d in shown(3) if d.messages[-1]["content"] == kind.answer)
    assert cued[-1]["text"] == f" ({', '.join(kind.cues)})"
    assert parts(shown(5)) == [(demos.test[0].images[0], test.reference)]
    assert len(adapter.demonstrations(unlabelled, TeacherContext(3, rung=5))) == 8, "its answer is not known: rung 2"


def test_the_answer_is_shown_with_training_rows_alone(folder):
    """Else a teacher that is measured would be right whatever it is worth, and so would the nearest demonstration."""
    demos = DemoSet.from_folder(folder)
    answers, chosen = (ImageAdapter(demos, selection="fixed", n_types=4, rung=rung) for rung in (5, 2))
    labelled, test = answers.examples([demos.labelled[0], demos.test[0]])
    assert parts(answers.demonstrations(labelled, TeacherContext(3))) == [(demos.labelled[0].images[0], labelled.reference)]
    assert answers.demonstrations(test, TeacherContext(3)) == chosen.demonstrations(test, TeacherContext(3)) != []
    asked = answers.demonstrations(test, TeacherContext(3, rung=5))
    assert parts(asked) == [(demos.test[0].images[0], test.reference)], "the probe asks for it"


def test_an_unknown_rung_is_refused(folder):
    with pytest.raises(UserError, match="rung is 6; use 0"):
        ImageAdapter(DemoSet.from_folder(folder), rung=6)


def test_what_a_row_does_not_have_is_not_offered(folder):
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, selection="fixed")
    example = adapter.examples(demos.test)[0]
    assert adapter.controls(example) == CONTROLS
    own = replace(example, demonstrations=adapter.demonstrations(example, TeacherContext())[:2])
    assert adapter.controls(own) == (BLANK,) and adapter.rungs(own) == (0, 2, 5)
    words = replace(example, meta={}, privileged_context="It is a dax.")
    assert adapter.controls(words) == (), "nothing to spoil"
    retained = adapter.examples(demos.retain)[0]
    assert adapter.controls(retained) == () == adapter.rungs(retained)
    demos = DemoSet.from_folder(folder)
    demos.labelled[0] = replace(demos.labelled[0], answer="a red star called dax")  # an answer of its own
    described = ImageAdapter(demos, selection="fixed")
    assert described.controls(example) == (BLANK,) and described.rungs(example) == (0, 2, 3, 4, 5)


def test_where_one_type_is_shown_its_name_is_to_be_copied(folder):
    demos = DemoSet.from_folder(folder)
    [example] = ImageAdapter(demos).examples(demos.test[:1])
    one_shown = ImageAdapter(demos, selection="fixed", n_types=1)
    assert one_shown.controls(example) == (), "a grey image under the right name takes nothing away: selection has looked"
    assert 1 in one_shown.rungs(example) and one_shown.demonstrations(example, TeacherContext(rung=1))
    alone = replace(demos, labelled=[row for row in demos.labelled if row.type == demos.test[0].type])
    one_known = ImageAdapter(alone, selection="fixed", n_types=1)
    assert one_known.controls(example) == (BLANK,), "nothing was selected: a teacher that does not look is found out"
    assert 1 not in one_known.rungs(example)


#: On the model's own vision features.
OWN_RIVALS = [
    f"{name} (own features)"
    for name in ("nearest demonstration", "nearest labelled image", "linear probe", "Tip-Adapter without names")
]


def test_rivals_see_the_demonstrations_that_the_teacher_sees(folder):
    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, n_types=4)
    adapter = adapter.bind(adapter.load_model(BUILTIN))
    rows = adapter.examples(demos.test)
    ready = [replace(e, meta={}) for e in rows]  # an example made by hand: no row of the demo set
    contexts = [TeacherContext(i) for i in range(len(rows))]
    rivals = adapter.rivals(rows, contexts)
    right = [e.reference for e in rows]
    assert rivals == dict.fromkeys(OWN_RIVALS, right)
    assert set(adapter.rivals_left_out()) == {"zero-shot by name", "Tip-Adapter with names"}
    without = adapter.rivals(rows, [replace(c, rung=1) for c in contexts])
    assert all(a != b for a, b in zip(without["nearest demonstration (own features)"], right, strict=True))
    assert without["nearest labelled image (own features)"] == right
    shown = [adapter.demonstrations(e, c) for e, c in zip(rows, contexts, strict=True)]
    ready = [replace(e, demonstrations=d) for e, d in zip(ready, shown, strict=True)]
    assert adapter.rivals(ready, contexts) == rivals


def test_open_clip_answers_by_the_demonstrated_names(folder, clip):
    import open_clip

    demos = DemoSet.from_folder(folder)
    adapter = ImageAdapter(demos, n_types=2, embedder=clip)
    adapter = adapter.bind(adapter.load_model(BUILTIN))
    examples = adapter.examples(demos.test)[:4]
    contexts = [TeacherContext(i) for i in range(4)]
    rivals = adapter.rivals(examples, contexts)
    assert {name.replace("own features", "open_clip").replace(" without names", "") for name in OWN_RIVALS} <= set(rivals)
    assert set(OWN_RIVALS) <= set(rivals) and adapter.rivals_left_out() == {}
    model, _, transform = open_clip.create_model_and_transforms("ViT-small-with-words", pretrained=clip.partition("/")[2])
    tokenizer = open_clip.get_tokenizer("ViT-small-with-words")
    for example, context, given in zip(examples, contexts, rivals["zero-shot by name (open_clip)"], strict=True):
        names = list(dict.fromkeys(d.messages[-1]["content"] for d in adapter.demonstrations(example, context)))
        assert len(names) == 2
        with torch.no_grad():
            image_logits, _ = model.eval()(
                transform(load_image(adapter.example_images(example)[0]))[None],
                tokenizer([f"a photo of a {name}." for name in names]),
            )[:2]
            texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in names]), normalize=True)
        assert given == names[int((image_logits @ texts.T).argmax())]


def test_rungs_of_text():
    adapter = TextAdapter()
    row = {"prompt": "What is 7?", "golden_response": "seven", "privileged_context": "It is seven."}
    example, bare = adapter.examples([row, {"prompt": "Hello?"}])
    assert adapter.rungs(example) == (0, 2, 5) and adapter.rungs(bare) == (0, 2)
    shown = [adapter.teacher_messages(example, TeacherContext(rung=rung))[-1]["content"] for rung in (0, 5)]
    assert shown[0] == "What is 7?" and "seven" in shown[1] and "It is seven." not in shown[1]


def test_positions_of_an_order_that_is_not_drawn_are_not_counted(folder):
    demos = DemoSet.from_folder(folder)
    chosen = ImageAdapter(demos, selection="fixed")
    examples = chosen.examples(demos.test)
    contexts = [TeacherContext(i) for i in range(len(examples))]
    right = [str(e.reference) for e in examples]
    found = answer_positions(chosen, examples, contexts, right)
    assert found is not None and sum(found["counts"]) == len(examples)
    own = [replace(e, demonstrations=chosen.demonstrations(e, TeacherContext())) for e in examples]
    assert answer_positions(chosen, own, contexts, right) is None
