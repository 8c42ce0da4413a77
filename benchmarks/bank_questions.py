"""Questions about a fictional bank's documents, made by templates; every answer stands in its document.

A fact is a line "- Label: value" whose value is a short number. It is kept where one product gives the label one value in
all of its documents. Training, validation and test ask for the same facts in other words: what is to be learnt is the
document. Out-of-distribution questions ask about two documents at once.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from zipfile import ZipFile

MEMBER = "tau2/data/domains/banking_knowledge/documents.json.gz"
#: Beginnings of a document's id that stand for products, and what the bank calls them.
PRODUCTS = {
    "business_checking_accounts": "business checking account",
    "business_credit_cards": "business credit card",
    "business_savings_accounts": "business savings account",
    "buy_now_pay_later": "pay-later plan",
    "checking_accounts": "checking account",
    "credit_cards": "credit card",
    "savings_accounts": "savings account",
}
FACT = re.compile(r"^ *[-*] +\**([A-Z][^:\n*]{5,60}?)\**:\** +([^\n]{1,40}?)\.?$", re.MULTILINE)
#: A label is a noun phrase, not a sentence, an instruction, a condition or another product.
NOT_A_LABEL = re.compile(
    r"^(if|with|when|after|there|no|confirm|review|receive|you|your|for|each|more|less|their|set|check|see|step|day|tier|note|"
    r"example|business|silver|gold|platinum|bronze|green|crypto|ecocard|diamond|start|end|between|up|same|first)\b|"
    r"\b(is|are|applies|overdrafts)\b",
    re.IGNORECASE,
)
VALUE = re.compile(r"^(up to |at least )?[$+]?\d[\d,.]*%?( (?!and\b|or\b|of\b)[a-z-]+){0,3}$")
WORDINGS = {
    "train": (
        "What is the {label} of the {product}?",
        "Tell me this about the {product}: {label}.",
        "A customer asks about the {label} of the {product}. What do you answer?",
    ),
    # A question, as the test's are: asked to "state" a value or "about" a product, a small model talks of other things, and
    # settings would be chosen on that.
    "validation": ("With the {product}, what is the {label}?",),
    "test": ("For the {product}, what is the {label}?", "What {label} does the {product} have?"),
}
STYLE = " Answer with the value only."


@dataclass(frozen=True)
class Fact:
    """One value that one document states about one product."""

    product: str
    label: str
    value: str
    document: str


def read_documents(wheel: ZipFile) -> list[dict[str, str]]:
    """The bank's documents: id, title, content."""
    member = next(n for n in wheel.namelist() if n.partition("/")[2] == MEMBER)
    return json.loads(gzip.decompress(wheel.read(member)))


def bank_facts(documents: list[dict[str, str]], longest: int) -> list[Fact]:
    """Facts of the documents of at most so many characters, one for each product and label, in the documents' order."""
    found: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for document in documents:
        product = product_of(document["id"])
        text = f"{document['title']}\n\n{document['content'].strip()}"
        for label, value in FACT.findall(document["content"]) if product else ():
            found[product, label.casefold()].append(Fact(product, label.strip(), value.strip(), text))
    unambiguous = [facts for facts in found.values() if len({fact.value for fact in facts}) == 1]
    short = [next((f for f in facts if len(f.document) <= longest), None) for facts in unambiguous]
    return [f for f in short if f and VALUE.match(f.value) and not NOT_A_LABEL.match(f.label)]


def product_of(document_id: str) -> str:
    """The product's name with its kind, or "" where a document is about no single product."""
    stem = document_id.removeprefix("doc_").rpartition("_")[0]
    kind = next((k for k in sorted(PRODUCTS, key=len, reverse=True) if stem.startswith(f"{k}_")), None)
    name = stem.removeprefix(f"{kind}_").replace("_", " ") if kind else ""
    if not kind or any(
        word in name for word in ("(general)", "management", "logistics", "replacements", "roles", "program")
    ):
        return ""
    name = re.sub(r" \(.*\)| (account|card)$", "", name).title()
    return f"Rho-Bank {name} {PRODUCTS[kind]}"


def bank_rows(facts: list[Fact]) -> dict[str, list[dict[str, Any]]]:
    """Rows by split: prompt, article, answer. Raises `AssertionError` where an answer does not stand in its article."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in WORDINGS}
    for number, fact in enumerate(facts):
        assert re.search(rf"{re.escape(fact.label)}\**:\** +{re.escape(fact.value)}", fact.document), fact
        for split, wordings in WORDINGS.items():
            for i, wording in enumerate(wordings):
                rows[split].append(
                    {
                        "id": f"{split} {number}.{i}",
                        "prompt": wording.format(label=lower(fact.label), product=fact.product) + STYLE,
                        "article": fact.document,
                        "answer": fact.value,
                    }
                )
    rows["ood"] = list(comparisons(facts))
    return rows


def comparisons(facts: list[Fact]) -> list[dict[str, Any]]:
    """Which of two products has the higher value, for labels that several products share with different plain numbers."""
    by_label: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_label[fact.label.casefold()].append(fact)
    rows: list[dict[str, Any]] = []
    for label, same in by_label.items():
        for a, b in combinations(same, 2):
            if number_of(a.value) is None or number_of(b.value) is None or number_of(a.value) == number_of(b.value):
                continue
            higher = a if number_of(a.value) > number_of(b.value) else b  # type: ignore[operator]
            rows.append(
                {
                    "id": f"ood {len(rows)}",
                    "prompt": f"Which has the higher {lower(label)}: the {a.product} or the {b.product}? Answer with one "
                    "of the two names only.",
                    "article": f"{a.document}\n\n{b.document}",
                    "answer": higher.product,
                    "distractors": [a.product if higher is b else b.product],
                }
            )
    return rows


def number_of(value: str) -> float | None:
    """The number of a value that is one amount or one percentage."""
    plain = re.fullmatch(r"[$+]?(\d[\d,]*(?:\.\d+)?)%?", value)
    return float(plain[1].replace(",", "")) if plain else None


def lower(label: str) -> str:
    """A label within a sentence: its first letter small, unless it begins an abbreviation."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
