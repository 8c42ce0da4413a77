"""Who decides whether a free answer means the same as the right one: a function, or a model behind an endpoint."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from text_sdft.answers import same, tagged, without_reasoning
from text_sdft.core.errors import UserError

#: What an endpoint is asked; our own words.
QUESTION = (
    "Question:\n{question}\n\nCorrect answer:\n{reference}\n\nAnswer to judge:\n{answer}\n\n"
    "Does the answer to judge come to the same conclusion as the correct answer? Reply with yes or no only."
)
#: HTTP codes of an endpoint that may answer when it is asked again.
BUSY = (408, 429, 500, 502, 503, 504)
#: (question, reference, answer) -> how right the answer is, in [0, 1].
Judge: TypeAlias = Callable[[str, str, str], float]


def exact_match(question: str, reference: str, answer: str) -> float:
    """1 where the answer (what its <answer> tags hold, if it has some) is the reference, as `same` compares; else 0."""
    return float(same(tagged(answer) or answer, reference))


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        url: up to and including the version, such as http://localhost:8000/v1.
        key_variable: the environment variable that holds the key; unset or empty, none is sent.
        timeout: seconds that one request may take.
        pauses: seconds before an answer is asked for again, where the endpoint was busy or did not reply.
        unclear: replies that said neither yes nor no, since `notes` was asked.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    pauses: tuple[float, ...] = (1.0, 5.0, 30.0)
    unclear: list[str] = field(default_factory=list, compare=False)

    def __call__(self, question: str, reference: str, answer: str) -> float:
        """1 where the model says yes, 0 where it says no, or neither. Raises `UserError` where it sends no answer."""
        content = QUESTION.format(question=question, reference=reference, answer=answer)
        request = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        reply = self._call("chat/completions", request)
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"The judge at {self.url} sent no answer: {str(reply)[:200]}") from error
        verdict = re.findall(r"\b(yes|no)\b", without_reasoning(str(text)).casefold())  # thoughts may name either word
        if not verdict:
            self.unclear.append(str(text)[:200])
        return float(verdict[-1:] == ["yes"])

    def notes(self) -> list[str]:
        """A sentence on replies that said neither yes nor no, since this was asked before."""
        replies = self.unclear.copy()
        self.unclear.clear()
        told = (
            f"The judge at {self.url} said neither yes nor no to {len(replies)} answers, which count as wrong (the last "
            f"time: {''.join(replies[-1:])!r}). If these are many, take another judge model."
        )
        return [told] if replies else []

    def check(self) -> None:
        """Ask for the endpoint's models. Raises `UserError` where it cannot be reached or does not know the model."""
        names = [str(entry.get("id")) for entry in self._call("models").get("data", [])]
        if names and self.model not in names:
            raise UserError(f"The judge at {self.url} has no model '{self.model}'; it has {', '.join(names[:10])}.")

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        key = os.environ.get(self.key_variable)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        pauses = iter(self.pauses if body is not None else ())
        while True:
            try:
                request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except (OSError, ValueError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in BUSY
                pause = None if refused else next(pauses, None)
                if pause is not None:
                    time.sleep(pause)
                    continue
                said = error.read().decode(errors="replace")[:200] if isinstance(error, urllib.error.HTTPError) else ""
                raise UserError(
                    f"The judge at {self.url} cannot be used: {error} {said}".rstrip()
                    + f". Start it, correct data.judge_url and ${self.key_variable}, or leave it out for exact match."
                ) from error
