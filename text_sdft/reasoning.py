"""Answers of models that think aloud."""

from __future__ import annotations

import re


def without_reasoning(answer: str) -> str:
    """What an answer says once its thoughts have ended with </think>; nothing where it was cut within them.

    Chat templates of some models open the thoughts themselves, so that <think> need not stand in the answer.
    """
    return re.sub(r"<think>.*", "", answer.rpartition("</think>")[2], flags=re.DOTALL).strip()
