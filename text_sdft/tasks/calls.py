"""Tool calls in an answer, and whether they are the right ones.

A call is written as in ToolAlpaca: ``Action: NAME``, then ``Action Input: {JSON object}``. JSON is read by a JSON parser
from its first brace on, so nested objects and braces within strings are kept, and a key given twice stays given twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACTION = re.compile(r"\bAction:[ \t]*(?P<name>[^\n]*?)[ \t]*(?:\n|$|(?=\bAction[ _]Input:))")
OPTIONAL = "[Optional]"
#: On its action's line or below it; what begins like JSON, or quotes it, may stand on a line of its own.
INPUT = re.compile(r"\s*\bAction[ _]Input:(?:\s*(?=[{\[`\"])|[ \t]*)")
#: An input written or placed otherwise: unread, it must not count as no arguments.
UNREAD = re.compile(r"\bAction[ _]Input\W{0,4}:")

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Call:
    """A tool's name, and its arguments in the order of their names, with values that compare (see `comparable`)."""

    action: str
    arguments: Pairs


@dataclass(frozen=True)
class GoldCall:
    """A right call: its own arguments are right, and so are those that ``accepted`` allows.

    Attributes:
        accepted: argument -> further values that are right for it; the empty string stands for leaving it out.
        optional: the call may be left out (ToolAlpaca writes "[Optional]" before such an action's name).
    """

    call: Call
    accepted: Mapping[str, Sequence[Any]]
    optional: bool = False

    def allows(self, call: Call) -> bool:
        """Whether the call is this one, or differs in accepted values only."""
        if call == self.call:
            return True
        given, own = dict(call.arguments), dict(self.call.arguments)
        repeated = len(given) != len(call.arguments) or len(own) != len(self.call.arguments)
        if call.action != self.call.action or repeated:
            return False
        absent = object()
        return all(
            given.get(name, absent) == own.get(name, absent) or given.get(name, "") in self.accepted.get(name, ())
            for name in given.keys() | own.keys()
        )


def parse_calls(answer: str) -> list[Call] | None:
    """The calls of an answer in their order; None where one has an input that is no JSON object, or elsewhere."""
    calls: list[Call] = []
    position = 0
    while action := ACTION.search(answer, position):
        if calls and UNREAD.search(answer, position, action.start()):
            return None
        given = INPUT.match(answer, action.end())
        position = given.end() if given else action.end()
        arguments: Pairs = ()
        if given and answer[position : position + 1] not in ("", "\n"):
            try:
                (arguments, position) = DECODER.raw_decode(answer, position)
            except ValueError:
                return None
            if not isinstance(arguments, _Object):
                return None
        calls.append(Call(action["name"].removeprefix(OPTIONAL).strip("`* "), tuple(arguments)))
    return None if calls and UNREAD.search(answer, position) else calls


def parse_gold(golden: Any) -> list[GoldCall]:
    """The right calls of a row.

    They are [{"Action": name, "Action_Input": JSON text or object, optionally "Accepted": {argument: [values]}}]. Raises
    `ValueError` with what is wrong, as the end of a sentence.
    """
    if not isinstance(golden, list) or not golden:
        raise ValueError("must be a list of {'Action', 'Action_Input'}")
    calls = []
    for given in golden:
        if not isinstance(given, Mapping) or not isinstance(given.get("Action"), str) or not given["Action"].strip():
            raise ValueError("must be a list of {'Action', 'Action_Input'}")
        arguments = _object(given.get("Action_Input"), "'Action_Input'")
        accepted = _object(given.get("Accepted"), "'Accepted'")
        if not all(isinstance(values, tuple) and values[0] == "list" for _, values in accepted):
            raise ValueError("has an 'Accepted' whose values are not lists")
        name = given["Action"].strip()
        call = Call(name.removeprefix(OPTIONAL).strip(), arguments)
        calls.append(GoldCall(call, {key: values[1] for key, values in accepted}, name.startswith(OPTIONAL)))
    return calls


def right(calls: Sequence[Call] | None, gold: Sequence[GoldCall]) -> bool:
    """Whether the calls are the golden ones, each once, in any order; optional ones may be missing."""
    from scipy.sparse import csr_matrix  # here: scipy takes long to import, and a task's settings are read without it
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not calls:
        return False

    def matched(golden: Sequence[GoldCall]) -> int:
        """Size of the largest matching of the calls with golden ones."""
        allowed = csr_matrix([[int(g.allows(call)) for g in golden] for call in calls])
        return int((maximum_bipartite_matching(allowed, perm_type="column") >= 0).sum())

    required = [g for g in gold if not g.optional]
    # A matching that covers all calls, and one that covers all required ones: then one covers both.
    return matched(gold) == len(calls) and (not required or matched(required) == len(required))


def comparable(value: Any) -> Any:
    """A parsed JSON value that compares by content, numbers by value, and tells true from 1."""
    if isinstance(value, _Object):
        return ("object", tuple(value))
    if isinstance(value, list):
        return ("list", tuple(comparable(v) for v in value))
    return ("boolean", value) if isinstance(value, bool) else value


class _Object(tuple):  # type: ignore[type-arg]
    """Pairs of a JSON object, in the order of names; equal names keep their order."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Object:
    return _Object(sorted(((name, comparable(value)) for name, value in pairs), key=lambda pair: pair[0]))


#: Not strict: models put real line breaks into strings.
DECODER = json.JSONDecoder(object_pairs_hook=_pairs, strict=False)


def _object(given: Any, what: str) -> Pairs:
    """An object given as JSON text or as a mapping (data sets fill columns of a struct with None); nothing is {}."""
    if given is None or given == "":
        return ()
    text = given if isinstance(given, str) else json.dumps({k: v for k, v in dict(given).items() if v is not None})
    try:
        value = DECODER.decode(text.strip())
    except ValueError as error:
        raise ValueError(f"has an {what} that is not JSON ({error}): {text[:80]}") from error
    if not isinstance(value, _Object):
        raise ValueError(f"has an {what} that is not a JSON object: {text[:80]}")
    return tuple(value)
