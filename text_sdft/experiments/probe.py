"""Can this model teach itself from these demonstrations? Measured before any training.

The probe climbs the privilege ladder as far as the adapter has rungs, spoils the demonstrations, lets cheap rivals answer
from the same ones, and ends in a verdict (`text_sdft.experiments.verdict`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers.utils import logging

from text_sdft.core import RUNGS, Example, TeacherContext, UserError
from text_sdft.core.sampling import draw_seed
from text_sdft.experiments.answers import bare_answer, completions, score_all, slices
from text_sdft.experiments.config import Experiment
from text_sdft.experiments.measure import answer_positions, mean_tokens, right_answer_reading
from text_sdft.experiments.scores import contexts_for, sample, tell_scoring_notes, with_reference, with_teacher
from text_sdft.experiments.stats import Accuracy, Gap
from text_sdft.experiments.verdict import SHARE, Evidence, Verdict, verdict
from text_sdft.training import SDFTTrainer

logger = logging.get_logger(__name__)
#: Why there is nothing to compare.
ALIKE = (
    "in every test row with a reference the teacher sees what the student sees. Give those rows what the teacher alone is "
    "shown: demonstrations, the answer or a context."
)
#: Draws of the demonstrations that vote on each answer, where draws show different ones.
DRAWS = 16
VOTE = f"vote of {DRAWS} draws"
#: Examples measured where ``eval.max_examples`` is unset, and by the short probe before a training run.
EXAMPLES, FEW = 100, 40


class Probe:
    """One probe's examples, and what was measured of them so far.

    Attributes:
        contexts: the teacher's, by the example's place.
        scores: by view, then by the example's place: not every example has every view.
        texts: the answers, likewise.
        seconds: a query, by view.
        alike: every draw is known to show each example the same demonstrations.
    """

    def __init__(self, trainer: SDFTTrainer, examples: list[Example], size: int) -> None:
        self.trainer, self.examples, self.size = trainer, examples, size
        self.adapter = trainer.adapter
        self.contexts = dict(enumerate(contexts_for(trainer, examples)))
        self.scores: dict[str, dict[int, float]] = {}
        self.texts: dict[str, dict[int, str]] = {}
        self.seconds: dict[str, float] = {}
        self.alike = False

    def measure(self, name: str, contexts: Mapping[int, TeacherContext] | None, adapter: Any = None) -> None:
        """Let the model answer in a view: the teacher's of those examples that have a context, or the student's of all."""
        places = range(len(self.examples)) if contexts is None else list(contexts)
        shown = None if contexts is None else list(contexts.values())
        examples = [self.examples[i] for i in places]
        started = time.monotonic()
        ids = completions(self.trainer, examples, shown, self.size, f"probe: {name}", adapter=adapter)
        texts = list(map(self.adapter.decode, ids))
        self.seconds[name] = (time.monotonic() - started) / max(len(examples), 1)
        self.texts[name] = dict(zip(places, texts, strict=True))
        self.scores[name] = dict(zip(places, score_all(self.adapter, examples, texts), strict=True))

    def measure_vote(self, name: str = "teacher", adapter: Any = None) -> None:
        """What most of several draws of a view's demonstrations say, for examples to which another draw shows other ones.

        A student learns from a new draw at each step: where draws disagree, it may end where their vote stands, above any
        one of them. Measured as `vote_of` the view, whose own draw is the first ballot.
        """
        drawn = {
            i: [replace(c, seed=draw_seed(c.seed, "draw", k)) for k in range(1, DRAWS)] for i, c in self.contexts.items()
        }
        shown_by = adapter or self.adapter
        varying = {i: drawn[i] for i, c in self.contexts.items() if _draws_differ(shown_by, self.examples[i], c, drawn[i])}
        if not varying:
            self.alike = True
            return
        voted, seconds = vote_of(name), self.seconds[name]
        ballots = {i: [self.texts[name][i]] for i in varying}
        for k in range(DRAWS - 1):
            self.measure(voted, {i: draws[k] for i, draws in varying.items()}, adapter)
            for i, text in self.texts[voted].items():
                ballots[i].append(text)
            seconds += self.seconds[voted]
        elected = {i: _most_frequent(ballot) for i, ballot in ballots.items()}
        scores = score_all(self.adapter, [self.examples[i] for i in elected], list(elected.values()))
        self.texts[voted], self.seconds[voted] = elected, seconds
        self.scores[voted] = dict(zip(elected, scores, strict=True))

    def reachable(self, name: str) -> str:
        """The view that says what a student of this one may reach: the vote of its draws where that is clearly better."""
        voted = vote_of(name)
        return voted if voted in self.scores and self.gap(voted, name).low > 0 else name

    def measure_rungs(self) -> None:
        """Rungs 1, 3, 4 and 5, for the examples that have them (0 is the student's view, 2 the teacher's)."""
        for rung in (1, 3, 4, 5):
            has = {i: c for i, c in self.contexts.items() if rung in self.adapter.rungs(self.examples[i])}
            if has:
                self.measure(RUNGS[rung], {i: replace(c, rung=rung) for i, c in has.items()})

    def measure_controls(self, first: bool = False) -> None:
        """The adapter's controls (or the first alone), for the examples that have them."""
        has = [self.adapter.controls(example) for example in self.examples]
        names = list(dict.fromkeys(name for mine in has for name in mine))
        for name in names[:1] if first else names:
            contexts = {i: replace(c, control=name) for i, c in self.contexts.items() if name in has[i]}
            self.measure(name, contexts)
            self._score_by_spoiled_demonstrations(name, contexts)

    def _score_by_spoiled_demonstrations(self, name: str, contexts: Mapping[int, TeacherContext]) -> None:
        """Score the same answers by what the spoiled demonstrations call for: does the teacher follow its context?"""
        moved = {i: self.adapter.relabelled(self.examples[i], context) for i, context in contexts.items()}
        followed = {i: self.adapter.score(e, self.texts[name][i]) or 0.0 for i, e in moved.items() if e is not None}
        if followed:
            self.scores["permuted label words"] = followed

    def gap(self, first: str, second: str) -> Gap:
        """First minus second over the examples that have both."""
        return Gap.of(*self._pairs(first, second))

    def kept_gap(self, name: str) -> tuple[float, Gap]:
        """What is left under spoiled demonstrations, and how much more of the gap than `SHARE` that is."""
        spoilt, teacher = self._pairs(name, "teacher")
        _, student = self._pairs(name, "student")
        half = [s + SHARE * (t - s) for t, s in zip(teacher, student, strict=True)]
        return sum(spoilt) / len(spoilt), Gap.of(spoilt, half)

    def standing(self, name: str, present: str) -> tuple[float, Gap, Gap]:
        """A view's accuracy, its gap to the student, and its gap to the present setting's view."""
        return self.accuracy(name).accuracy, self.gap(name, "student"), self.gap(name, present)

    def accuracy(self, name: str) -> Accuracy:
        """Over the examples that have this view."""
        return Accuracy.of(list(self.scores[name].values()))

    def _pairs(self, first: str, second: str) -> tuple[list[float], list[float]]:
        both = [i for i in self.scores[first] if i in self.scores[second]]
        return [self.scores[first][i] for i in both], [self.scores[second][i] for i in both]


def probe(trainer: SDFTTrainer, experiment: Experiment, sweep: bool = False) -> dict[str, Any]:
    """Measure student, teacher, rungs, controls and rivals on the set ``new``.

    Args:
        trainer: of the experiment, untrained.
        sweep: also measure the adapter's variants (other numbers of demonstrations, other selections).

    Returns:
        ``accuracy`` ({view: {accuracy, n, low, high}}), ``gap`` (teacher minus student: mean, low, high, n), ``gaps`` (each
        rung, each variant and the votes of draws minus the student), ``answer`` (`right_answer_reading` of student and
        teacher), ``divergence`` (mean token divergence on the student's own completions: the training signal),
        ``positions``, ``tokens`` and ``seconds`` a query, ``verdict``, ``notes`` (views that not every example has).

    Raises:
        UserError: there is nothing with a reference to measure on, or the teacher sees no more than the student.
    """
    known = _scorable_rows(experiment)
    if not known:
        raise UserError(f"The probe needs examples of the task with a reference: {experiment.test_rows_remedy}.")
    examples = _examples_with_teacher(trainer, known, experiment.eval.max_examples or EXAMPLES)
    if not examples:
        raise UserError(f"The probe has no teacher to measure: {ALIKE}")
    run = Probe(trainer, examples, experiment.eval.batch_size)
    adapter = trainer.adapter
    run.measure("student", None)
    run.measure("teacher", run.contexts)
    run.measure_vote()
    run.measure_rungs()
    run.measure_controls()
    contexts = list(run.contexts.values())
    rivals = adapter.rivals(examples, contexts)
    run.scores |= {name: dict(enumerate(score_all(adapter, examples, texts))) for name, texts in rivals.items()}
    variants = adapter.variants() if sweep else {}
    for option, variant in variants.items():
        run.measure(option, run.contexts, variant)
        run.measure_vote(option, variant)
    compared = (VOTE, *RUNGS.values(), *(name for option in variants for name in (option, vote_of(option))))
    views = {"student": None, "teacher": contexts}
    places = answer_positions(adapter, examples, contexts, list(run.texts["teacher"].values()))
    found = replace(_evidence(run, rivals, variants), position_p=places["p"] if places else None)
    drawn = verdict(found)
    tell_scoring_notes(adapter)
    return {
        "accuracy": {name: asdict(run.accuracy(name)) for name in run.scores},
        "gap": asdict(found.gap),
        "gaps": {name: asdict(run.gap(name, "student")) for name in compared if name in run.scores},
        "answer": {view: right_answer_reading(trainer, examples, shown, run.size) for view, shown in views.items()},
        "divergence": _divergence(trainer, examples, run.size),
        "positions": places,
        "tokens": {view: mean_tokens(trainer, examples, shown, run.size) for view, shown in views.items()},
        "seconds": run.seconds,
        "verdict": {**asdict(drawn), "train": drawn.decision == "train"},
        "notes": _notes_on_partial_views(run),
    }


def short_probe(trainer: SDFTTrainer, experiment: Experiment) -> Verdict | None:
    """Student, teacher and one control on at most 40 examples, and the draws' vote where the teacher is not clearly better.

    None where there is nothing to measure on; where rows have references, but nothing for the teacher, a warning says so.
    """
    known = _scorable_rows(experiment)
    examples = _examples_with_teacher(trainer, known, min(FEW, experiment.eval.max_examples or FEW))
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
    return verdict(_evidence(run, (), ()))


def _scorable_rows(experiment: Experiment) -> list[Example]:
    return with_reference(experiment.adapter.examples(experiment.splits.evals.get("new", ())))


def _examples_with_teacher(trainer: SDFTTrainer, known: list[Example], limit: int) -> list[Example]:
    """At most so many, of all that have a teacher; all are only looked at where some of the first draw have none."""
    drawn = sample(known, limit)
    alike = len(with_teacher(trainer, drawn)) < len(drawn)
    return sample(with_teacher(trainer, known), limit) if alike else drawn


def _evidence(run: Probe, rivals: Iterable[str], variants: Iterable[str]) -> Evidence:
    """The measured scores as the verdict takes them."""
    controls = {name for e in run.examples for name in run.adapter.controls(e)}
    spoilt = [name for name in run.scores if name in controls or name == RUNGS[1]]
    options = {f"--demonstrations.rung {rung}": RUNGS[rung] for rung in (3, 4) if RUNGS[rung] in run.scores}
    options |= {option: option for option in variants}

    def mean(name: str) -> float | None:
        return run.accuracy(name).accuracy if name in run.scores else None

    return Evidence(
        student=run.accuracy("student").accuracy,
        teacher=run.accuracy("teacher").accuracy,
        gap=run.gap("teacher", "student"),
        vote=run.standing(VOTE, "teacher") if VOTE in run.scores else None,
        kept={name: run.kept_gap(name) for name in spoilt},
        others={o: run.standing(run.reachable(name), run.reachable("teacher")) for o, name in options.items()},
        answer_alone=mean(RUNGS[5]),
        rivals={name: run.accuracy(name).accuracy for name in rivals},
        permuted=mean("permuted label words"),
        alike=run.alike,
    )


def _notes_on_partial_views(run: Probe) -> list[str]:
    """Sentences on views that some examples do not have."""
    total = len(run.examples)
    return [
        f"'{name}' is measured on {n} of {total} examples: the others have their own demonstrations or answers, or lack it."
        for name in run.scores
        if (n := len(run.scores[name])) < total
    ]


def vote_of(name: str) -> str:
    """What the vote of a view's draws is called."""
    return VOTE if name == "teacher" else f"{name}, {VOTE}"


def _draws_differ(adapter: Any, example: Example, context: TeacherContext, others: Sequence[TeacherContext]) -> bool:
    """Whether another draw shows other demonstrations, and not the same in another order."""
    shown = adapter.demonstrations(example, context)
    return any(d not in shown for other in others for d in adapter.demonstrations(example, other))


@torch.no_grad()
def _divergence(trainer: SDFTTrainer, examples: Sequence[Example], size: int) -> float:
    """Mean loss of a training step on these queries, retention left out."""
    batches = [{"examples": list(examples[rows]), "retained": []} for rows in slices(len(examples), size)]
    losses = [float(trainer.compute_loss(trainer.module, batch)) * len(batch["examples"]) for batch in batches]
    return sum(losses) / len(examples)


def _most_frequent(ballot: Sequence[str]) -> str:
    """The answer that is given most often, the first such one, as it was written first."""
    winner = Counter(map(bare_answer, ballot)).most_common(1)[0][0]
    return next(text for text in ballot if bare_answer(text) == winner)
