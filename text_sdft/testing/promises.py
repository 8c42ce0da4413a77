"""What the trainer relies on, each promise as one function.

A promise takes a `Case`, raises `AssertionError` saying how it is broken, and returns whether the rows could show it. The
first line of its docstring is the promise.

Shapes: T tokens of a completion · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch

from text_sdft.core import Demonstration, TeacherContext, TransformersSampler
from text_sdft.core.chat import tokenizer_of
from text_sdft.testing.case import Case, NoisyEncoder, has_words, media_of, noise_like, require, same_rows, text_of

TOLERANCE = 1e-4
MARKER = "zyzzyva"


def ids_are_unique_and_stable(case: Case) -> bool:
    """Examples have unique ids, the same ones each time."""
    ids = [example.id for example in case.examples]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    require(not twice, f"The id '{(twice or [''])[0]}' stands for several examples.")
    require(ids == [e.id for e in case.adapter.examples(case.rows)], "Reading the rows again gives other ids.")
    return bool(ids)


def binding_changes_no_other_adapter(case: Case) -> bool:
    """`bind` returns an adapter that reads alike, and the one that was asked reads on as before."""
    queries = [case.adapter.student_messages(example) for example in case.examples]
    before = case.adapter.encode(queries).rows
    bound = case.adapter.bind(case.model, case.adapter.processing_class)
    require(bound is not None, "It returns None.")
    for adapter in (bound, case.adapter):
        require(same_rows(adapter.encode(queries).rows, before), "After it the queries are encoded differently.")
    return bool(queries)


def student_sees_the_query_alone(case: Case) -> bool:
    """The student's view holds neither the reference nor demonstrations nor privileged context."""
    secret = Demonstration([{"role": "user", "content": MARKER}, {"role": "assistant", "content": MARKER}])
    for example in case.examples:
        shown = case.adapter.student_messages(example)
        changed = replace(example, reference=MARKER, demonstrations=[secret], privileged_context=MARKER)
        other = case.adapter.student_messages(changed)
        same = same_rows(case.adapter.encode([shown]).rows, case.adapter.encode([other]).rows)
        require(same, f"The student's view of '{example.id}' depends on what only the teacher may see.")
        answers = [text_of(d.messages[-1:]) for d in case.adapter.demonstrations(example, TeacherContext())]
        for hidden in [example.reference or "", *answers]:
            leaked = has_words(text_of(shown), hidden) and not has_words(text_of(example.messages), hidden)
            require(not leaked, f"The student's view of '{example.id}' contains '{hidden}'.")
    return bool(case.examples)


def teacher_answers_the_same_query(case: Case) -> bool:
    """The teacher's view ends with the student's query."""
    for example in case.examples:
        ours = case.adapter.student_messages(example)[-1]
        theirs = case.adapter.teacher_messages(example, TeacherContext())[-1]
        same = (
            theirs["role"] == ours["role"] == "user"
            and text_of([ours]) in text_of([theirs])
            and len(media_of([theirs])) >= len(media_of([ours]))
        )
        require(same, f"For '{example.id}' it ends with {text_of([theirs])!r}, the student's with {text_of([ours])!r}.")
    return bool(case.examples)


def teacher_shows_its_demonstrations(case: Case) -> bool:
    """The teacher's view shows the answer of every demonstration that `demonstrations` returns."""
    applies = False
    for example in case.examples:
        shown = text_of(case.adapter.teacher_messages(example, TeacherContext()))
        for demonstration in case.adapter.demonstrations(example, TeacherContext()):
            applies = True
            answer = text_of(demonstration.messages[-1:])
            require(answer in shown, f"The demonstration {answer!r} of '{example.id}' is not in it.")
    return applies


def draws_are_deterministic(case: Case) -> bool:
    """The teacher's view depends on the seed and on nothing drawn before."""
    for example in case.examples:
        first = case.teacher([example], TeacherContext(seed=3))
        case.teacher([example], TeacherContext(seed=4))
        again = case.teacher([example], TeacherContext(seed=3))
        require(same_rows(first.rows, again.rows), f"Seed 3 gives two different views of '{example.id}'.")
    return bool(case.examples)


def retention_views_are_equal(case: Case) -> bool:
    """A retention prompt has the same view for student and teacher."""
    retained = [example for example in case.examples if example.retain]
    for example, ours, theirs in zip(retained, case.student(retained).rows, case.teacher(retained).rows, strict=True):
        require(same_rows([ours], [theirs]), f"The two views of '{example.id}' differ.")
    return bool(retained)


def rows_are_encoded_apart(case: Case) -> bool:
    """Encoding a list gives what encoding each conversation alone gives."""
    inputs = case.teacher(case.examples)
    require(len(inputs) == len(case.examples), f"{len(case.examples)} conversations became {len(inputs)} rows.")
    for example, row in zip(case.examples, inputs.rows, strict=True):
        alone = case.teacher([example]).rows
        require(same_rows(alone, [row]), f"'{example.id}' is encoded differently beside others: pad nothing in `encode`.")
    return bool(case.examples)


def media_reach_the_model(case: Case) -> bool:
    """Images and other media are encoded, taken by the model's forward, and change its output."""
    applies = False
    conversations = [case.adapter.teacher_messages(example, TeacherContext()) for example in case.examples]
    for example, conversation in zip(case.examples, conversations, strict=True):
        inputs = case.adapter.encode([conversation])
        row = inputs.rows[0]
        dropped = bool(media_of(conversation)) and not row.media and not row.images
        require(not dropped, f"'{example.id}' shows {len(media_of(conversation))} media, its row has no media tensor.")
        altered = {
            name: replace(inputs, rows=[replace(row, media={**row.media, name: noise_like(tensor)})])
            for name, tensor in row.media.items()
            if tensor.is_floating_point()
        }
        if row.images and inputs.media_encoder is not None:
            altered["images"] = replace(inputs, media_encoder=NoisyEncoder(inputs.media_encoder))
        for name, changed in altered.items():
            applies = True
            try:
                before, after = (case.model(**i.batch(device=case.model.device)).logits[0, -1] for i in (inputs, changed))
            except (TypeError, ValueError, RuntimeError) as error:
                raise AssertionError(f"The model refuses the row of '{example.id}': {error}") from error
            require(not torch.equal(before, after), f"'{name}' of '{example.id}' does not change the output.")
    return applies


def batching_changes_nothing(case: Case) -> bool:
    """Log-probabilities in a padded batch, in any order, are those of each row alone."""
    for view in (case.student(case.examples), case.teacher(case.examples)):
        order = list(range(len(view)))
        alone = [case.logps(view.select([i]), [case.completions[i]])[0] for i in order]
        for permuted in (order, order[::-1]):
            together = case.logps(view.select(permuted), [case.completions[i] for i in permuted])
            for i, logps_TV in zip(permuted, together, strict=True):
                gap = float((logps_TV - alone[i]).abs().max())
                require(gap <= TOLERANCE, f"'{case.examples[i].id}' is off by {gap:.1e} in a batch.")
    return bool(case.examples)


def fewer_demonstrations_shorten_the_prompt(case: Case) -> bool:
    """`max_demonstrations` keeps so many whole demonstrations, and a limit above their number keeps all."""
    applies = False
    for example in case.examples:
        count = len(case.adapter.demonstrations(example, TeacherContext()))
        lengths = [len(case.teacher([example]).rows[0])]
        for limit in [count + 1, *range(count - 1, 0, -1)]:
            context = TeacherContext(max_demonstrations=limit)
            kept = len(case.adapter.demonstrations(example, context))
            require(kept == min(limit, count), f"'{example.id}' keeps {kept} of {count} under a limit of {limit}.")
            lengths.append(len(case.teacher([example], context).rows[0]))
        shorter = all(a > b for a, b in pairwise(lengths[1:]))
        require(shorter and lengths[0] == lengths[1], f"'{example.id}': prompts of {lengths} tokens under falling limits.")
        applies = applies or count > 1
    return applies


def context_moves_the_teacher(case: Case) -> bool:
    """What the teacher is shown changes its scores."""
    applies = False
    for example, ids in zip(case.examples, case.completions, strict=True):
        count = len(case.adapter.demonstrations(example, TeacherContext()))
        fewer = [case.teacher([example], TeacherContext(max_demonstrations=1))] if count > 1 else []
        if (count or example.privileged_context) and not example.retain:
            applies = True
            scored = case.logps(case.teacher([example]), [ids])[0]
            for other in [case.student([example]), *fewer]:
                same = torch.equal(case.logps(other, [ids])[0], scored)
                require(not same, f"The teacher of '{example.id}' scores alike with less context.")
    return applies


def decoding_leaves_out_special_tokens(case: Case) -> bool:
    """A decoded completion is text without special tokens."""
    tokenizer = tokenizer_of(case.adapter.processing_class)
    for ids in case.completions:
        text = case.adapter.decode(ids)
        require(isinstance(text, str), f"decode returns a {type(text).__name__}.")
        if tokenizer is not None:
            ended = case.adapter.decode(torch.cat([ids, torch.tensor([tokenizer.eos_token_id])]))
            require(ended == text, f"The end token changes the text to {ended!r}.")
            present = [token for token in tokenizer.all_special_tokens if token in text]
            require(not present, f"{text!r} holds {present}.")
    return bool(case.completions)


def scores_are_shares(case: Case) -> bool:
    """A score lies in [0, 1], and is None without a reference."""
    applies = False
    for example in case.examples:
        unknown = case.adapter.score(replace(example, reference=None), "")
        require(unknown is None, f"'{example.id}' without its reference scores {unknown}.")
        if example.reference is not None:
            applies = True
            for answer in (example.reference, "", MARKER):
                score = case.adapter.score(example, answer)
                require(score is not None and 0 <= score <= 1, f"The answer {answer!r} to '{example.id}' scores {score}.")
    return applies


def generated_answers_are_read_back(case: Case) -> bool:
    """What the model generates from the student's view is decoded and scored."""
    rollout = TransformersSampler(max_completion_length=4).sample(case.model, case.student(case.examples), seeds=None)
    for example, ids in zip(case.examples, rollout.ids, strict=True):
        score = case.adapter.score(example, case.adapter.decode(ids))
        require((score is None) == (example.reference is None), f"'{example.id}' scores {score}.")
    return bool(rollout.ids)


#: Every function of this file, in its order.
PROMISES: list[Callable[[Case], bool]] = [
    value for value in vars().values() if getattr(value, "__module__", "") == __name__
]
