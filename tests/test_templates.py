"""How demonstrations enter a prompt: order, quoting, images in their places, and the query left as it is."""

from __future__ import annotations

import copy

import pytest

from text_sdft.core import Demonstration, UserError
from text_sdft.core.templates import TEMPLATES, check_template, render

SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
QUERY = [SYSTEM, *EARLIER, {"role": "user", "content": "What is 2 + 2?"}]


def demonstration(question, answer):
    return Demonstration([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def image(name):
    return {"type": "image", "image": name}


def text(words):
    return {"type": "text", "text": words}


SHOWN = [demonstration("1 + 1?", "two"), demonstration("1 + 2?", "three")]


def test_turns_stand_between_system_message_and_history():
    shown = [message for d in SHOWN for message in d.messages]
    assert render(QUERY, SHOWN) == [SYSTEM, *shown, *EARLIER, QUERY[-1]]


def test_quoted_demonstrations_stand_in_the_last_turn():
    last = "Examples of how an expert answered:\n\n1 + 1?\ntwo\n\n1 + 2?\nthree\n\nWhat is 2 + 2?"
    assert render(QUERY, SHOWN, template="quoted") == [SYSTEM, *EARLIER, {"role": "user", "content": last}]


def test_the_papers_template():
    rendered = render(QUERY[-1:], [demonstration("What is 2 + 2?", "It is four.")], template="paper")
    assert rendered[-1]["content"] == (
        "What is 2 + 2?\n\nThis is an example for a response to the question:\nIt is four.\n\n"
        "Now answer with a response of your own, including the thinking process."
    )


def test_a_privileged_string_begins_the_last_turn():
    for template in ["turns", "context"]:
        rendered = render(QUERY, [], "Count on your fingers.", template)
        assert rendered == [SYSTEM, *EARLIER, {"role": "user", "content": "Count on your fingers.\n\nWhat is 2 + 2?"}]


def test_privileged_messages_are_turns_or_are_quoted():
    context = [{"role": "user", "content": "Fact?"}, {"role": "assistant", "content": "2 + 2 = 4"}]
    assert render(QUERY, SHOWN[:1], context) == [SYSTEM, *context, *SHOWN[0].messages, *EARLIER, QUERY[-1]]
    assert render(QUERY[-1:], [], context, "context")[-1]["content"] == "Fact?\n\n2 + 2 = 4\n\nWhat is 2 + 2?"


def test_with_nothing_to_show_the_query_is_the_prompt():
    for template in ["turns", *TEMPLATES, "{question}!"]:
        assert render(QUERY, [], None, template) == QUERY


def test_the_arguments_stay_unchanged():
    for template in ["turns", *TEMPLATES]:
        query, shown = copy.deepcopy(QUERY), copy.deepcopy(SHOWN)
        given = (query, [], "Context.") if template == "context" else (query, shown, None)
        render(*given, template)[0]["role"] = "changed"
        assert query[1:] == QUERY[1:] and shown == SHOWN


def test_images_keep_their_places_in_a_quoted_template():
    shown = [demonstration([image("a"), text("What?")], "dax"), demonstration([image("b"), text("And?")], "wug")]
    query = [{"role": "user", "content": [image("q"), text("What is this?")]}]
    assert render(query, shown, template="quoted")[-1]["content"] == [
        text("Examples of how an expert answered:\n\n"),
        image("a"),
        text("What?\ndax\n\n"),
        image("b"),
        text("And?\nwug\n\n"),
        image("q"),
        text("What is this?"),
    ]


def test_images_stay_parts_among_turns_and_behind_a_privileged_string():
    query = [{"role": "user", "content": [image("q"), text("What is this?")]}]
    assert render(query, SHOWN)[-1] == query[-1]
    assert render(query, [], "A dax.")[-1]["content"] == [text("A dax.\n\n"), image("q"), text("What is this?")]


def test_a_template_of_ones_own():
    rendered = render(QUERY[-1:], SHOWN, "Count.", "{{{privileged_context}}} {answers} | {question}")
    assert rendered[-1]["content"] == "{Count.} two\n\nthree | What is 2 + 2?"


def test_braces_in_the_texts_are_left_alone():
    query = [{"role": "user", "content": "Fill {question} and {0}"}]
    assert render(query, [], "{x}", "context")[-1]["content"] == "{x}\n\nFill {question} and {0}"


def test_good_templates_are_accepted():
    for template in ["turns", *TEMPLATES, "{question}", "{{literal}} {demonstrations}{question}"]:
        check_template(template)


def test_bad_templates_are_refused_with_a_remedy():
    for template, message in (
        ("{demonstrations}", "lacks {question}"),
        ("turn", "lacks {question}"),
        ("{question} {exemples}", "unknown placeholder {exemples}"),
        ("{question} {}", "unknown placeholder {}"),
        ("{question", "literal brace"),
    ):
        with pytest.raises(UserError, match="Template") as raised:
            check_template(template)
        assert message in str(raised.value)


def test_nothing_is_dropped_silently():
    query = [{"role": "user", "content": "Who?"}]
    shown = [Demonstration([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])]
    with pytest.raises(UserError, match="no privileged context"):
        render(query, shown, "It is Bob.", "paper")
    with pytest.raises(UserError, match="no demonstrations"):
        render(query, shown, "It is Bob.", "context")
