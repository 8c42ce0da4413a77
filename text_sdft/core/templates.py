"""How demonstrations enter a prompt: as earlier chat turns, or quoted in one user turn.

A template is ``"turns"``, the name of a quoted template below, or a string of your own with these placeholders:

- ``{question}``: the query's last user turn (images stay where they are);
- ``{demonstrations}``: each demonstration as its question followed by its answer;
- ``{answers}``: the demonstrations' answers alone (the paper's form, where a demonstration answers the very same question);
- ``{privileged_context}``: the example's privileged context.

Student and teacher read the query through the same rendering; only what stands before or around it differs.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from text_sdft.core.data import Conversation, Demonstration, Message
from text_sdft.core.errors import UserError

#: Quoted templates by name. "paper" has the structure of arXiv 2601.19897, app. A: question, one expert answer, request.
#: Its last clause lengthens the answers of models that do not think aloud; "quoted" leaves it out and puts the stable
#: part first, so that prompts which share demonstrations share a prefix.
TEMPLATES = {
    "paper": (
        "{question}\n\nThis is an example for a response to the question:\n{answers}\n\n"
        "Now answer with a response of your own, including the thinking process."
    ),
    "quoted": "Examples of how an expert answered:\n\n{demonstrations}\n\n{question}",
    "context": "{privileged_context}\n\n{question}",
}
PLACEHOLDERS = ("question", "demonstrations", "answers", "privileged_context")

Part = dict[str, Any]


def check_template(template: str) -> None:
    """Raise `UserError` unless ``template`` is a known name or a string with known placeholders and ``{question}``."""
    if template == "turns" or template in TEMPLATES:
        return
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"Template {template!r}: {error}. Write {{{{ for a literal brace.") from error
    unknown = [name for name in fields if name not in PLACEHOLDERS]
    if unknown or "question" not in fields:
        problem = f"unknown placeholder {{{unknown[0]}}}" if unknown else "it lacks {question}"
        names, places = ", ".join(["turns", *TEMPLATES]), ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise UserError(f"Template {template!r}: {problem}. Use one of {names}, or a string with {places}.")


def render(
    query: Conversation,
    demonstrations: Sequence[Demonstration],
    privileged_context: str | Conversation | None = None,
    template: str = "turns",
) -> Conversation:
    """The query with its demonstrations and privileged context in front of it or around it.

    Args:
        query: messages ending in a user turn; a leading system message stays first.
        privileged_context: a string or messages. Under ``"turns"`` a string becomes the beginning of the last user
            turn, and messages become earlier turns; a quoted template quotes either.

    Returns new messages; with nothing to show, the query's own. Raises `UserError` where the template has no place for
    something that is given: nothing is dropped silently.
    """
    if not demonstrations and not privileged_context:
        return list(query)
    system = list(query[:1]) if query and query[0]["role"] == "system" else []
    history, last = query[len(system) : -1], query[-1]
    if template == "turns":
        turns = [message for demonstration in demonstrations for message in demonstration.messages]
        if isinstance(privileged_context, str):
            last = _message(last, [_text(privileged_context + "\n\n"), *_parts(last["content"])])
        elif privileged_context:
            turns = [*privileged_context, *turns]
        return [*system, *turns, *history, last]
    template = TEMPLATES.get(template, template)
    if demonstrations and not shows_demonstrations(template):
        raise UserError(f"Template {template!r} shows no demonstrations, but there are some: add {{demonstrations}}.")
    if privileged_context and "{privileged_context}" not in template:
        raise UserError(f"Template {template!r} shows no privileged context, but there is one: add {{privileged_context}}.")
    given = privileged_context or []
    context = [given] if isinstance(given, str) else [message["content"] for message in given]
    fillings = {
        "question": _parts(last["content"]),
        "demonstrations": _joined([_question_and_answer(d) for d in demonstrations]),
        "answers": _joined([_parts(d.messages[-1]["content"]) for d in demonstrations]),
        "privileged_context": _joined([_parts(content) for content in context]),
    }
    parts: list[Part] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(_text(literal))
        if name is not None:
            parts.extend(fillings[name])
    return [*system, *history, _message(last, parts)]


def shows_demonstrations(template: str) -> bool:
    """Whether a template has a place for demonstrations or their answers."""
    quoted = TEMPLATES.get(template, template)
    return template == "turns" or "{demonstrations}" in quoted or "{answers}" in quoted


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _parts(content: str | list[Part]) -> list[Part]:
    return [_text(content)] if isinstance(content, str) else list(content)


def _joined(blocks: Sequence[list[Part]]) -> list[Part]:
    """Blocks with a blank line between them."""
    return [part for i, block in enumerate(blocks) for part in ([_text("\n\n")] if i else []) + block]


def _question_and_answer(demonstration: Demonstration) -> list[Part]:
    parts = [part for message in demonstration.messages[:-1] for part in _parts(message["content"])]
    return [*parts, _text("\n"), *_parts(demonstration.messages[-1]["content"])]


def _message(like: Message, parts: Sequence[Part]) -> Message:
    """A message like the given one; neighbouring texts are merged, and text alone becomes a plain string."""
    merged: list[Part] = []
    for part in parts:
        if part["type"] == "text" and merged and merged[-1]["type"] == "text":
            merged[-1] = _text(merged[-1]["text"] + part["text"])
        elif part["type"] != "text" or part["text"]:
            merged.append(part)
    if len(merged) == 1 and merged[0]["type"] == "text":
        return {**like, "content": merged[0]["text"]}
    return {**like, "content": merged}
