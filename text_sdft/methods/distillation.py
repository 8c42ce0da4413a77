"""Methods in which a teacher reads: self-distillation, its off-policy form, and the retention prompts beside any method."""

from __future__ import annotations

from text_sdft.core.groups import Group, Reader, Step, contexts_of


def sdft(step: Step) -> list[Group]:
    """The student answers; the teacher reads the answers with demonstrations in its context."""
    queries, seeds = step.rollouts()
    group = Group(queries, seeds, reader=Reader(step.teacher, contexts_of(seeds)))
    return [step.choose(step, group), *retention(step)]


def offline(step: Step) -> list[Group]:
    """The teacher of the start reads its own answers, in the contexts in which it gave them."""
    queries, seeds = step.rollouts()
    answers = step.given(queries, seeds)
    reader = Reader(step.start, contexts_of([answer.seed for answer in answers]))
    return [Group(queries, seeds, answers=answers, reader=reader), *retention(step)]


def retention(step: Step) -> list[Group]:
    """At most one retention prompt beside each query: the student answers it, the model at the start reads it as it is.

    All of them together weigh ``retain_weight`` against the queries' 1.
    """
    examples, seeds = [], []
    for query in step.examples if step.retained else ():
        rng, seed = step.beside(query, "retain")
        if rng.random() < step.args.retain_ratio:
            examples.append(rng.choice(step.retained))
            seeds.append(seed)
    if not examples:
        return []
    weight = step.args.retain_weight * step.args.num_generations / step.args.retain_ratio
    return [Group(examples, seeds, "retain", reader=Reader(step.start), weight=weight)]
