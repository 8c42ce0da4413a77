"""What a free answer states: words, numbers, tagged answers."""

from __future__ import annotations

import re

#: A number with its currency or percent sign.
QUANTITY = re.compile(r"([$€£]?)\s?(\d+(?:,\d{3})*(?:\.\d+)?)(\s?%)?")


def words(text: str) -> list[str]:
    """Words and numbers in small letters, punctuation left out ("17,500.00" is one word)."""
    return re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\W\d_]+|\d+", text.casefold())


def same(answer: str, reference: str) -> bool:
    """Whether both have the same words, letter case and punctuation aside."""
    return words(answer) == words(reference)


def states(answer: str, reference: str) -> bool:
    """Whether the reference's words stand in the answer, next to each other. An empty reference is stated by nothing."""
    said, wanted = words(answer), words(reference)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def quantities(text: str) -> set[tuple[str, float]]:
    """Numbers with their signs: "$1,500.00 at 2 %" gives {("$", 1500.0), ("%", 2.0)}."""
    return {(m[1] or (m[3] or "").strip(), float(m[2].replace(",", ""))) for m in QUANTITY.finditer(text)}


def tagged(text: str, tag: str = "answer") -> str | None:
    """The content of the last complete <tag>…</tag>, white space around it left out; None where there is none."""
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    return found[-1].strip() if found else None
