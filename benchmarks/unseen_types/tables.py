"""The tables of docs/results-visual.md and docs/results-visual-tables.md, from finished cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import shown

COLUMNS = {
    "new": "new types",
    "name": "name alone",
    "old": "old types",
    "describing": "describing",
    "in_context": "in-context learning",
}
#: Begins the keys of rivals that train no language model.
RIVAL = "rival: "
#: Ends the names of rows whose learning rate was chosen by new types alone.
ALONE = ", for new types alone"
#: Ends the names of rows that train an adapter.
LORA = ", LoRA"
#: Ends the names of rows in which the teacher of a labelled image is shown its answer alone (rung 5).
ANSWERED = ", labels shown"
#: Ends the names of rows whose teacher answers anew at each step.
FRESH = ", fresh answers"
_MAIN = (
    ("SDFT + retention", "teacher"),
    ("SFT from teacher + retention", "teacher"),
    ("SDFT + retention", "SFT"),
    ("SDFT + retention", "SFT + retention"),
    ("SDFT + retention", "SFT from teacher + retention"),
    ("SDFT + retention", "untrained"),
)
#: Rows of differences, as far as both were run: a column of one row minus a column of another, on the same seeds.
PAIRS = (
    *_MAIN,
    *((a + variant, b + variant * (b not in ("teacher", "untrained"))) for variant in (ALONE, LORA) for a, b in _MAIN),
    ("SDFT + retention", "SFT + labelled replay"),
    ("SDFT + retention", "offline distillation + retention"),
    *((a + FRESH, "teacher") for a in ("SFT from teacher + retention", "offline distillation + retention")),
    *(("SDFT + retention", b + FRESH) for b in ("SFT from teacher + retention", "offline distillation + retention")),
    ("SDFT + retention, twice its weight", "untrained"),
    ("SDFT + retention, growing weight", "untrained"),
    ("SDFT + retention, averaged student", "untrained"),
    *(("SDFT + retention" + ANSWERED, other) for other in ("untrained", "teacher", "SFT", "SFT + retention")),
    ("SDFT + retention" + ANSWERED, "SDFT + retention"),
    ("SDFT + retention" + ANSWERED, "SFT from teacher + retention" + ANSWERED),
    *(
        ("SDFT + retention, half in context" + more, other)
        for more in ("", ", twice its weight")
        for other in ("untrained", "teacher", "SDFT + retention")
    ),
    ("SDFT + retention, half in context, twice its weight", "SDFT + retention, half in context"),
    ("SDFT + retention, half in context", "SFT from teacher + retention, half in context"),
    ("SFT from teacher + retention, half in context", "untrained"),
    ("SFT from teacher + retention", "untrained"),
)


#: Columns of the summary: new types by each row, then how the last one differs from the untrained model in other skills.
SUMMARY = (
    "teacher",
    "nearest labelled image",
    "SFT",
    "SFT + retention",
    "SFT from teacher + retention",
    "SDFT + retention",
)
KEPT = ("old", "in_context")
#: SFT with and without retention prompts, whichever learns more new types.
BEST_SFT = "SFT's best"
#: What is asked of SDFT + retention: (skill, compared with, the least difference; None: an interval above 0).
GOALS: dict[str, tuple[str, str, float | None]] = {
    "new types − teacher": ("new", "teacher", -0.02),
    "new types − SFT's best": ("new", BEST_SFT, None),
    "new types − SFT from teacher": ("new", "SFT from teacher + retention", None),
    "old types − before": ("old", "untrained", -0.02),
    "old types − SFT": ("old", "SFT", None),
    "describing − before": ("describing", "untrained", -0.02),
    "in-context learning − before": ("in_context", "untrained", -0.02),
}
#: Variants of the methods with a teacher that have lines of their own.
VARIANTS = ("", ", half in context", ", half in context, twice its weight", ANSWERED, ALONE, LORA)
#: Lines of the page that is read first: each kind of picture, the better teacher, and disagreeing draws.
HEADLINES = (
    "objects, noise 90",
    "objects, noise 150",
    "emoji",
    "handwriting",
    "fashion",
    "handwriting, 1 type shown",
    "objects, noise 90, 8 random types shown, 5 unlabelled",
    f"objects, noise 150, 8 random types shown, 5 unlabelled{ANSWERED}",
    "objects, long answers, noise 60",
)

Rows = dict[str, dict[int, Mapping[str, Any]]]


def report(found: Mapping[str, Rows]) -> str:
    """Markdown: the summary and the goals; then for each setting a table of means and one of paired differences."""
    lines = dict(by_variant(found))
    parts = ["## All settings", summary(lines), "## The goals in all settings", goals(lines), "## All rows"]
    for setting, rows in found.items():
        parts += [f"### {setting}", means(rows), differences(rows)]
    return "\n\n".join(part for part in parts if part)


def write_pages(found: Mapping[str, Rows], docs: Path) -> None:
    """Put the tables into the pages that show them, in the place of what stands there: the `report` from the one page's
    first such heading on, and of its first table the `HEADLINES` into the other page."""
    page = docs / "results-visual-tables.md"
    head = page.read_text(encoding="utf-8").partition("## ")[0]
    page.write_text(f"{head}{report(found)}\n", encoding="utf-8")
    page = docs / "results-visual.md"
    text = page.read_text(encoding="utf-8")
    lines = {name: rows for name, rows in by_variant(found) if name in HEADLINES}
    table = summary(lines)
    start = text.index(table[: table.index("|", 1) + 1])  # its first heading names it
    text = text[:start] + table + text[text.index("\n\n", start) :]
    page.write_text(text, encoding="utf-8")


def collect(done: Mapping[str, Mapping[str, Any]], settings: Sequence[str], methods: Sequence[str]) -> dict[str, Rows]:
    """The rows of each setting that has test cells.

    Args:
        done: cells by "setting/split/seed/method/rate".
        settings, methods: in the order of the tables; the first method is the untrained model.
    """
    return {setting: rows for setting in settings if (rows := rows_of(done, setting, methods))}


def rows_of(done: Mapping[str, Mapping[str, Any]], setting: str, methods: Sequence[str]) -> Rows:
    """The setting's test cells by row and seed, in the order of the tables."""
    rows: Rows = {}
    for key, cell in done.items():
        name, split, seed, method, rate = key.rsplit("/", 4)
        if (name, split) == (setting, "test") and method in methods:
            rows.setdefault(method if method == methods[0] else f"{method}, {rate}", {})[int(seed)] = cell
    base = rows.get(methods[0], {})
    rows["teacher"] = {
        s: {"new": cell["teacher"], **({"name": cell["teacher_name"]} if "teacher_name" in cell else {})}
        for s, cell in base.items()
    }
    rivals = dict.fromkeys(key for cell in base.values() for key in cell if key.startswith(RIVAL))
    names = {key: key.removeprefix(RIVAL).replace(" (own features)", "") for key in rivals}
    rows |= {names[key]: {s: {"new": cell[key]} for s, cell in base.items() if key in cell} for key in rivals}
    order = [methods[0], "teacher", *names.values()]
    order += sorted(set(rows) - set(order), key=lambda row: [methods.index(method_of(row)), row])
    return {row: dict(sorted(rows[row].items())) for row in order if rows.get(row)}


def summary(chosen: Mapping[str, Rows]) -> str:
    """One line a setting that SDFT was trained on: new types by method, and what SDFT keeps of other skills, in points.

    Of several learning rates the one with the best new types stands here, whoever's it is.
    """
    columns = [*SUMMARY, *(f"{COLUMNS[c]} − before" for c in KEPT)]
    lines = [f"| new types | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, best in chosen.items():
        numbers = [shown([cell["new"] for cell in best.get(method, {}).values()]) for method in SUMMARY]
        numbers += [shown(_paired(best, SUMMARY[-1], "untrained", c), signed=True) for c in KEPT]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def goals(chosen: Mapping[str, Rows]) -> str:
    """The same lines: how SDFT + retention differs from what a goal compares it with; in bold where it misses the goal."""
    lines = [f"| goal | {' | '.join(GOALS)} |", "|---" * (len(GOALS) + 1) + "|"]
    least = ("–" if least is None else f"{100 * least:+.0f}" for *_, least in GOALS.values())
    lines.append(f"| *at least* | {' | '.join('interval above 0' if x == '–' else x for x in least)} |")
    for name, best in chosen.items():
        sft = [best[method] for method in ("SFT", "SFT + retention") if method in best]
        rows = {**best, **({BEST_SFT: max(sft, key=_mean)} if sft else {})}
        numbers = []
        for skill, other, at_least in GOALS.values():
            values = _paired(rows, SUMMARY[-1], other, skill)
            text = shown(values, signed=True)
            clear = text.startswith("**+")
            missed = values and (not clear if at_least is None else sum(values) / len(values) < at_least)
            plain = text.strip("*")
            numbers.append(f"**{plain}**" if missed else plain)
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines) if len(lines) > 3 else ""


def by_variant(found: Mapping[str, Rows]) -> Iterator[tuple[str, Rows]]:
    """Each setting and variant that SDFT + retention was trained in: its rows by method, at their best rates for new types.

    A method that has no row of the variant stands there with its plain one.
    """
    for setting, variant in itertools.product(found, VARIANTS):
        rows, best = found[setting], Rows()
        for row in sorted(rows, key=lambda row: _mean(rows[row])):
            best[method_of(row)] = rows[row]
        if SUMMARY[-1] + variant in best:
            yield f"{setting}{variant}", {name: best.get(name + variant, cells) for name, cells in best.items()}


def _paired(rows: Rows, first: str, second: str, column: str) -> list[float]:
    """Differences of a column over the seeds that both rows have."""
    a, b = rows.get(first, {}), rows.get(second, {})
    return [
        cell[column] - b[seed][column] for seed, cell in a.items() if seed in b and column in cell and column in b[seed]
    ]


def _mean(cells: Mapping[int, Mapping[str, Any]]) -> float:
    return sum(cell["new"] for cell in cells.values()) / len(cells)


def method_of(row: str) -> str:
    """The method of a row that may name its learning rate."""
    return row.rpartition(", ")[0] or row


def means(rows: Rows) -> str:
    """One line a method: mean ± half of the 95 % interval over seeds."""
    columns = [c for c in COLUMNS if any(c in cell for cells in rows.values() for cell in cells.values())]
    lines = [f"| method, lr | seeds | {' | '.join(COLUMNS[c] for c in columns)} |", "|---" * (len(columns) + 2) + "|"]
    for method, cells in rows.items():
        numbers = [shown([cell[c] for cell in cells.values() if c in cell]) for c in columns]
        lines.append(f"| {method} | {len(cells)} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def differences(rows: Rows) -> str:
    """Paired differences over the seeds that both have; an interval without 0 is in bold."""
    columns = [c for c in COLUMNS if any(c in cell for cells in rows.values() for cell in cells.values())]
    lines = []
    for first, second in itertools.product(rows, rows):
        seeds = [s for s in rows[first] if s in rows[second]]
        if (method_of(first), method_of(second)) not in PAIRS or not seeds:
            continue
        numbers = [shown(_paired(rows, first, second, c), signed=True) for c in columns]
        lines.append(f"| {first} − {second} | {len(seeds)} | {' | '.join(numbers)} |")
    head = [f"| difference | seeds | {' | '.join(COLUMNS[c] for c in columns)} |", "|---" * (len(columns) + 2) + "|"]
    return "\n".join([*head, *lines]) if lines else ""
