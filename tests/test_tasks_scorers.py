"""Scorers of the text tasks: edge cases by hand, and every golden answer is right against itself."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.task_rows import ADAPTERS, GOLDS, ROWS, call, medical_test, science_test, tool_use, written
from tests.tiny_text import tiny_text_model
from tests.toy import toy_args
from text_sdft import SDFTTrainer, UserError
from text_sdft.answers import quantities, same, states, tagged
from text_sdft.experiments.scores import evaluate
from text_sdft.tasks.calls import parse_calls, parse_gold, right
from text_sdft.tasks.judges import EndpointJudge, exact_match
from text_sdft.tasks.knowledge import lenient, strict

# ---- every golden answer ----


@pytest.mark.parametrize("task", ADAPTERS)
def test_golden_answers_are_right_and_no_others(task):
    adapter = ADAPTERS[task]()
    examples = adapter.examples({"medical": lambda _: medical_test()}.get(task, ROWS[task])(""))
    for example in examples:
        assert adapter.score(example, adapter.answer_only(example)) == 1.0, example.id
        assert adapter.score(example, "") == 0.0, example.id
        different = [o for o in examples if adapter.answer_only(o) != adapter.answer_only(example)]
        if task != "tool_use":  # there {} and an empty input are the same call
            assert not any(adapter.score(example, adapter.answer_only(o)) for o in different)


def test_demonstrations_are_right_answers():
    for task in ("tool_use", "science"):
        adapter = ADAPTERS[task]()
        for example in adapter.examples(ROWS[task]("")):
            assert adapter.score(example, example.demonstrations[0].messages[-1]["content"]) == 1.0


# ---- tool calls ----


def score(answer: str, golden: list) -> bool:
    return right(parse_calls(answer), parse_gold(golden))


def test_calls_are_compared_as_a_multiset():
    one, two = call("rentBoat", {"harbour": "Oslo"}), call("rentBoat", {"harbour": "Bergen"})
    assert score(written(two) + "\n" + written(one), [one, two])
    assert not score(written(one), [one, two])
    assert not score(written(one) + "\n" + written(one), [one, two])
    assert not score("\n".join(map(written, [one, two, two])), [one, two])


def test_arguments_stay_with_their_call():
    """A scorer that merges all inputs into one mapping would call these equal."""
    golden = [call("a", {"x": 1}), call("b", {"y": 2})]
    assert not score(written(call("a", {"y": 2})) + "\n" + written(call("b", {"x": 1})), golden)
    assert not score(written(call("a", {"x": 1, "y": 2})) + "\n" + written(call("b", {})), golden)


def test_arguments_are_compared_by_content():
    for given, golden, expected in (
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, False),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}', True),
        ('{"a": 1, "a": 2}', '{"a": 2}', False),
        ({"a": "x}"}, {"a": "x}"}, True),
        ({"a": "x}"}, {"a": "x"}, False),
        ({"a": []}, {"a": {}}, False),
        ({"a": None}, {}, False),
    ):
        assert score(written(call("t", given)), [call("t", golden)]) is expected


def test_calls_are_found_in_free_text():
    for answer in (
        'Thought: I call it.\nAction: t\nAction Input: {"a": {"b": "}"}}\nThat is all.',
        'Action: t Action Input: {"a": {"b": "}"}}',
        'Action: `t`\nAction_Input: {"a": {"b": "}"}}',
        '**Action: t**\nAction Input: {\n  "a": {"b": "}"}\n}',
        'Action:t\n\nAction Input:{"a":{"b":"}"}}',
        'Action: t\nAction Input:\n{"a": {"b": "}"}}',
    ):
        assert score(answer, [call("t", {"a": {"b": "}"}})])


def test_what_is_no_call_is_wrong():
    for answer in [
        "",
        "t",
        "Action: t\nAction Input: [1]",
        "Action: t\nAction Input: {'a': 1}",
        'Action: t\nAction Input: {"a": 1',
    ]:
        assert not score(answer, [call("t", {"a": 1})])


def test_an_action_within_a_string_is_no_call():
    text = "first\nAction: u\nAction Input: {}"
    assert [c.action for c in parse_calls(written(call("t", {"a": text}))) or []] == ["t"]
    raw = 'Action: t\nAction Input: {"a": "first\nAction: u"}'  # a real line break within the string
    assert [c.action for c in parse_calls(raw) or []] == ["t"]


def test_a_call_without_input_has_no_arguments():
    assert score("Action: t", [call("t", "{}")])
    assert score("Action: t\nAction Input:\n", [call("t", "")])
    assert not score("Action: t", [call("t", {"a": 1})])


def test_an_input_that_is_given_is_never_read_as_no_arguments():
    for given in (
        'Action Input:\n{"x": 1}',
        '**Action Input:** {"x": 1}',
        '**Action Input**: {"x": 1}',
        'Action Input : {"x": 1}',
        'Thought: with x.\nAction Input: {"x": 1}',
        'Action Input: {}\nAction Input: {"x": 1}',
        'Action Input:\n```json\n{"x": 1}\n```',
        'Action Input: `{"x": 1}`',
    ):
        assert not score(f"Action: t\n{given}", [call("t", {})])
        assert not score(f"Action: t\n{given}\n{written(call('u', {}))}", [call("t", {}), call("u", {})])


def test_optional_calls_may_be_missing_but_no_other_may_take_their_place():
    golden = GOLDS[8]
    first, second = written(golden[0]), written({**golden[1], "Action": "setProfile"})
    assert score(first, golden) and score(second + "\n" + first, golden)
    assert not score(second, golden)
    assert not score(first + "\n" + first, golden)
    assert not score("", [golden[1]])


def test_accepted_values_are_right_and_only_they():
    golden = GOLDS[9]
    for arguments in ({"harbour": "oslo"}, {"harbour": "Oslo", "days": 1}):
        assert score(written(call("rentBoat", arguments)), golden)
    for arguments in ({"harbour": "Rome"}, {"harbour": "Oslo", "days": 2}, {"days": 1}, {"harbour": "Oslo", "x": 1}):
        assert not score(written(call("rentBoat", arguments)), golden)


def test_accepted_values_stand_beside_the_golden_ones():
    for given, expected in (
        ({"city": "NYC", "unit": "C"}, True),
        ({"city": "New York", "unit": "celsius"}, True),
        ({"city": "NYC"}, False),
        ({"city": "Rome", "unit": "C"}, False),
        ({"city": "NYC", "unit": "C", "days": 3}, True),
        ({"city": "NYC", "unit": "C", "days": 4}, False),
    ):
        accepted = json.dumps({"city": ["NYC"], "unit": ["celsius"], "days": [3]})
        assert (
            score(written(call("t", given)), [{**call("t", {"city": "New York", "unit": "C"}), "Accepted": accepted}])
            is expected
        )


def test_each_answer_takes_one_golden_call():
    """Greedy pairing would give the flexible golden call away first."""
    flexible = {**call("t", {"a": 1}), "Accepted": json.dumps({"a": [1, 2]})}
    answers = [written(call("t", {"a": 1})), written(call("t", {"a": 2}))]
    assert score("\n".join(answers), [flexible, call("t", {"a": 1})])
    assert score("\n".join(reversed(answers)), [flexible, call("t", {"a": 1})])
    assert not score("\n".join([answers[1]] * 2), [flexible, call("t", {"a": 1})])


# ---- words, numbers, tags ----


def test_words():
    assert same(" The  Sun. ", "the sun") and not same("sun", "suns")
    assert same("beta blocker", "Beta-blocker") and same("HER2+", "her2 +") and not same("HER2-", "HER2+")
    assert not same("5", "-5") and not same("> 5", "< 5") and not same("", "+") and not same("", "…")
    assert states("It is 17,500.00 dollars.", "17,500.00 dollars") and not states("It is 17,500.", "17,50")
    assert states("It is Gold Plus.", "gold") and not states("golden", "gold") and not states("anything", "")


def test_quantities():
    assert quantities("$1,500.00 at 2 %, or €3") == {("$", 1500.0), ("%", 2.0), ("€", 3.0)}
    assert quantities("no numbers") == set()


def test_the_last_tagged_answer_counts():
    for text, expected in (
        ("<answer>A</answer> no, <answer>\nB\n</answer>", "B"),
        ("<answer>A</answer> or <answer>B", "A"),
        ("<answer>A <answer>B</answer>", "B"),
        ("B", None),
        ("<answer></answer>", ""),
    ):
        assert tagged(text) == expected


def test_a_letter_is_exact():
    for answer, expected in (
        ("<answer>A</answer>", 1.0),
        ("<answer> A\n</answer>", 1.0),
        ("<answer>a</answer>", 0.0),
        ("<answer>A: x</answer>", 0.0),
        ("A", 0.0),
    ):
        adapter = ADAPTERS["science"]()
        assert adapter.score(adapter.examples(science_test())[0], answer) == expected


def test_strict_and_lenient():
    for answer, gold, is_strict, is_lenient in (
        ("The fee is $1,500.", "$1,500.00", True, True),
        ("The fee is 1500 dollars.", "$1,500.00", False, True),
        ("The fee is $1,500 or $2,000.", "$1,500.00", False, True),
        ("The fee is $1.5.", "$1,500.00", False, False),
        ("It is 3.", "3 per year", True, True),
        ("It is 30.", "3 per year", False, False),
        ("Oslo, of course.", "Oslo", True, True),
        ("", "Oslo", False, False),
        ("", "3", False, False),
        ("On 4 March 2025.", "4 May 2025", False, False),
        ("On May 4th, 2025.", "4 May 2025", True, True),
        ("In Sept. 2025, as it may.", "September 2025", True, True),
        ("$1.5 billion", "$1.5 million", False, False),
        ("It cost $1,500,000.", "$1.5 million", True, True),
        ("It cost $1.1m.", "$1,100,000", True, True),
        ("3.2M people", "3.2 million", True, True),
        ("3 m", "3 m", True, True),
        ("5 °C", "-5 °C", False, True),
        ("3-5 days, COVID-19", "3 to 5 and 19", True, True),
    ):
        assert (strict(answer, gold, []), lenient(answer, gold, [])) == (is_strict, is_lenient)


def test_distractors_must_not_be_stated():
    assert strict("The Gold Plus card.", "Gold Plus", ["Silver"])
    assert not strict("Gold Plus or Silver", "Gold Plus", ["Silver"])
    assert not lenient("Gold Plus or Silver", "Gold Plus", ["Silver"])


# ---- judges ----


@pytest.fixture
def endpoint():
    """A local OpenAI-compatible server that says yes where the answer to judge contains the correct one."""
    seen, busy = [], set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._reply({"data": [{"id": "judge-1"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            if len(seen) in busy:
                self.send_error(429)
                return
            text = body["messages"][0]["content"]
            reference = text.partition("Correct answer:\n")[2].partition("\n\n")[0]
            said = text.partition("Answer to judge:\n")[2].partition("\n\n")[0]
            verdict = "perhaps" if "unclear" in (said, reference) else "Yes." if reference in said else "No."
            end = "" if said == "cut" else f"</think>{verdict}"
            self._reply({"choices": [{"message": {"content": f"<think>yes or no? yes{end}"}}]})

        def _reply(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen, busy
    server.shutdown()
    server.server_close()


def test_an_endpoint_judges(endpoint, monkeypatch):
    url, seen, _ = endpoint
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = EndpointJudge(url, "judge-1", "JUDGE_KEY")
    judge.check()
    assert judge("What?", "Rest", "Rest, mostly.") == 1.0
    assert judge("What?", "Rest", "Surgery.") == 0.0
    path, key, body = seen[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "judge-1", 0)
    assert judge("What?", "Rest", "unclear") == 0.0
    assert len(judge.notes()) == 1
    assert judge("What?", "Rest", "cut") == 0.0, "a judge that was cut while it thought has not said yes"
    assert len(judge.notes()) == 1


def test_an_answer_that_a_judge_cannot_judge_counts_as_wrong_and_is_told(endpoint, tmp_path, caplog):
    """One odd reply among a thousand must not end an evaluation."""
    url, *_ = endpoint
    model, tokenizer = tiny_text_model()
    adapter = ADAPTERS["medical"](judge=EndpointJudge(url, "judge-1"))
    trainer = SDFTTrainer(model, toy_args(tmp_path), adapter=adapter, processing_class=tokenizer)
    rows = medical_test()
    examples = adapter.examples([{**row, "Ground-True Answer": "unclear"} for row in rows[:2]] + rows[2:])
    scores, _ = evaluate(trainer, {"new": examples}, False, 4, "before")
    assert scores["new"]["n"] == 4 and scores["new"]["accuracy"] == 0
    assert caplog.text.count("said neither yes nor no to 2 answers") == 1 and "perhaps" in caplog.text
    caplog.clear()
    evaluate(trainer, {"new": examples[2:]}, False, 4, "after")
    assert "neither yes nor no" not in caplog.text


def test_a_busy_endpoint_is_asked_again(endpoint):
    """An evaluation is long: one refusal among a thousand answers must not end it."""
    url, seen, busy = endpoint
    busy |= {1, 2}
    assert EndpointJudge(url, "judge-1", pauses=(0.0, 0.0))("What?", "Rest", "Rest.") == 1.0 and len(seen) == 3
    busy |= {4, 5}
    with pytest.raises(UserError, match="cannot be used: HTTP Error 429"):
        EndpointJudge(url, "judge-1", pauses=(0.0,))("What?", "Rest", "Rest.")


def test_an_endpoint_that_cannot_be_used_is_named(endpoint):
    url, *_ = endpoint
    with pytest.raises(UserError, match=r"has no model 'other'; it has judge-1"):
        EndpointJudge(url, "other").check()
    with pytest.raises(UserError, match=r"The judge at http://127.0.0.1:9/v1 cannot be used"):
        EndpointJudge("http://127.0.0.1:9/v1", "judge-1").check()


def test_the_medical_adapter_asks_its_judge(endpoint):
    url, seen, _ = endpoint
    medical = ADAPTERS["medical"]
    adapter = medical(judge=EndpointJudge(url, "judge-1"))
    example = adapter.examples(medical_test())[2]
    assert adapter.score(example, "Well: Rest 2, I think.") == 1.0
    assert "What helps case 2?" in seen[0][2]["messages"][0]["content"]
    assert medical().score(example, "Well: Rest 2, I think.") == 0.0
    assert medical().score(example, "I think: <answer>rest 2.</answer>") == 1.0
    assert medical().score(adapter.examples(ROWS["medical"](""))[0], "Rest") is None
    assert exact_match("?", "Rest", "rest") == 1.0


def test_unknown_columns_of_tool_rows_are_ignored():
    adapter = ADAPTERS["tool_use"]()
    rows = [{**row, "anything": 1} for row in tool_use()]
    assert len(adapter.examples(rows)) == len(rows)
