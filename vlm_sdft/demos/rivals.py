"""Cheap rivals that see the labelled images and train no language model: what self-distillation has to beat.

- *nearest demonstration*, *nearest labelled image*: the answer of the image whose embedding is nearest;
- *linear probe*: logistic regression on the embeddings of all labelled images;
- *Tip-Adapter* (arXiv 2111.03930), its training-free form: every labelled image votes, the nearer the more, and with
  open_clip the names vote too. The form that trains its keys is not here;
- *zero-shot by name*: the demonstrated type whose name open_clip finds nearest.

Shapes: R images · L labelled images · D embedding width · C answers or names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from text_sdft.core import Demonstration
from vlm_sdft.demos.controls import answer_of
from vlm_sdft.demos.examples import images_of
from vlm_sdft.demos.rows import ImageRow
from vlm_sdft.images.embedding import Embed, load_open_clip, mean_embedding

NAME_PROMPT = "a photo of a {}."
#: Tip-Adapter's own settings: the labelled images' weight beside the names, and how fast a vote falls with distance.
TIP_ALPHA, TIP_BETA = 1.0, 5.5
#: CLIP's scale of cosines.
CLIP_SCALE = 100.0
#: Weight of the linear probe's squared norm beside its mean loss.
PROBE_DECAY = 1e-3


def rival_answers(
    queries: Sequence[Sequence[Any]],
    shown: Sequence[Sequence[Demonstration]],
    labelled: Sequence[ImageRow],
    embed: Embed,
    embedder: str,
) -> dict[str, list[str]]:
    """Each rival's answers to R queries, given by their images, and by the demonstrations that the teacher sees with them.

    ``embedder`` says whose embeddings ``embed`` gives, as in `ImageEmbedder`.
    """
    by = "own features" if embedder == "model" else "open_clip"
    queries_RD = torch.stack([mean_embedding(images, embed) for images in queries])
    labelled_LD = torch.stack([mean_embedding(row.images, embed) for row in labelled])
    answers = list(dict.fromkeys(str(row.answer) for row in labelled))
    index_L = torch.tensor([answers.index(str(row.answer)) for row in labelled])
    nearest_R = (queries_RD @ labelled_LD.T).argmax(-1)
    weight_CD, bias_C = linear_probe(labelled_LD, index_L)
    found = {
        f"nearest demonstration ({by})": nearest_answers(queries_RD, shown, embed),
        f"nearest labelled image ({by})": [answers[i] for i in index_L[nearest_R].tolist()],
        f"linear probe ({by})": _best_names(queries_RD @ weight_CD.T + bias_C, answers),
    }
    if embedder == "model":
        found[f"Tip-Adapter without names ({by})"] = _best_names(tip_adapter(queries_RD, labelled_LD, index_L), answers)
        return found
    candidates = [list(dict.fromkeys(map(answer_of, demonstrations))) for demonstrations in shown]
    names = list(dict.fromkeys([*answers, *(name for row in candidates for name in row)]))
    model, _, tokenize = load_open_clip(embedder)
    with torch.no_grad():
        embedded_CD = model.encode_text(tokenize([NAME_PROMPT.format(name) for name in names])).float()
    names_CD = dict(zip(names, normalize(embedded_CD, dim=-1), strict=True))
    texts_CD = torch.stack([names_CD[answer] for answer in answers])
    found[f"Tip-Adapter ({by})"] = _best_names(tip_adapter(queries_RD, labelled_LD, index_L, texts_CD), answers)
    found[f"zero-shot by name ({by})"] = [
        _best_names((torch.stack([names_CD[name] for name in row]) @ query_D)[None], row)[0] if row else ""
        for query_D, row in zip(queries_RD, candidates, strict=True)
    ]
    return found


def nearest_answers(queries_RD: Tensor, shown: Sequence[Sequence[Demonstration]], embed: Embed) -> list[str]:
    """For each of R queries the answer of the demonstration whose image is nearest; empty where there is none."""
    answers = []
    for query_D, demonstrations in zip(queries_RD, shown, strict=True):
        pictured = [(d, images) for d in demonstrations if (images := images_of(d.messages))]
        if not pictured:
            answers.append("")
            continue
        scores_R = torch.stack([mean_embedding(images, embed) for _, images in pictured]) @ query_D
        answers.append(answer_of(pictured[int(scores_R.argmax())][0]))
    return answers


def linear_probe(labelled_LD: Tensor, index_L: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression: weight [C, D] and bias [C] at the least mean cross-entropy + `PROBE_DECAY`/2 · ‖weight‖².

    ``index_L`` are the rows' classes, 0 … C - 1, each at least once.
    """
    rows_LD = labelled_LD.double()
    weight_CD = torch.zeros(int(index_L.max()) + 1, rows_LD.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(len(weight_CD), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(rows_LD @ weight_CD.T + bias_C, index_L) + PROBE_DECAY / 2 * weight_CD.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]  # torch's stubs take a float
    return weight_CD.detach().to(labelled_LD), bias_C.detach().to(labelled_LD)


def tip_adapter(queries_RD: Tensor, labelled_LD: Tensor, index_L: Tensor, texts_CD: Tensor | None = None) -> Tensor:
    """Scores [R, C]: α · exp(-β (1 - q·lᵀ)) · onehot(l), and with names 100 · q·tᵀ beside it; all q, l, t of unit length.

    ``index_L`` are the classes of the labelled images.
    """
    votes_RL = torch.exp(-TIP_BETA * (1 - queries_RD @ labelled_LD.T))
    scores_RC = TIP_ALPHA * votes_RL @ one_hot(index_L).to(votes_RL)
    return scores_RC if texts_CD is None else scores_RC + CLIP_SCALE * queries_RD @ texts_CD.T


def _best_names(scores_RC: Tensor, names: Sequence[str]) -> list[str]:
    return [names[i] for i in scores_RC.argmax(-1).tolist()]
