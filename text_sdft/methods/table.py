"""The methods that self-distillation is compared with: a table of how each differs, and which rows it takes.

A method is named ``NAME`` or ``NAME/variant/…``: see `VARIANTS`. `text_sdft.methods.method_trainer` trains them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from text_sdft.core import Example, ModalityAdapter, UserError
from text_sdft.core.errors import did_you_mean

#: variant -> what it is in words, and the settings of `SDFTConfig` that it stands for. The first three are no settings:
#: they choose rows, or when the teacher answers.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "labelled": ("without queries that no expert answered", {}),
    "no_retain": ("without retention prompts", {}),
    "fresh": ("with answers that are sampled anew at each step instead, under a new draw of the demonstrations", {}),
    "forward": ("with the forward KL divergence", {"distillation_alpha": 0.0}),
    "reverse": ("with the reverse KL divergence", {"distillation_alpha": 1.0}),
    "jsd": ("with the Jensen-Shannon divergence", {"distillation_alpha": 0.5}),
    "frozen": ("with the model as it was at the start as the teacher", {"teacher_model_kind": "base"}),
    "ema": ("with a moving average of the student as the teacher", {"teacher_model_kind": "ema"}),
    "live": ("with the student itself as the teacher", {"teacher_model_kind": "live"}),
    "entropy": ("with queries weighed by the teacher's entropy", {"confidence": "entropy"}),
    "agreement": ("with queries weighed by the agreement of two draws", {"confidence": "agreement"}),
}


class Unsupported(UserError):
    """The data lacks what a method trains on; `compare` leaves the method out and says so."""


@dataclass(frozen=True)
class Method:
    """How a method differs from SDFT.

    Attributes:
        name: as the user writes it, variants included.
        summary: what it does, for tables and the model card; a second sentence on its variants.
        completions: whose completions of the queries a step learns from: the student's own (sampled anew each step), the
            expert's, the starting teacher's, the privileged context as plain text, or none (no training).
        loss: on the queries: the divergence to the teacher, the likelihood, or the likelihood with each token weighted by
            its own probability ("dynamic").
        attention_only: train the attention weights only.
        replay: beside each query, one old row with an expert's answer.
        reinvoke: in the second half of the steps, on-policy distillation from the start on retention prompts instead.
        labelled: leave out queries without an expert's answer.
        retain: train on retention prompts beside the queries, where the data has any.
        fresh: the starting teacher answers anew at each step, under a new draw of its context; else once, before training.
        settings: of `SDFTConfig`, in place of the config's.
    """

    name: str
    summary: str
    completions: Literal["student", "expert", "teacher", "context", "none"]
    loss: Literal["divergence", "likelihood", "dynamic"] = "likelihood"
    attention_only: bool = False
    replay: bool = False
    reinvoke: bool = False
    labelled: bool = False
    retain: bool = True
    fresh: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.completions != "none"


METHODS = {
    method.name: method
    for method in (
        Method(
            "sdft",
            "Self-Distillation Fine-Tuning (SDFT, arXiv 2601.19897): the model answers each query, the same model with "
            "expert demonstrations in its context scores the same tokens, and the model moves towards those scores.",
            "student",
            "divergence",
        ),
        Method("base", "The model as it is, without training.", "none"),
        Method("icl", "The model as it is, with the demonstrations in its context when it is tested.", "none"),
        Method(
            "rivals",
            "Cheap methods on the same labelled rows, without training the model; each is a row of the table, measured on "
            "the new task alone.",
            "none",
        ),
        Method("sft", "Supervised fine-tuning: cross-entropy on the expert's answers.", "expert"),
        Method(
            "sft_attention",
            "Supervised fine-tuning of the attention weights alone: cross-entropy on the expert's answers.",
            "expert",
            attention_only=True,
        ),
        Method(
            "dft",
            "Dynamic Fine-Tuning (arXiv 2508.05629): cross-entropy on the expert's answers, each token weighted by the "
            "probability that the model gives it.",
            "expert",
            "dynamic",
        ),
        Method(
            "sft_teacher",
            "Fine-tuning on the teacher's answers (arXiv 2402.13669): cross-entropy on one answer to each query that the "
            "model sampled before training, with demonstrations in its context.",
            "teacher",
        ),
        Method(
            "offline",
            "Off-policy distillation: the divergence to the teacher as it was at the start, on one answer to each query "
            "that this teacher sampled before training.",
            "teacher",
            "divergence",
        ),
        Method(
            "cpt", "Continued pretraining: next-token cross-entropy on the privileged contexts as plain text.", "context"
        ),
        Method(
            "sft_reinvoke",
            "Supervised fine-tuning for the first half of the steps, then on-policy distillation from the model as it was "
            "at the start, on retention prompts (the re-invocation of arXiv 2601.19897).",
            "expert",
            reinvoke=True,
        ),
        Method(
            "replay",
            "Supervised fine-tuning with one old row and its expert's answer beside each query.",
            "expert",
            replay=True,
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of that name, with its variants.

    Raises:
        UserError: no such method or variant (names the nearest), or a variant that does not go with the method.
    """
    base, *variants = name.strip().split("/")
    for given, known, kind in [(base, list(METHODS), "method"), *((v, list(VARIANTS), "variant") for v in variants)]:
        if given not in known:
            raise UserError(f"There is no {kind} '{given}'.{did_you_mean(given, known)} Use {', '.join(known)}.")
    method, settings = METHODS[base], {k: v for variant in variants for k, v in VARIANTS[variant][1].items()}
    of_sdft = {"teacher_model_kind", "confidence"} & settings.keys()
    if (of_sdft and base != "sdft") or (settings and method.loss != "divergence"):
        raise UserError(
            f"'{name}': '{base}' has no divergence, or no teacher at every step, that this variant could change."
        )
    if "fresh" in variants and method.completions != "teacher":
        raise UserError(f"'{name}': only sft_teacher and offline learn from answers of the teacher, which 'fresh' renews.")
    if "no_retain" in variants and method.reinvoke:
        raise UserError(f"'{name}': '{base}' learns from retention prompts, which 'no_retain' leaves out.")
    variants = [variant for variant in VARIANTS if variant in variants]
    here = f" Here {', '.join(VARIANTS[variant][0] for variant in variants)}." if variants else ""
    return replace(
        method,
        name="/".join([base, *variants]),
        summary=method.summary + here,
        labelled="labelled" in variants,
        retain="no_retain" not in variants,
        fresh="fresh" in variants,
        settings=settings,
    )


def expert_answer(adapter: ModalityAdapter, example: Example) -> str | None:
    """What the expert answered to this very query; None where nobody did, or the adapter cannot tell."""
    return adapter.expert_answer(example) if hasattr(adapter, "expert_answer") else None


def rows_for(
    method: Method, adapter: ModalityAdapter, examples: Sequence[Example]
) -> tuple[list[Example], list[Example], list[Example]]:
    """What a method trains on.

    Returns:
        queries; retention prompts; old rows with an expert's answer, for replay.

    Raises:
        Unsupported: the data has nothing that this method could learn from; says what is missing.
    """
    queries = [example for example in examples if not example.retain]
    retained = [example for example in examples if example.retain]
    if method.completions == "expert" or method.labelled:
        queries = [example for example in queries if expert_answer(adapter, example) is not None]
        _require(method, queries, "training rows with an expert's answer (text: golden_response; images: train/<type>/*)")
    if method.completions == "context":
        queries = [example for example in queries if example.privileged_context]
        _require(method, queries, "training rows with a privileged_context")
    if method.reinvoke:
        _require(method, retained, "retention prompts (data.retain)")
    if method.replay:
        old = [example for example in retained if expert_answer(adapter, example) is not None]
        _require(method, old, "retention rows with an expert's answer")
        return queries, [], old
    return queries, retained if method.retain else [], []


def _require(method: Method, rows: Sequence[Example], what: str) -> None:
    if not rows:
        raise Unsupported(
            f"The method '{method.name}' needs {what}; the data has none. Add some, or choose another method."
        )
