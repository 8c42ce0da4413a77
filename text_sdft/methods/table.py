"""The methods by name: what each learns from, and which rows it takes.

A method is named ``NAME`` or ``NAME/variant/…``: see `VARIANTS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from text_sdft.core import Example, ExperimentAdapter, SDFTConfig, UserError
from text_sdft.core.errors import did_you_mean
from text_sdft.core.groups import Group, Step
from text_sdft.methods.attention import attention_only
from text_sdft.methods.distillation import offline, sdft
from text_sdft.methods.supervised import dft, reinvoke, replay, sft

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
}


class Unsupported(UserError):
    """The data lacks what a method trains on; `compare` leaves the method out and says so."""


@dataclass(frozen=True)
class Method:
    """A way to learn from queries.

    Attributes:
        name: as the user writes it, variants included.
        summary: what it does, for tables and the model card; a second sentence on its variants.
        groups: what a step learns from; None: nothing is trained.
        answers: to the queries: the student's own (sampled anew each step), the expert's, the starting teacher's, or the
            privileged context as plain text.
        retention: retention prompts are drawn beside the queries where the data has any, are required, are required with
            an expert's answer (and no teacher reads them), or are left out.
        trainable: (model, untouched modules, LoRA config) -> LoRA config; freezes more than the adapter asks for.
        labelled: leave out queries without an expert's answer.
        fresh: the starting teacher answers anew at each step, under a new draw of its context; else once, before training.
        settings: of `SDFTConfig`, in place of the config's.
    """

    name: str
    summary: str
    groups: Callable[[Step], list[Group]] | None = None
    answers: Literal["student", "expert", "teacher", "context"] = "student"
    retention: Literal["drawn", "required", "answered", "none"] = "drawn"
    trainable: Callable[[Any, Sequence[str], Any], Any] | None = None
    labelled: bool = False
    fresh: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.groups is not None

    @property
    def stores_answers(self) -> bool:
        """Whether the starting teacher answers every query once, before training."""
        return self.answers == "teacher" and not self.fresh

    @property
    def shows_context(self) -> bool:
        """Whether a teacher is shown the queries' demonstrations, to read answers or to give them."""
        return self.trains and self.answers in ("student", "teacher")

    def configured(self, args: SDFTConfig) -> SDFTConfig:
        """The method's settings: the config's, but for its variants and for what suits the student's own answers alone.

        Given answers are learnt from their first token on, one a query, unweighted; the teacher that samples answers is the
        starting model, and where none reads the queries no copy of its weights is kept.
        """
        changes = dict(self.settings)
        if self.answers != "student":
            changes |= {"num_loss_tokens_to_skip": 0, "num_generations": 1, "distillation_is_clip": None}
            changes["teacher_model_kind"] = "base" if self.answers == "teacher" else "live"
        args = copy.copy(args)
        for name, value in changes.items():
            setattr(args, name, value)
        return args

    def rows(self, adapter: ExperimentAdapter, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
        """The queries and the retention rows that are trained on. Raises `Unsupported` naming what the data lacks."""
        queries = [example for example in examples if not example.retain]
        retained = [example for example in examples if example.retain]
        if self.answers == "expert" or self.labelled:
            queries = [query for query in queries if adapter.expert_answer(query) is not None]
            self._require(queries, "training rows with an expert's answer (text: golden_response; images: train/<type>/*)")
        if self.answers == "context":
            queries = [query for query in queries if query.privileged_context]
            self._require(queries, "training rows with a privileged_context")
        if self.retention == "none":
            return queries, []
        if self.retention == "required":
            self._require(retained, "retention prompts (data.retain)")
        if self.retention == "answered":
            retained = [row for row in retained if adapter.expert_answer(row) is not None]
            self._require(retained, "retention rows with an expert's answer")
        return queries, retained

    def _require(self, rows: Sequence[Example], what: str) -> None:
        if not rows:
            raise Unsupported(
                f"The method '{self.name}' needs {what}; the data has none. Add some, or choose another method."
            )


METHODS = {
    method.name: method
    for method in (
        Method(
            "sdft",
            "Self-Distillation Fine-Tuning (SDFT, arXiv 2601.19897): the model answers each query, the same model with "
            "expert demonstrations in its context scores the same tokens, and the model moves towards those scores.",
            sdft,
        ),
        Method("base", "The model as it is, without training."),
        Method("icl", "The model as it is, with the demonstrations in its context when it is tested."),
        Method(
            "rivals",
            "Cheap methods on the same labelled rows, without training the model; each is a row of the table, measured on "
            "the new task alone.",
        ),
        Method("sft", "Supervised fine-tuning: cross-entropy on the expert's answers.", sft, "expert"),
        Method(
            "sft_attention",
            "Supervised fine-tuning of the attention weights alone: cross-entropy on the expert's answers.",
            sft,
            "expert",
            trainable=attention_only,
        ),
        Method(
            "dft",
            "Dynamic Fine-Tuning (arXiv 2508.05629): cross-entropy on the expert's answers, each token weighted by the "
            "probability that the model gives it.",
            dft,
            "expert",
        ),
        Method(
            "sft_teacher",
            "Fine-tuning on the teacher's answers (arXiv 2402.13669): cross-entropy on one answer to each query that the "
            "model sampled before training, with demonstrations in its context.",
            sft,
            "teacher",
        ),
        Method(
            "offline",
            "Off-policy distillation: the divergence to the teacher as it was at the start, on one answer to each query "
            "that this teacher sampled before training.",
            offline,
            "teacher",
        ),
        Method(
            "cpt",
            "Continued pretraining: next-token cross-entropy on the privileged contexts as plain text.",
            sft,
            "context",
        ),
        Method(
            "sft_reinvoke",
            "Supervised fine-tuning for the first half of the steps, then on-policy distillation from the model as it was "
            "at the start, on retention prompts (the re-invocation of arXiv 2601.19897).",
            reinvoke,
            "expert",
            "required",
        ),
        Method(
            "replay",
            "Supervised fine-tuning with one old row and its expert's answer beside each query.",
            replay,
            "expert",
            "answered",
        ),
    )
}


def find_method(name: str) -> Method:
    """The method of that name, with its variants. Raises `UserError` where one does not exist or go with the method."""
    base, *variants = name.strip().split("/")
    for given, known, kind in [(base, list(METHODS), "method"), *((v, list(VARIANTS), "variant") for v in variants)]:
        if given not in known:
            raise UserError(f"There is no {kind} '{given}'.{did_you_mean(given, known)} Use {', '.join(known)}.")
    method, settings = METHODS[base], {k: v for variant in variants for k, v in VARIANTS[variant][1].items()}
    if ("teacher_model_kind" in settings and base != "sdft") or (settings and base not in ("sdft", "offline")):
        raise UserError(
            f"'{name}': '{base}' has no divergence, or no teacher at every step, that this variant could change."
        )
    if "fresh" in variants and method.answers != "teacher":
        raise UserError(f"'{name}': only sft_teacher and offline learn from answers of the teacher, which 'fresh' renews.")
    if "no_retain" in variants and method.retention == "required":
        raise UserError(f"'{name}': '{base}' learns from retention prompts, which 'no_retain' leaves out.")
    variants = [variant for variant in VARIANTS if variant in variants]
    here = f" Here {', '.join(VARIANTS[variant][0] for variant in variants)}." if variants else ""
    return replace(
        method,
        name="/".join([base, *variants]),
        summary=method.summary + here,
        retention="none" if "no_retain" in variants and method.retention == "drawn" else method.retention,
        labelled="labelled" in variants,
        fresh="fresh" in variants,
        settings=settings,
    )


def method_of(method: str | Method | Callable[[Step], list[Group]]) -> Method:
    """The method of that name; a function from a step to its groups is a method too."""
    if isinstance(method, Method):
        return method
    return find_method(method) if isinstance(method, str) else Method(method.__name__, str(method.__doc__), method)
