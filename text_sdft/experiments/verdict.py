"""From the probe's scores to a verdict: the gap with its interval, and the rule.

What self-distillation gains at the end follows the gap between teacher and student before it (arXiv 2605.30070). The rule's
own validation is `benchmarks/probe_validation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from text_sdft.experiments.stats import Gap

#: A rival within this of the teacher is worth a note.
MARGIN = 0.05
#: Where more than this share of the gap survives spoiled demonstrations, the gap does not come from them.
SHARE = 0.5
#: A student this good has nothing to learn.
KNOWN = 0.95
#: A gap that may be larger than this is worth measuring on more examples.
WORTH = 0.05
#: An interval that reaches further is of too few examples to say that there is no gap, whatever these few say.
OPEN = 0.5
#: Below this probability under "every position alike", the teacher favours positions.
UNEVEN = 0.01
#: What to say where every draw shows an example the same demonstrations.
CHEAPER = (
    "Each step shows a query the same demonstrations, so one answer says what the teacher knows: SFT on it (--method "
    "sft_teacher) may be as good as SDFT at half of its FLOPs; `vlm-sdft compare --methods sft_teacher,sdft` tells."
)


@dataclass(frozen=True)
class Evidence:
    """What the verdict is drawn from; scores in [0, 1].

    Attributes:
        student, teacher: accuracies.
        gap: teacher minus student.
        vote: what most draws of the demonstrations say, where draws show different ones: (accuracy, gap to the student,
            gap to the teacher).
        kept: by control or by rung 1: the accuracy that is left, and how much more of the gap than `SHARE` it keeps.
        others: other settings by the option that sets them: (accuracy, gap to the student, gap to the teacher); of the vote
            of draws in the place of either where that is clearly better.
        answer_alone: the teacher's accuracy with the answer in its context, if measured.
        rivals: accuracies of cheap rivals on the same demonstrations.
        permuted: how often the teacher gives the exchanged name where names are exchanged, if measured.
        position_p: probability of the teacher's answers' positions if all positions were alike, if measured.
        alike: every draw of the demonstrations is known to show an example the same ones.
    """

    student: float
    teacher: float
    gap: Gap
    vote: tuple[float, Gap, Gap] | None = None
    kept: Mapping[str, tuple[float, Gap]] = field(default_factory=dict)
    others: Mapping[str, tuple[float, Gap, Gap]] = field(default_factory=dict)
    answer_alone: float | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)
    permuted: float | None = None
    position_p: float | None = None
    alike: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether to train, and why.

    Attributes:
        decision: "train", "do not train", or "try first" with something concrete.
        reason: one sentence with the numbers behind it.
        option: the setting to train with or to try, where it is not the present one.
        notes: what else a user should know.
    """

    decision: Literal["train", "do not train", "try first"]
    reason: str
    option: str | None = None
    notes: tuple[str, ...] = ()


def verdict(found: Evidence) -> Verdict:
    """The rule: train where the teacher is better beyond the gap's interval, and only through its demonstrations.

    Where draws of its demonstrations disagree, so that their vote is clearly better than one of them, the vote stands for
    the teacher: the student learns from all draws.
    """
    gap, teacher = found.gap, f"teacher {_percent(found.teacher)}"
    if found.vote is not None and found.vote[2].low > 0:
        gap, teacher = found.vote[1], f"{teacher}, vote of its draws {_percent(found.vote[0])}"
    percent = f"{teacher}, student {_percent(found.student)}, gap {_points(gap)}"
    notes = _notes(found)
    spoilt = {name: accuracy for name, (accuracy, more) in found.kept.items() if more.low > 0}
    if gap.low > 0 and spoilt:
        name, accuracy = max(spoilt.items(), key=lambda item: item[1])
        reason = (
            f"Do not train: the teacher stays good with spoiled demonstrations ({name}: {_percent(accuracy)}; {percent}), "
            "so most of what it knows more does not come from them."
        )
        return Verdict("do not train", reason, None, notes)
    better = {name: more.mean for name, (_, _, more) in found.others.items() if more.low > 0}
    best = max(better, key=lambda name: better[name]) if better else None
    if gap.low > 0:
        reason = f"Train: with demonstrations the model is better, and because of them ({percent})."
        if best is not None:
            reason += f" Better still with {best}: {_percent(found.others[best][0])}."
        return Verdict("train", reason, best, (*notes, CHEAPER) if found.alike else notes)
    if best is not None and found.others[best][1].low > 0:
        accuracy, other, _ = found.others[best]
        reason = f"Try {best} first: {_percent(accuracy)} are right with it (gap {_points(other)}; now: {percent})."
        return Verdict("try first", reason, best, notes)
    if found.student >= KNOWN:
        return Verdict("do not train", f"Do not train: the model knows this already ({percent}).", None, notes)
    if gap.high > (WORTH if gap.mean > 0 else OPEN):
        reason = (
            f"Measure more first: whether demonstrations help is not clear from {gap.n} examples ({percent}). Raise "
            "eval.max_examples, or add test rows where there are no more."
        )
        return Verdict("try first", reason, f"--eval.max_examples {4 * gap.n}", notes)
    reason = f"Do not train: with demonstrations the model is no better than without ({percent})."
    if found.answer_alone is not None and found.answer_alone <= max(found.student, 0.5):
        advice = (
            f"Even with the right answer in its context the model gives it in {_percent(found.answer_alone)} only: look at "
            "the prompts with `vlm-sdft preview`, or take a stronger model."
        )
    else:
        advice = (
            "Try first: more demonstrations, demonstrations nearer to the query, fewer types at once, or a stronger model."
        )
    return Verdict("do not train", reason, None, (advice, *notes))


def _notes(found: Evidence) -> tuple[str, ...]:
    notes = []
    best = max(found.rivals, key=lambda name: found.rivals[name], default="")
    if best and found.gap.low > 0 and found.rivals[best] >= found.teacher - MARGIN:
        right = _percent(found.rivals[best])
        notes.append(f"{best} is right in {right} without training: if names are all you need, it is cheaper.")
    if found.permuted is not None and found.gap.low > 0 and found.permuted < found.teacher - SHARE * found.gap.mean:
        notes.append(
            f"With names exchanged the teacher gives the exchanged one in {_percent(found.permuted)} only: part of what it "
            "says comes from what it knew, not from its demonstrations."
        )
    if found.vote is not None and found.vote[2].low > 0:
        notes.append(
            "Draws of the demonstrations disagree: SDFT learns from a new draw at each step and may end where their vote "
            "stands; SFT on one answer of the teacher each (sft_teacher) learns the errors of one draw."
            + " Labelled queries may learn more where the teacher is shown their answer instead: --demonstrations.rung 5."
            * (found.answer_alone is not None and found.answer_alone > found.teacher)
        )
    if found.position_p is not None and found.position_p < UNEVEN:
        notes.append(
            f"The teacher favours some positions among its demonstrations (p = {found.position_p:.1g} if all were alike)."
        )
    return tuple(notes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _points(gap: Gap) -> str:
    return f"{100 * gap.mean:+.0f} points, {100 * gap.low:+.0f} to {100 * gap.high:+.0f}"
