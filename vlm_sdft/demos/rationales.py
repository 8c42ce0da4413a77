"""Rung 4 of the privilege ladder: beside each demonstration's question a rationale that the model wrote itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from text_sdft.core import Demonstration, ModalityAdapter, Model
from text_sdft.core.chat import with_system
from text_sdft.core.sampling import TransformersSampler
from text_sdft.core.templates import render
from vlm_sdft.demos.controls import answer_of, with_words
from vlm_sdft.demos.examples import images_of, user_turn
from vlm_sdft.images.files import content_hash

RATIONALE_QUESTION = "Which visible features show that this answer is right? Answer in one short sentence."
#: Tokens of a rationale at most; what is longer is cut.
MAX_TOKENS = 64
BATCH_SIZE = 8

#: A demonstration by its content: its images' hashes, and its answer.
Key = tuple[str, ...]


def write_rationales(
    adapter: ModalityAdapter,
    model: Model,
    demonstrations: Sequence[Demonstration],
    question: str,
    system_prompt: str | None,
    template: str,
) -> dict[Key, str]:
    """The model's most probable answer to a question about each demonstration's images, asked after that demonstration.

    It writes with the weights that it has now. ``template`` is how a demonstration enters a prompt.
    """
    distinct = {_key(d): d for d in demonstrations}
    asked = []
    for d in distinct.values():
        query = with_system([user_turn(images_of(d.messages), question)], system_prompt)
        asked.append(render(query, [d], None, template))
    sampler, texts = TransformersSampler(MAX_TOKENS), list[str]()
    for start in range(0, len(asked), BATCH_SIZE):
        rollout = sampler.sample(model, adapter.encode(asked[start : start + BATCH_SIZE]), seeds=None)
        texts += [" ".join(adapter.decode(ids).split()) for ids in rollout.ids]
    return dict(zip(distinct, texts, strict=True))


def with_rationales(demonstrations: Sequence[Demonstration], rationales: Mapping[Key, str]) -> list[Demonstration]:
    """Each demonstration's rationale after its question, in brackets: its answer stays as it is."""
    return [with_words(d, [words] if (words := rationales[_key(d)]) else []) for d in demonstrations]


def _key(demonstration: Demonstration) -> Key:
    return (*map(content_hash, images_of(demonstration.messages)), answer_of(demonstration))
