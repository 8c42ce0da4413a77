"""What the terminal shows: results and previews as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from text_sdft.experiments.folder import read_json

#: What measured sets are called, by adapter where it has words of its own.
LABELS = {"teacher": "teacher (new, in context)"}
OWN_LABELS = {"image": {"new": "new types", "old": "old types"}}


def print_results(
    results: dict[str, Any], folder: Path, adapter: str, columns: tuple[str, str] = ("before", "after")
) -> None:
    """Accuracies before and after with their 95 % intervals, and where the files are."""
    labels = {**LABELS, **OWN_LABELS.get(adapter, {})}
    table = _table("Accuracy (95 % interval)", "", *columns, "n")
    before, after = results["before"], results["after"]
    for name in dict.fromkeys([*before, *after]):
        n = dict.fromkeys(str(part[name]["n"]) for part in (before, after) if name in part)
        table.add_row(labels.get(name, name), _cell(before.get(name)), _cell(after.get(name)), ", ".join(n))
    nothing = "Nothing was measured: the data has no rows to measure (test/<type>/*, data.test)."
    _console().print(table if before or after else nothing)
    moved = results.get("drift")
    if moved is not None:
        line = f"On prompts of prior skills: KL from the start {moved['after']['kl']:.3g} nats a token"
        if "perplexity" in moved["after"]:
            before, after = moved["before"]["perplexity"], moved["after"]["perplexity"]
            line += f"; perplexity of their references {before:.3g} before, {after:.3g} after"
        _print(f"{line}.")
    _print(f"Everything is in {folder}/ (the model in {folder / 'model'}/).")


def print_further(folder: Path, pass_at_k: bool, skills: bool) -> None:
    """What `run_evaluation` measured beside the accuracies, out of its files in the run's folder."""
    if pass_at_k:
        found = read_json(folder / "pass_at_k.json")["pass_at_k"]
        line = ", ".join(f"pass@{k} {100 * value:.1f} %" for k, value in found.items())
        _print(f"New: {line}.")
    if skills:
        found = read_json(folder / "skills.json")
        for task, before in found["before"].items():
            line = f"{task} ({before['metric']}): {_percent(before)} before, {_percent(found['after'][task])} after"
            _print(f"{line}.")


def _percent(measured: dict[str, Any]) -> str:
    error = "" if measured["stderr"] is None else f" ± {196 * measured['stderr']:.1f}"
    return f"{100 * measured['score']:.1f} %{error}"


def print_probe(numbers: dict[str, Any], file: Path) -> None:
    """Accuracies of student, teacher, rungs, controls and rivals, what a query costs, and the verdict."""
    table = _table("Before training: accuracy (95 % interval)", "", "accuracy", "n", "seconds a query")
    for name, accuracy in numbers["accuracy"].items():
        label = name if name in ("student", "teacher") else f"  {name}"
        seconds = numbers["seconds"].get(name)
        table.add_row(label, _cell(accuracy), str(accuracy["n"]), f"{seconds:.2f}" if seconds is not None else "–")
    gap, tokens = numbers["gap"], numbers["tokens"]
    _console().print(table)
    _print(
        f"Teacher minus student: {100 * gap['mean']:+.1f} points ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}), "
        "on the same examples.",
        *(_reading(view, read) for view, read in numbers["answer"].items() if read is not None),
        f"Token divergence on the student's own answers: {numbers['divergence']:.3f} nats.",
        *_places(numbers["positions"]),
        f"Tokens a query: student {tokens['student']:.0f}, teacher {tokens['teacher']:.0f}.",
        *numbers["notes"],
        numbers["verdict"]["reason"],
        *numbers["verdict"]["notes"],
        f"The numbers are in {file}.",
    )


def _reading(view: str, read: dict[str, float]) -> str:
    return (
        f"The right answer in the {view}'s eyes: log-probability {read['logp_answer']:.2f} an answer, "
        f"{read['logp_token']:.2f} a token; entropy there {read['entropy']:.2f} nats."
    )


def _places(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    p = "too few to test" if found["p"] is None else f"p = {found['p']:.2g} if all positions were alike"
    return [f"Positions of the demonstrations whose answer the teacher gave: {found['counts']} ({p})."]


def print_answers(records: Sequence[dict[str, Any]]) -> None:
    """Answers to new queries, how sure the model is of each, and the labelled images most like it where they are told."""
    for record in records:
        cut = ", cut at the length limit" if record["cut"] else ""
        asked = record.get("image", record["prompt"])
        _print(f"{asked}: {record['answer']}  ({100 * record['confidence']:.1f} %{cut})")
        _print(*(f"    like {like['image']}: {like['answer']}" for like in record.get("nearest", ())))
    _print("In brackets: the probability that the model gives to this very answer.")


def print_export(folder: Path, difference: dict[str, Any] | None) -> None:
    """Where a checkpoint is, whether it answers as the run's model does, and what serves it."""
    if difference is not None:
        is_close = difference["logp"] <= difference["tolerance"]
        why = "as rounding does" if is_close else f"more than rounding explains ({difference['tolerance']:g})"
        _print(
            f"Asked {difference['n']} of the run's own queries: {difference['equal']} answers are equal. Log-probabilities "
            f"differ by {difference['logp']:.2g} nats a token at most, {why}."
        )
    _print(
        f"The model is in {folder}/. Either of these serves it:",
        f"    vllm serve {folder}",
        f"    transformers serve {folder}",
    )


def print_sequence(found: dict[str, Any], folder: Path) -> None:
    """The accuracy matrix of a sequence, and its summary."""
    old = list(found["before"]["old"])
    kept = f", {found['retain_earlier']} queries of each earlier task retained" if found.get("retain_earlier") else ""
    title = f"Accuracy in % after each task ({found['method']}{kept})"
    table = _table(title, "", *found["tasks"], *old, no_wrap=True)
    rows = {"before": found["before"]}
    rows |= {f"after {name}": row for name, row in zip(found["tasks"], found["after"], strict=True)}
    rows |= {"all at once": found["joint"]} if found["joint"] else {}
    for name, row in rows.items():
        table.add_row(name, *(f"{100 * value:.1f}" for value in (*row["new"], *(row["old"][key] for key in old))))
    _console().print(table)
    _print(*(f"{name.replace('_', ' ')}: {100 * value:.1f}" for name, value in found["summary"].items()))
    _print(f"Everything is in {folder}/.")


def print_preview(preview: dict[str, Any]) -> None:
    """Rendered prompts, token counts and memory."""
    console = _console()
    for example in preview["examples"]:
        console.rule(f"{example['id']} ({example['set']})", align="left")
        for view in ("student", "teacher", "answer"):
            if view in example:
                console.print(f"{view} ({example[view]['tokens']} tokens)", style="bold")
                console.print(example[view]["text"], soft_wrap=True)
        _print(*(f"image: {file}" for file in example["images"]))
    counts = _table("Tokens of a prompt", "", "least", "median", "most", "image tokens (median)")
    for view, row in preview["tokens"].items():
        counts.add_row(view, *(str(row[key]) for key in ("min", "median", "max", "image_median")))
    console.print(counts)
    console.print(f"Demonstrations left out because of the limit of {preview['limit']} tokens: {preview['dropped']}.")
    console.print(preview["trained"])
    together = sum(preview["memory"].values())
    unit, scale = ("GiB", 2**30) if together > 2**30 else ("MiB", 2**20)
    memory = _table("Expected peak memory (an estimate)", "", unit)
    for name, size in {**preview["memory"], "together": together}.items():
        memory.add_row(name, f"{size / scale:.1f}")
    console.print(memory)
    if preview["step"] is not None:
        seconds, peak = preview["step"]["seconds"], preview["step"]["peak"] / 2**30
        console.print(f"Measured on a few micro-batches: {seconds:.2f} s a step, {peak:.2f} GiB at most (AdamW included).")


def _table(title: str, *headings: str, no_wrap: bool = False) -> Table:
    """An empty table: words in the column without a heading, numbers in the others."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=no_wrap)
    return table


def _console() -> Console:
    """Names of folders, sets and types may hold what rich takes for markup: they are shown as they are."""
    return Console(markup=False, emoji=False, highlight=False)


def _print(*lines: str) -> None:
    """Lines as they are: neither coloured nor broken."""
    for line in lines:
        _console().print(line, soft_wrap=True)


def _cell(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "–"
    return f"{100 * accuracy['accuracy']:.1f} % ({100 * accuracy['low']:.0f}–{100 * accuracy['high']:.0f})"
