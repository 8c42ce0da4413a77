"""Hints that grow: each labelled query is shown the lowest rung of the privilege ladder at which the teacher solves it.

The teacher's greedy answer, scored against the expert's, decides, and the decision is kept as long as the teacher's weights
are (one round of answers for a frozen teacher; every step for an EMA or live one). A query that needs no hint teaches
nothing: where the teacher solves it at rung 0, or the student has just answered it right, it weighs nothing in that step. A
query whose answer nobody knows is shown what it always is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from text_sdft.core import RUNGS, Example, TeacherContext
from text_sdft.core.groups import Group, Step
from text_sdft.core.sampling import draw_seed


class Hints:
    """`Step.choose` of the policy "ladder"; remembers the rungs that a teacher's answers have found.

    Logged: ``ladder/mean_rung`` over the labelled queries since the last log, and ``ladder/rung_K``, the share of each
    rung; 0 are those that weighed nothing.
    """

    def __init__(self) -> None:
        self._rungs: dict[str, int] = {}
        self._version = -1

    def __call__(self, step: Step, group: Group) -> Group:
        """The group with each labelled query's context raised or lowered to its rung."""
        assert group.reader is not None and group.reader.contexts is not None
        rungs = self.rungs(step, group.examples)
        drawn = zip(group.examples, group.reader.contexts, strict=True)
        contexts = [replace(context, rung=rungs.get(query.id, context.rung)) for query, context in drawn]

        def counts(example: Example, ids_T: Tensor) -> bool:
            if example.id not in rungs:
                return True
            solved = (step.adapter.score(example, step.adapter.decode(ids_T)) or 0.0) >= 1.0
            used = 0 if solved else rungs[example.id]
            step.log("ladder/mean_rung", [used])
            for rung in RUNGS:
                step.log(f"ladder/rung_{rung}", [float(rung == used)])
            return used > 0

        return replace(group, reader=replace(group.reader, contexts=contexts), counts=counts)

    def rungs(self, step: Step, queries: Sequence[Example]) -> dict[str, int]:
        """The rung of each labelled query, by id: the lowest at which the teacher solves it, else its highest."""
        if self._version != step.teacher.version:
            self._rungs, self._version = {}, step.teacher.version
        adapter: Any = step.adapter
        labelled = {q.id: q for q in queries if q.reference is not None and adapter.rungs(q)}
        todo = {id_: q for id_, q in labelled.items() if id_ not in self._rungs}
        self._rungs |= {id_: max(adapter.rungs(q)) for id_, q in todo.items()}
        for rung in sorted({rung for q in todo.values() for rung in adapter.rungs(q)}):
            asked = [q for q in todo.values() if rung in adapter.rungs(q)]
            contexts = [_context(q, step.args.seed, rung) for q in asked]
            answers = step.ask(step.teacher, asked, contexts, greedy=True) if asked else []
            for q, answer in zip(asked, answers, strict=True):
                if (adapter.score(q, adapter.decode(answer.ids)) or 0.0) >= 1.0:
                    self._rungs[q.id] = rung
                    del todo[q.id]
        return {id_: self._rungs[id_] for id_ in labelled}


def contexts_asked(adapter: Any, query: Example, seed: int) -> list[TeacherContext]:
    """What the teacher may be shown when it is asked which rung of this query is enough; nothing for unlabelled ones."""
    return [] if query.reference is None else [_context(query, seed, rung) for rung in adapter.rungs(query)]


def _context(query: Example, seed: int, rung: int) -> TeacherContext:
    return TeacherContext(draw_seed(seed, "ladder", query.id), rung=rung)
