"""A conformance kit for adapters: what the trainer relies on, each promise as one function.

    adapter.bind(model)  # a tiny model will do
    check_adapter(adapter, model, rows)

Give rows of every kind that the adapter knows (several demonstrations, privileged context, a reference, retention, media):
a promise that no row can show is left out of the list that comes back.

Shapes: B rows · L tokens of a row · P longest prompt · T tokens of a completion · V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from text_sdft.core import (
    Conversation,
    Demonstration,
    Example,
    Message,
    ModalityAdapter,
    Model,
    ModelInputs,
    RowInputs,
    TeacherContext,
    TransformersSampler,
)
from text_sdft.core.rollout import evaluating

TOLERANCE = 1e-4
MARKER = "zyzzyva"


def check_adapter(adapter: ModalityAdapter, model: Model, rows: Iterable[Any]) -> list[str]:
    """Check every promise that these rows can show.

    Args:
        adapter: already bound to the model.
        model: any model that the adapter feeds, in fp32; random weights will do.
        rows: dataset rows as the adapter takes them; a handful, since each is run through the model several times.

    Returns:
        The promises that were checked, as sentences.

    Raises:
        AssertionError: a promise is broken; says which one, by which example, and how.
    """
    missing = [name for name in METHODS if not hasattr(adapter, name)]
    if missing:
        raise AssertionError(f"The adapter lacks {', '.join(missing)} (see text_sdft.core.ModalityAdapter).")
    case = Case(adapter, model, list(rows))
    checked = []
    with torch.no_grad(), evaluating(model):
        for promise in PROMISES:
            sentence = (promise.__doc__ or "").splitlines()[0]
            try:
                applies = promise(case)
            except AssertionError as error:
                raise AssertionError(f"Broken promise: {sentence} {error}") from error
            if applies:
                checked.append(sentence)
    return checked


@dataclass(frozen=True)
class Case:
    """An adapter with a model and rows to try it on."""

    adapter: ModalityAdapter
    model: Model
    rows: Sequence[Any]

    @cached_property
    def examples(self) -> list[Example]:
        return self.adapter.examples(self.rows)

    def student(self, examples: Sequence[Example]) -> ModelInputs:
        return self.adapter.encode([self.adapter.student_messages(example) for example in examples])

    def teacher(self, examples: Sequence[Example], context: TeacherContext | None = None) -> ModelInputs:
        context = context or TeacherContext()
        return self.adapter.encode([self.adapter.teacher_messages(example, context) for example in examples])

    @cached_property
    def completions(self) -> list[Tensor]:
        """One sampled completion [T] an example, of different lengths."""
        sampler = TransformersSampler(max_completion_length=5)
        sampled = sampler.sample(self.model, self.student(self.examples), list(range(len(self.examples)))).ids
        return [ids[: 2 + i % 4] for i, ids in enumerate(sampled)]

    def logps(self, inputs: ModelInputs, completions: Sequence[Tensor]) -> list[Tensor]:
        """B tensors [T, V]: log-probabilities at every token of the completions."""
        P = max(inputs.lengths)
        logits_BLV = self.model(**inputs.batch(completions, device=self.model.device)).logits.float()
        return [logits_BLV[b, P - 1 : P - 1 + len(ids)].log_softmax(-1) for b, ids in enumerate(completions)]


def ids_are_unique_and_stable(case: Case) -> bool:
    """Examples have unique ids, the same ones each time."""
    ids = [example.id for example in case.examples]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    _require(not twice, f"The id '{(twice or [''])[0]}' stands for several examples.")
    _require(ids == [e.id for e in case.adapter.examples(case.rows)], "Reading the rows again gives other ids.")
    return bool(ids)


def frozen_modules_exist(case: Case) -> bool:
    """The frozen modules are modules of the model."""
    names = {name for name, _ in case.model.named_modules()}
    for name in case.adapter.frozen_modules(case.model):
        _require(name in names, f"'{name}' is none.")
    return True


def student_sees_the_query_alone(case: Case) -> bool:
    """The student's view holds neither the reference nor demonstrations nor privileged context."""
    secret = Demonstration([{"role": "user", "content": MARKER}, {"role": "assistant", "content": MARKER}])
    for example in case.examples:
        shown = case.adapter.student_messages(example)
        changed = replace(example, reference=MARKER, demonstrations=[secret], privileged_context=MARKER)
        other = case.adapter.student_messages(changed)
        same = MARKER not in _text(other) and _same(case.adapter.encode([shown]).rows, case.adapter.encode([other]).rows)
        _require(same, f"The student's view of '{example.id}' depends on what only the teacher may see.")
        answers = [_text(d.messages[-1:]) for d in case.adapter.demonstrations(example, TeacherContext())]
        for hidden in [example.reference or "", *answers]:
            leaked = _has_words(_text(shown), hidden) and not _has_words(_text(example.messages), hidden)
            _require(not leaked, f"The student's view of '{example.id}' contains '{hidden}'.")
    return bool(case.examples)


def teacher_answers_the_same_query(case: Case) -> bool:
    """The teacher's view ends with the student's query."""
    for example in case.examples:
        ours = case.adapter.student_messages(example)[-1]
        theirs = case.adapter.teacher_messages(example, TeacherContext())[-1]
        same = (
            theirs["role"] == ours["role"] == "user"
            and _text([ours]) in _text([theirs])
            and len(_media([theirs])) >= len(_media([ours]))
        )
        _require(same, f"For '{example.id}' it ends with {_text([theirs])!r}, the student's with {_text([ours])!r}.")
    return bool(case.examples)


def teacher_shows_its_demonstrations(case: Case) -> bool:
    """The teacher's view shows the answer of every demonstration that `demonstrations` returns."""
    applies = False
    for example in case.examples:
        shown = _text(case.adapter.teacher_messages(example, TeacherContext()))
        for demonstration in case.adapter.demonstrations(example, TeacherContext()):
            applies = True
            answer = _text(demonstration.messages[-1:])
            _require(answer in shown, f"The demonstration {answer!r} of '{example.id}' is not in it.")
    return applies


def draws_are_deterministic(case: Case) -> bool:
    """The teacher's view depends on the seed and on nothing drawn before."""
    for example in case.examples:
        first = case.teacher([example], TeacherContext(seed=3))
        case.teacher([example], TeacherContext(seed=4))
        again = case.teacher([example], TeacherContext(seed=3))
        _require(_same(first.rows, again.rows), f"Seed 3 gives two different views of '{example.id}'.")
    return bool(case.examples)


def retention_views_are_equal(case: Case) -> bool:
    """A retention prompt has the same view for student and teacher."""
    retained = [example for example in case.examples if example.retain]
    for example, ours, theirs in zip(retained, case.student(retained).rows, case.teacher(retained).rows, strict=True):
        _require(_same([ours], [theirs]), f"The two views of '{example.id}' differ.")
    return bool(retained)


def rows_are_encoded_apart(case: Case) -> bool:
    """Encoding a list gives what encoding each conversation alone gives."""
    inputs = case.teacher(case.examples)
    _require(len(inputs) == len(case.examples), f"{len(case.examples)} conversations became {len(inputs)} rows.")
    for example, row in zip(case.examples, inputs.rows, strict=True):
        alone = case.teacher([example]).rows
        _require(_same(alone, [row]), f"'{example.id}' is encoded differently beside others: pad nothing in `encode`.")
    return bool(case.examples)


def media_reach_the_model(case: Case) -> bool:
    """Images and other media are encoded, taken by the model's forward, and change its output."""
    applies = False
    conversations = [case.adapter.teacher_messages(example, TeacherContext()) for example in case.examples]
    for example, conversation in zip(case.examples, conversations, strict=True):
        inputs = case.adapter.encode([conversation])
        row = inputs.rows[0]
        dropped = bool(_media(conversation)) and not row.media
        _require(not dropped, f"'{example.id}' shows {len(_media(conversation))} media, its row has no media tensor.")
        for name in [name for name, tensor in row.media.items() if tensor.is_floating_point()]:
            applies = True
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(row.media[name].shape, generator=generator).to(row.media[name])
            changed = replace(inputs, rows=[replace(row, media={**row.media, name: noise})])
            try:
                before, after = (case.model(**i.batch(device=case.model.device)).logits[0, -1] for i in (inputs, changed))
            except (TypeError, ValueError, RuntimeError) as error:
                raise AssertionError(f"The model refuses the row of '{example.id}': {error}") from error
            _require(not torch.equal(before, after), f"'{name}' of '{example.id}' does not change the output.")
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
                _require(gap <= TOLERANCE, f"'{case.examples[i].id}' is off by {gap:.1e} in a batch.")
    return bool(case.examples)


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
                _require(not same, f"The teacher of '{example.id}' scores alike with less context.")
    return applies


def fewer_demonstrations_shorten_the_prompt(case: Case) -> bool:
    """`max_demonstrations` keeps so many whole demonstrations, and a limit above their number keeps all."""
    applies = False
    for example in case.examples:
        count = len(case.adapter.demonstrations(example, TeacherContext()))
        lengths = [len(case.teacher([example]).rows[0])]
        for limit in [count + 1, *range(count - 1, 0, -1)]:
            context = TeacherContext(max_demonstrations=limit)
            kept = len(case.adapter.demonstrations(example, context))
            _require(kept == min(limit, count), f"'{example.id}' keeps {kept} of {count} under a limit of {limit}.")
            lengths.append(len(case.teacher([example], context).rows[0]))
        shorter = all(a > b for a, b in zip(lengths[1:], lengths[2:], strict=False))
        _require(shorter and lengths[0] == lengths[1], f"'{example.id}' has prompts of {lengths} tokens under falling limits.")
        applies = applies or count > 1
    return applies


def decoding_leaves_out_special_tokens(case: Case) -> bool:
    """A decoded completion is text without special tokens."""
    tokenizer = getattr(case.adapter.processing_class, "tokenizer", case.adapter.processing_class)
    for ids in case.completions:
        text = case.adapter.decode(ids)
        _require(isinstance(text, str), f"decode returns a {type(text).__name__}.")
        if tokenizer is not None:
            ended = case.adapter.decode(torch.cat([ids, torch.tensor([tokenizer.eos_token_id])]))
            _require(ended == text, f"The end token changes the text to {ended!r}.")
            present = [token for token in tokenizer.all_special_tokens if token in text]
            _require(not present, f"{text!r} holds {present}.")
    return bool(case.completions)


def scores_are_shares(case: Case) -> bool:
    """A score lies in [0, 1], and is None without a reference."""
    applies = False
    for example in case.examples:
        unknown = case.adapter.score(replace(example, reference=None), "")
        _require(unknown is None, f"'{example.id}' without its reference scores {unknown}.")
        if example.reference is not None:
            applies = True
            for answer in (example.reference, "", MARKER):
                score = case.adapter.score(example, answer)
                _require(score is not None and 0 <= score <= 1, f"The answer {answer!r} to '{example.id}' scores {score}.")
    return applies


def generated_answers_are_read_back(case: Case) -> bool:
    """What the model generates from the student's view is decoded and scored."""
    rollout = TransformersSampler(max_completion_length=4).sample(case.model, case.student(case.examples), seeds=None)
    for example, ids in zip(case.examples, rollout.ids, strict=True):
        score = case.adapter.score(example, case.adapter.decode(ids))
        _require((score is None) == (example.reference is None), f"'{example.id}' scores {score}.")
    return bool(rollout.ids)


METHODS = sorted(name for name, value in vars(ModalityAdapter).items() if callable(value) and not name.startswith("_"))
PROMISES: tuple[Callable[[Case], bool], ...] = (
    ids_are_unique_and_stable,
    frozen_modules_exist,
    student_sees_the_query_alone,
    teacher_answers_the_same_query,
    teacher_shows_its_demonstrations,
    draws_are_deterministic,
    retention_views_are_equal,
    rows_are_encoded_apart,
    media_reach_the_model,
    batching_changes_nothing,
    context_moves_the_teacher,
    fewer_demonstrations_shorten_the_prompt,
    decoding_leaves_out_special_tokens,
    scores_are_shares,
    generated_answers_are_read_back,
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _parts(conversation: Sequence[Message]) -> list[Any]:
    contents = [message["content"] for message in conversation]
    return [p for c in contents for p in ([{"type": "text", "text": c}] if isinstance(c, str) else c) if isinstance(p, dict)]


def _text(conversation: Conversation | Sequence[Message]) -> str:
    return "\n".join(part["text"] for part in _parts(conversation) if part["type"] == "text")


def _media(conversation: Sequence[Message]) -> list[Any]:
    return [part for part in _parts(conversation) if part["type"] != "text"]


def _has_words(text: str, words: str) -> bool:
    """Whether ``words`` stand in ``text`` as whole words (an answer "1" is not in "12")."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _same(left: Sequence[RowInputs], right: Sequence[RowInputs]) -> bool:
    """Whether rows hold equal tensors under equal names."""
    pairs = [(getattr(a, kind), getattr(b, kind)) for a, b in zip(left, right, strict=True) for kind in ("tokens", "media")]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
