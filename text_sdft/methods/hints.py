"""Hints that grow: for each labelled query the lowest rung of the privilege ladder at which the teacher solves it.

The teacher's greedy answer, scored against the expert's, decides, and the decision is kept as long as the teacher's weights
are (one round of answers for a frozen teacher; every step for an EMA or live one). A query that needs no hint teaches
nothing: where the teacher solves it at rung 0, or the student has just answered it right, it weighs nothing in that step. A
query whose answer nobody knows is shown what it always is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from text_sdft.core import Example, Rollout, TeacherContext, UserError
from text_sdft.core.sampling import draw_seed
from text_sdft.core.views import encode_teacher
from text_sdft.methods.method_trainer import MethodTrainer


class LadderTrainer(MethodTrainer):
    """`SDFTTrainer` whose teacher shows each labelled query no more than it needs.

    Logged: ``ladder/mean_rung`` over the labelled queries since the last log, and ``ladder/rung_K``, the share of each
    rung; 0 are those that weighed nothing.
    """

    _rungs: dict[str, int]
    _version = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:  # the teacher reads together on all processes, and they need other rungs
            raise UserError("demonstrations.policy: ladder does not work under FSDP; use policy: fixed.")
        self._rungs, self._used = {}, Counter[int]()

    def check_prompts(self) -> None:
        """As in `SDFTTrainer`, at each rung: what the starting model writes for one (rung 4) is written before training."""
        if self._prompts_checked:
            return
        super().check_prompts()
        adapter: Any = self.adapter
        for query in self.queries:
            for rung in adapter.rungs(query) if query.reference is not None else ():
                encode_teacher(adapter, [query], [self._asked_at(rung, query)], self.prompt_limit)

    def contexts(self, queries: list[Example], seeds: list[int]) -> list[TeacherContext]:
        """The configured context, raised or lowered to each labelled query's rung."""
        rungs = self.rungs(queries)
        drawn = super().contexts(queries, seeds)
        return [
            c if (rung := rungs.get(q.id)) is None else replace(c, rung=rung) for q, c in zip(queries, drawn, strict=True)
        ]

    def scored_tokens(self, examples: list[Example], rollout: Rollout) -> list[Tensor]:
        """As in `SDFTTrainer`, but for queries that need no hint: none of their tokens."""
        masks = super().scored_tokens(examples, rollout)
        queries = [example for example in examples if not example.retain]
        rungs = self.rungs(queries)
        for i, example in enumerate(examples):
            if example.retain or example.id not in rungs:
                continue
            solved = (self.adapter.score(example, self.adapter.decode(rollout.ids[i])) or 0.0) >= 1.0
            rung = 0 if solved else rungs[example.id]
            self._used[rung] += 1
            if rung == 0:
                masks[i] = torch.zeros_like(masks[i])
        return masks

    def rungs(self, queries: list[Example]) -> dict[str, int]:
        """The rung of each labelled query, by id: the lowest at which the teacher solves it, else its highest."""
        if self._version != self.teacher.version:
            self._rungs, self._version = {}, self.teacher.version
        adapter: Any = self.adapter
        labelled = {q.id: q for q in queries if q.reference is not None and adapter.rungs(q)}
        todo = {id_: q for id_, q in labelled.items() if id_ not in self._rungs}
        self._rungs |= {id_: max(adapter.rungs(q)) for id_, q in todo.items()}
        for rung in sorted({rung for q in todo.values() for rung in adapter.rungs(q)}):
            asked = [q for q in todo.values() if rung in adapter.rungs(q)]
            if not asked:
                continue
            contexts = [self._asked_at(rung, q) for q in asked]
            with torch.no_grad(), self.teacher.applied():
                answers = self._teacher_answers(asked, contexts, greedy=True)
            for q, given in zip(asked, answers, strict=True):
                if (adapter.score(q, adapter.decode(given.ids)) or 0.0) >= 1.0:
                    self._rungs[q.id] = rung
                    del todo[q.id]
        return {id_: self._rungs[id_] for id_ in labelled}

    def _asked_at(self, rung: int, query: Example) -> TeacherContext:
        """What the teacher is shown when it is asked whether this rung is enough."""
        return TeacherContext(draw_seed(self.args.seed, "ladder", query.id), rung=rung)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the rungs used since the last log."""
        if "loss" in logs:
            counts = torch.tensor([self._used[rung] for rung in range(6)], dtype=torch.float32, device=self.args.device)
            shares = self.accelerator.reduce(counts, reduction="sum").tolist()
            self._used.clear()
            if total := sum(shares):
                logs["ladder/mean_rung"] = sum(rung * n for rung, n in enumerate(shares)) / total
                logs |= {f"ladder/rung_{rung}": n / total for rung, n in enumerate(shares) if n}
        super().log(logs, start_time)
