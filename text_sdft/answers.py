"""How answers are compared, and what a free answer states: words, numbers, tagged answers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from text_sdft.core.chat import normalised, without_reasoning

#: A number with its minus, its currency or percent sign, and its scale.
QUANTITY = re.compile(
    r"(?P<minus>(?<![\w.,)%])[-−](?=[$€£]?\d))?(?P<currency>[$€£])?\s?(?P<number>\d+(?:,\d{3})*(?:\.\d+)?)"
    r"(?:(?P<percent>\s?%)|(?:\s?(?P<word>(?i:thousand|million|billion|trillion))|(?P<short>[kKMB]|bn|(?(currency)m|(?!))))\b)?"
)
SCALES = {"": 1, "k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9, "billion": 1e9, "trillion": 1e12}
#: A capitalised word beside a number: a month, perhaps.
BESIDE = re.compile(r"(?:(?<=\d\s)|(?<=\d(?:st|nd|rd|th)\s))([A-Z][a-z]+)|([A-Z][a-z]+)(?=\.?,?\s\d)")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MONTH = "month"
WORD = r"\d+(?:,\d{3})*(?:\.\d+)?|[^\W\d_]+|\d+"
SIGN = r"[+<>≤≥]|(?<!\w)[-−](?=\d)|(?<=\w)[-−](?!\w)"


def is_right(answer: str, reference: str, synonyms: Iterable[str] = ()) -> bool:
    """Whether a short answer, thoughts aside, is the reference or a synonym. Never "contains": "not a dax" is not "dax"."""
    said = normalised(without_reasoning(answer), name=True)
    return said in {normalised(word, name=True) for word in (reference, *synonyms)}


def words(text: str) -> list[str]:
    """Words and numbers in small letters, punctuation left out ("17,500.00" is one word)."""
    return re.findall(WORD, text.casefold())


def same(answer: str, reference: str) -> bool:
    """Whether both have the same words and signs (+, <, >, and - before a number or at a word's end), letter case and
    punctuation aside. Nothing is the same as a text without any.
    """
    said, wanted = (re.findall(f"{WORD}|{SIGN}", text.casefold()) for text in (answer, reference))
    return bool(wanted) and said == wanted


def states(answer: str, reference: str) -> bool:
    """Whether the reference's words stand in the answer, next to each other. An empty reference is stated by nothing."""
    said, wanted = words(answer), words(reference)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def quantities(text: str) -> set[tuple[str, float]]:
    """Numbers with their signs, and months beside numbers.

    "$1,500.00 at 2 % in May 2025" gives {("$", 1500.0), ("%", 2.0), ("month", 5.0), ("", 2025.0)}; "2 million" is 2000000.
    """
    found = set()
    for m in QUANTITY.finditer(text):
        number = float(m["number"].replace(",", "")) * SCALES[(m["word"] or m["short"] or "").casefold()]
        found.add((m["currency"] or (m["percent"] or "").strip(), round(-number if m["minus"] else number, 9)))
    beside = [m[1] or m[2] for m in BESIDE.finditer(text)]
    months = [i for i, name in enumerate(MONTHS, 1) for word in beside if len(word) > 2 and name.startswith(word)]
    return found | {(MONTH, float(i)) for i in months}


def tagged(text: str, tag: str = "answer") -> str | None:
    """The content of the last complete <tag>…</tag>, white space around it left out; None where there is none."""
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    return found[-1].strip() if found else None
