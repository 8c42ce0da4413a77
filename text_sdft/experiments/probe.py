"""Can this model teach itself from these demonstrations? Measured before any training.

The probe climbs the privilege ladder as far as the adapter has rungs, spoils the demonstrations, lets cheap rivals answer
from the same ones, and ends in a verdict (`text_sdft.experiments.verdict`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers.utils import logging

from text_sdft.core import RUNGS, Example, TeacherContext, UserError
from text_sdft.core.sampling import draw_seed
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.measure import answers, mean_tokens, plain, positions, right_answers, score_all
from text_sdft.experiments.scores import Accuracy, contexts_for, sample, tell_scoring_notes, with_teacher
from text_sdft.experiments.verdict import SHARE, Evidence, Gap, Verdict, paired_gap, verdict
from text_sdft.training import SDFTTrainer

logger = logging.get_logger(__name__)
#: Why there is nothing to compare.
ALIKE = (
    "in every test row with a reference the teacher sees what the student sees. Give rows of data.test a golden_response, "
    "privileged_context, demonstrations or teacher_prompt (images: labelled ones to show)."
)
#: Draws of the demonstrations that vote on each answer, where draws show different ones.
DRAWS = 16
VOTE = f"vote of {DRAWS} draws"
#: Examples measured where ``eval.max_examples`` is unset, and by the short probe before a training run.
EXAMPLES, FEW = 100, 40


class Probe:
    """One probe's examples, and what was measured of them so far.

    Attributes:
        scores: by view, one score an example (None: this example does not have that view).
        texts: the answers, likewise.
        seconds: a query, by view.
        alike: every draw is known to show each example the same demonstrations.
    """

    def __init__(self, trainer: SDFTTrainer, examples: list[Example], size: int) -> None:
        self.trainer, self.adapter, self.examples, self.size = trainer, trainer.adapter, examples, size
        self.contexts = contexts_for(trainer, examples)
        self.scores: dict[str, list[float | None]] = {}
        self.texts: dict[str, list[str | None]] = {}
        self.seconds: dict[str, float] = {}
        self.alike = False

    def measure(self, name: str, contexts: Sequence[TeacherContext | None] | None, adapter: Any = None) -> None:
        """Let the model answer in a view: one context an example (None: leave it out), or the student's (all None)."""
        kept = [i for i in range(len(self.examples)) if contexts is None or contexts[i] is not None]
        examples = [self.examples[i] for i in kept]
        shown = None if contexts is None else [context for context in contexts if context is not None]
        started = time.monotonic()
        texts = answers(self.trainer, examples, shown, self.size, name, adapter)
        self.seconds[name] = (time.monotonic() - started) / max(len(examples), 1)
        self.texts[name] = _spread(texts, kept, len(self.examples))
        self.scores[name] = _spread(score_all(self.adapter, examples, texts), kept, len(self.examples))

    def measure_vote(self, name: str = "teacher", adapter: Any = None) -> None:
        """What most of several draws of a view's demonstrations say, for examples to which another draw shows other ones.

        A student learns from a new draw at each step: where draws disagree, it may end where their vote stands, above any
        one of them. Measured as `vote_of` the view, whose own draw is the first ballot.
        """
        drawn = [[replace(c, seed=draw_seed(c.seed, "draw", k)) for k in range(1, DRAWS)] for c in self.contexts]
        shown_by = adapter or self.adapter
        varies = [_differ(shown_by, *pair) for pair in zip(self.examples, self.contexts, drawn, strict=True)]
        if not any(varies):
            self.alike = True
            return
        voted, texts, seconds = vote_of(name), [self.texts[name]], self.seconds[name]
        for k in range(DRAWS - 1):
            contexts = [mine[k] if varied else None for mine, varied in zip(drawn, varies, strict=True)]
            self.measure(voted, contexts, adapter)
            texts.append(self.texts[voted])
            seconds += self.seconds[voted]
        ballots = zip(*texts, strict=True)
        elected = [_most(ballot) if varied else None for ballot, varied in zip(ballots, varies, strict=True)]
        self.texts[voted], self.seconds[voted] = elected, seconds
        self.scores[voted] = [
            None if text is None else self.adapter.score(example, text)
            for example, text in zip(self.examples, elected, strict=True)
        ]

    def expected(self, name: str) -> str:
        """The view that says what a student of this one may reach: the vote of its draws where that is clearly better."""
        voted = vote_of(name)
        return voted if voted in self.scores and self.gap(voted, name).low > 0 else name

    def measure_rungs(self) -> None:
        """Rungs 1, 3, 4 and 5, for the examples that have them (0 is the student's view, 2 the teacher's)."""
        for rung in (1, 3, 4, 5):
            has = [rung in self.adapter.rungs(example) for example in self.examples]
            if any(has):
                self.measure(
                    RUNGS[rung], [replace(c, rung=rung) if h else None for c, h in zip(self.contexts, has, strict=True)]
                )

    def measure_controls(self, first: bool = False) -> None:
        """The adapter's controls (or the first alone), for the examples that have them."""
        has = [self.adapter.controls(example) for example in self.examples]
        names = list(dict.fromkeys(name for mine in has for name in mine))
        for name in names[:1] if first else names:
            contexts = [replace(c, control=name) if name in h else None for c, h in zip(self.contexts, has, strict=True)]
            self.measure(name, contexts)
            self._follow(name, contexts)

    def _follow(self, name: str, contexts: Sequence[TeacherContext | None]) -> None:
        """Score the same answers by what the spoiled demonstrations call for: does the teacher follow its context?"""
        followed: list[float | None] = []
        for example, context, text in zip(self.examples, contexts, self.texts[name], strict=True):
            if context is None or text is None:
                followed.append(None)
                continue
            moved = self.adapter.relabelled(example, context)
            followed.append(None if moved is None else self.adapter.score(moved, text))
        if any(score is not None for score in followed):
            self.scores["permuted label words"] = followed

    def gap(self, first: str, second: str) -> Gap:
        """First minus second over the examples that have both."""
        return paired_gap(*self._pairs(first, second))

    def kept(self, name: str) -> tuple[float, Gap]:
        """What is left under spoiled demonstrations, and how much more of the gap than `SHARE` that is."""
        spoilt, teacher = self._pairs(name, "teacher")
        _, student = self._pairs(name, "student")
        half = [s + SHARE * (t - s) for t, s in zip(teacher, student, strict=True)]
        return sum(spoilt) / len(spoilt), paired_gap(spoilt, half)

    def accuracy(self, name: str) -> Accuracy:
        """Over the examples that have this view."""
        return Accuracy.of([score for score in self.scores[name] if score is not None])

    def _pairs(self, first: str, second: str) -> tuple[list[float], list[float]]:
        both = zip(self.scores[first], self.scores[second], strict=True)
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        return [a for a, _ in pairs], [b for _, b in pairs]


def probe(trainer: SDFTTrainer, experiment: Experiment, sweep: bool = False) -> dict[str, Any]:
    """Measure student, teacher, rungs, controls and rivals on the set ``new``.

    Args:
        trainer: of the experiment, untrained.
        sweep: also measure the adapter's variants (other numbers of demonstrations, other selections).

    Returns:
        ``accuracy`` ({view: {accuracy, n, low, high}}), ``gap`` (teacher minus student: mean, low, high, n), ``gaps`` (each
        rung, each variant and the votes of draws minus the student), ``answer`` (how student and teacher read the right
        one: `right_answers`), ``divergence`` (mean token divergence on the student's own completions: the training signal),
        ``positions``, ``tokens`` and ``seconds`` a query, ``verdict``, ``notes`` (views that not every example has).

    Raises:
        UserError: there is nothing with a reference to measure on, or the teacher sees no more than the student.
    """
    known = _known(experiment)
    if not known:
        raise UserError("The probe needs examples of the task with a reference: test/<type>/* or data.test.")
    examples = _examples(trainer, known, experiment.eval.max_examples or EXAMPLES)
    if not examples:
        raise UserError(f"The probe has no teacher to measure: {ALIKE}")
    run = Probe(trainer, examples, experiment.eval.batch_size)
    adapter = trainer.adapter
    run.measure("student", None)
    run.measure("teacher", run.contexts)
    run.measure_vote()
    run.measure_rungs()
    run.measure_controls()
    rivals: dict[str, float] = {}
    for name, texts in adapter.rivals(examples, run.contexts).items():
        run.scores[name] = list(score_all(adapter, examples, texts))
        rivals[name] = run.accuracy(name).accuracy
    variants = adapter.variants() if sweep else {}
    for option, variant in variants.items():
        run.measure(option, run.contexts, variant)
        run.measure_vote(option, variant)
    compared = (VOTE, *RUNGS.values(), *(name for option in variants for name in (option, vote_of(option))))
    gaps = {name: run.gap(name, "student") for name in compared if name in run.scores}
    answer = {
        "student": right_answers(trainer, examples, None, run.size),
        "teacher": right_answers(trainer, examples, run.contexts, run.size),
    }
    places = positions(adapter, examples, run.contexts, [text or "" for text in run.texts["teacher"]])
    found = _evidence(run, rivals, variants, places)
    tell_scoring_notes(adapter)
    return {
        "accuracy": {name: asdict(run.accuracy(name)) for name in run.scores},
        "gap": asdict(found.gap),
        "gaps": {name: asdict(gap) for name, gap in gaps.items()},
        "answer": answer,
        "divergence": _divergence(trainer, examples, run.size),
        "positions": places,
        "tokens": {
            "student": mean_tokens(trainer, examples, None, run.size),
            "teacher": mean_tokens(trainer, examples, run.contexts, run.size),
        },
        "seconds": run.seconds,
        "verdict": {**asdict(drawn := verdict(found)), "train": drawn.train},
        "notes": _partial(run),
    }


def short_probe(trainer: SDFTTrainer, experiment: Experiment) -> Verdict | None:
    """Student, teacher and one control on at most 40 examples, and the draws' vote where the teacher is not clearly better.

    None where there is nothing to measure on; where rows have references, but nothing for the teacher, a warning says so.
    """
    known = _known(experiment)
    examples = _examples(trainer, known, min(FEW, experiment.eval.max_examples or FEW))
    if not examples:
        if known:
            logger.warning(f"No probe before training: {ALIKE}")
        return None
    run = Probe(trainer, examples, experiment.eval.batch_size)
    run.measure("student", None)
    run.measure("teacher", run.contexts)
    if run.gap("teacher", "student").low <= 0:
        run.measure_vote()
    run.measure_controls(first=True)
    return verdict(_evidence(run, {}, {}, None))


def _known(experiment: Experiment) -> list[Example]:
    rows = experiment.splits.evals.get("new", ())
    return [example for example in experiment.adapter.examples(rows) if example.reference is not None]


def _examples(trainer: SDFTTrainer, known: list[Example], limit: int) -> list[Example]:
    """At most so many, of all that have a teacher; all are only looked at where some of the first draw have none."""
    drawn = sample(known, limit)
    alike = len(with_teacher(trainer, drawn)) < len(drawn)
    return sample(with_teacher(trainer, known), limit) if alike else drawn


def _evidence(run: Probe, rivals: dict[str, float], variants: Mapping[str, Any], places: dict[str, Any] | None) -> Evidence:
    """The measured scores as the verdict takes them."""
    controls = {name for e in run.examples for name in run.adapter.controls(e)}
    spoilt = [name for name in run.scores if name in controls or name == RUNGS[1]]
    options = {f"--demonstrations.rung {rung}": RUNGS[rung] for rung in (3, 4) if RUNGS[rung] in run.scores}
    options |= {option: option for option in variants}

    def mean(name: str) -> float | None:
        return run.accuracy(name).accuracy if name in run.scores else None

    voted = None
    if VOTE in run.scores:
        voted = (run.accuracy(VOTE).accuracy, run.gap(VOTE, "student"), run.gap(VOTE, "teacher"))
    return Evidence(
        student=run.accuracy("student").accuracy,
        teacher=run.accuracy("teacher").accuracy,
        gap=run.gap("teacher", "student"),
        vote=voted,
        kept={name: run.kept(name) for name in spoilt},
        others={
            option: (run.accuracy(view).accuracy, run.gap(view, "student"), run.gap(view, run.expected("teacher")))
            for option, name in options.items()
            for view in [run.expected(name)]
        },
        answer_alone=mean(RUNGS[5]),
        rivals=rivals,
        permuted=mean("permuted label words"),
        position_p=places["p"] if places else None,
        alike=run.alike,
    )


def _partial(run: Probe) -> list[str]:
    """Sentences on views that some examples do not have."""
    total = len(run.examples)
    return [
        f"'{name}' is measured on {n} of {total} examples: the others have their own demonstrations or answers, or lack it."
        for name in run.scores
        if (n := sum(score is not None for score in run.scores[name])) < total
    ]


def vote_of(name: str) -> str:
    """What the vote of a view's draws is called."""
    return VOTE if name == "teacher" else f"{name}, {VOTE}"


def _differ(adapter: Any, example: Example, context: TeacherContext, others: Sequence[TeacherContext]) -> bool:
    """Whether another draw shows other demonstrations, and not the same in another order."""
    shown = adapter.demonstrations(example, context)
    return any(d not in shown for other in others for d in adapter.demonstrations(example, other))


@torch.no_grad()
def _divergence(trainer: SDFTTrainer, examples: Sequence[Example], size: int) -> float:
    """Mean loss of a training step on these queries, retention left out."""
    batches = [{"examples": list(examples[i : i + size]), "retained": []} for i in range(0, len(examples), size)]
    losses = [float(trainer.compute_loss(trainer.module, batch)) * len(batch["examples"]) for batch in batches]
    return sum(losses) / len(examples)


def _most(ballot: Sequence[str | None]) -> str:
    """The answer that is given most often, the first such one, as it was written first."""
    by_answer = {plain(text): text for text in reversed(ballot) if text is not None}
    counts = Counter(plain(text) for text in ballot if text is not None)
    return by_answer[counts.most_common(1)[0][0]]


def _spread(values: Sequence[Any], kept: Sequence[int], length: int) -> list[Any]:
    """Values back at their examples' places, None elsewhere."""
    spread: list[Any] = [None] * length
    for place, value in zip(kept, values, strict=True):
        spread[place] = value
    return spread
