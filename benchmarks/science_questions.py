"""Multiple-choice science questions from BIG-bench's QASC task: a question, its right answer, three wrong ones and a fact.

The fact is the demonstration's reasoning. BIG-bench asks that its data stay out of training corpora: models trained on
these rows are for comparing methods, not for release.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
from pathlib import Path
from typing import Any

MEMBER = "natural_instructions/subtask042_qasc_incorrect_option_generation/task.json"
INPUT = re.compile(r"Fact: (?P<fact>.*?)\s*\nQuestion: (?P<question>.*?)\s*\nCorrect Answer: (?P<answer>.*)", re.DOTALL)
SYSTEM = (
    "Choose the right option. Reply in this form:\n<reasoning>\n…\n</reasoning>\n<answer>\n…\n</answer>\n"
    "Between the answer tags stands the option's letter alone."
)
SIZES = {"test": 300, "validation": 200, "train": 2000}


def science_rows(archive: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by split, in the paper's columns: training has messages and output_text, the others prompt, answer, output_text.

    Args:
        archive: the source archive of the PyPI package bigbench 1.0.0.
    """
    rng = random.Random(0)
    questions = {}
    for given in read(archive):
        parts = INPUT.fullmatch(given["input"].strip())
        wrong = list(dict.fromkeys(option.strip(" .") for option in given["target"]))
        if parts and len(wrong) == 3 and parts["answer"].strip(" .") not in wrong:
            questions[parts["question"].casefold()] = (parts, wrong)
    rows = [row(parts, wrong, rng) for parts, wrong in questions.values()]
    rng.shuffle(rows)
    splits, start = {}, 0
    for name, size in SIZES.items():
        splits[name], start = rows[start : start + size], start + size
    splits["train"] = [{"messages": r["prompt"], "output_text": r["output_text"]} for r in splits["train"]]
    return splits


def read(archive: Path) -> list[dict[str, Any]]:
    """The task's examples, read straight from the archive."""
    with tarfile.open(archive, "r|gz") as files:
        for member in files:
            file = files.extractfile(member) if member.name.endswith(MEMBER) else None
            if file:
                return json.loads(file.read())["examples"]
    raise SystemExit(f"{archive} holds no {MEMBER}: give the source archive of bigbench 1.0.0.")


def row(parts: re.Match[str], wrong: list[str], rng: random.Random) -> dict[str, Any]:
    """One question with its four options in a random order."""
    right = parts["answer"].strip(" .")
    options = [right, *wrong]
    rng.shuffle(options)
    letter = "ABCD"[options.index(right)]
    question = "\n".join([parts["question"].strip(), "", *(f"{a}: {o}" for a, o in zip("ABCD", options, strict=True))])
    return {
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "answer": letter,
        "output_text": f"<reasoning>\n{parts['fact'].strip()}\n</reasoning>\n<answer>\n{letter}\n</answer>",
    }
