"""Tools over HTTP with the real client: calls are whole or streamed alike, forced ones follow their schema."""
import asyncio
import json
import re

import jsonschema
import pytest

pytest.importorskip("openai")
pytest.importorskip("httpx2")
from canary import Served
from stub import Stub

WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
           "required": ["city", "unit"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": WEATHER}},
         {"type": "function", "function": {"name": "now", "parameters": {"additionalProperties": False}}}]
ASK = {"messages": [{"role": "user", "content": "hi"}]}
CALL = '{"name": "get_weather", "%s": {"city": "Paris é", "unit": "c"}}'
FORMS = {
    "hermes": ("{{ tools }} <tool_call> </think>", "I look.\n<tool_call>\n" + CALL % "arguments" + "\n</tool_call>"),
    "mistral": ("{{ tools }} [TOOL_CALLS]", "I look. [TOOL_CALLS] [" + CALL % "arguments" + "]"),
    "mistral v11": ("[TOOL_CALLS] [ARGS]", 'I look.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris é", "unit": "c"}'),
    "llama3": ("{{ tools }}", "I look. <|python_tag|>" + CALL % "parameters"),
}


def create(stub, **body):
    return asyncio.run(stub.chat(**ASK | body))


def streamed(stub, **body):
    """A stream's deltas put together as clients do: (content, reasoning, calls, finish reason)"""
    content, reasoning, calls, reason = "", "", {}, None
    for chunk in create(stub, **body, stream=True):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            if call.index not in calls:
                assert call.id and call.type == "function"
                calls[call.index] = [call.function.name, ""]
            calls[call.index][1] += call.function.arguments or ""
    return content, reasoning, list(calls.values()), reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [1, 4, 99])
def test_a_call_whole_and_streamed(form, step):
    template, text = FORMS[form]
    stub = Stub(template, text, step=step)
    [choice] = create(stub, tools=TOOLS).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris é", "unit": "c"}
    assert len(call.id) == (9 if "mistral" in form else 24) and call.id.isalnum()
    made = streamed(stub, tools=TOOLS)
    assert made == ("I look.", "", [["get_weather", call.function.arguments]], "tool_calls")


def test_the_template_sees_the_tools_and_past_calls_as_objects():
    stub = Stub(FORMS["hermes"][0], "ok")
    past = [{"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}]},
            {"role": "tool", "tool_call_id": "c", "content": "12:00"}]
    create(stub, messages=past, tools=TOOLS)
    [given] = stub.templates.given
    assert [t["function"]["name"] for t in given["tools"]] == ["get_weather", "now"]
    assert given["tools"][0]["function"]["parameters"] == WEATHER and "strict" not in given["tools"][0]["function"]
    assert given["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert given["messages"][1]["reasoning_content"] == given["messages"][1]["reasoning"] == "hm"


def test_without_tools_or_with_none_the_text_is_the_content():
    text = FORMS["hermes"][1]
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        stub = Stub(FORMS["hermes"][0], text)
        [choice] = create(stub, **more).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
        assert stub.templates.given[0]["tools"] is None


@pytest.mark.parametrize("text", [
    '<tool_call>{"name": "get_weather", "arguments": {]}</tool_call>', '<tool_call>{"name": "rm", "arguments": {}}',
    '<tool_call>{"name": "now", "arguments"'])
def test_malformed_calls_are_content(text):
    stub = Stub(FORMS["hermes"][0], text)
    [choice] = create(stub, tools=TOOLS).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
    assert streamed(stub, tools=TOOLS) == (text, "", [], "stop")


def test_no_parallel_calls_where_none_are_wanted():
    two = "<tool_call>" + CALL % "arguments" + '</tool_call><tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert len(create(Stub(FORMS["hermes"][0], two), tools=TOOLS).choices[0].message.tool_calls) == 2
    [choice] = create(Stub(FORMS["hermes"][0], two), tools=TOOLS, parallel_tool_calls=False).choices
    assert [c.function.name for c in choice.message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("prefix, text", [
    ("", "<think>\nhm</think>\n\nYes."), ("assistant: <think>\n", "hm\n</think>Yes.")])
@pytest.mark.parametrize("step", [1, 50])
def test_reasoning_stands_apart_under_both_names(prefix, text, step):
    stub = Stub(FORMS["hermes"][0], text, prefix=prefix, step=step)
    [choice] = create(stub).choices
    assert choice.message.content == "Yes."
    assert choice.message.reasoning == choice.message.reasoning_content == "hm"
    assert streamed(stub) == ("Yes.", "hm", [], "stop")


def strict(name):
    return [{**t, "function": {**t["function"], "strict": t["function"]["name"] == name}} for t in TOOLS]


BAD = [
    ({"tools": TOOLS * 65}, "tools"), ({"tools": TOOLS + TOOLS[:1]}, "tools"), ({"tools": [{"type": "code"}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"), ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs"),
    ({"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
     "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"$ref": "file:///x"}}}]},
     "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}],
      "tool_choice": "required"}, "tools"),
]


@pytest.mark.parametrize("body, param", BAD, ids=lambda x: str(x)[:60])
def test_bad_tools_are_refused_by_name_before_the_engine(body, param):
    stub = Stub(FORMS["hermes"][0], "ok")
    reply = asyncio.run(stub.post("/v1/chat/completions", ASK | body))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert not stub.engine.requests


def test_a_template_that_shows_no_tools_is_refused():
    reply = asyncio.run(Stub("{{ messages }}", "ok").post("/v1/chat/completions", ASK | {"tools": TOOLS}))
    assert reply.status_code == 400 and "shows no tools" in reply.json()["error"]["message"]


FLAT = [{"type": "function", **tool["function"], "strict": None} for tool in TOOLS]


def respond(stub, **body):
    return asyncio.run(stub.respond(**{"input": "hi", "tools": FLAT} | body))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [1, 99])
def test_responses_bring_calls_as_items_whole_and_streamed(form, step):
    template, text = FORMS[form]
    whole = respond(Stub(template, text, step=step))
    message, call = whole.output
    assert message.content[0].text == "I look." and (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments) == {"city": "Paris é", "unit": "c"} and whole.status == "completed"
    events = respond(Stub(template, text, step=step), stream=True)
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "I look."
    [done] = [e for e in events if e.type == "response.function_call_arguments.done"]
    added = [e.item for e in events if e.type == "response.output_item.added"]
    assert done.arguments == call.arguments and done.item_id == added[1].id and done.output_index == 1
    assert [(i.type, i.status) for i in events[-1].response.output] == [
        ("message", "completed"), ("function_call", "completed")]


def test_responses_show_the_template_past_calls_and_their_outputs():
    stub = Stub(FORMS["hermes"][0], "<think>hm</think>It is noon.")
    past = [{"role": "user", "content": "x"},
            {"type": "function_call", "call_id": "c1", "name": "now", "arguments": '{"a": 1}'},
            {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "12:00"}]
    reply = respond(stub, input=past)
    [given] = stub.templates.given
    assert [m["role"] for m in given["messages"]] == ["user", "assistant", "tool"]
    assert [c["function"]["arguments"] for c in given["messages"][1]["tool_calls"]] == [{"a": 1}, {}]
    assert [t["function"]["name"] for t in given["tools"]] == ["get_weather", "now"]
    assert [i.type for i in reply.output] == ["reasoning", "message"] and reply.output_text == "It is noon."
    assert reply.output[0].content[0].text == "hm"


# The real engine, whose random model says nothing sensible but under a grammar.

@pytest.fixture(scope="module", params=["hermes", "mistral v11"])
def served(request, tmp_path_factory):
    template = tmp_path_factory.mktemp("t") / "template.jinja"
    shown = FORMS[request.param][0].replace("{{ tools }}", "{{ tools | tojson }}")
    template.write_text(shown + "{% for m in messages %}{{ m.content }}{% endfor %}")
    with Served("dummy:tiny", "--max-model-len", "700", "--chat-template", str(template)) as s:
        yield s


def test_forced_calls_follow_their_schema(client):
    ask = {"model": "dummy:tiny", "messages": ASK["messages"], "tools": TOOLS, "max_tokens": 300, "seed": 5}
    named = {"type": "function", "function": {"name": "get_weather"}}
    whole = client.chat.completions.create(**ask, tool_choice=named, n=2)
    for choice in whole.choices:
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    chunks = [c.choices[0].delta for c in client.chat.completions.create(**ask, tool_choice=named, stream=True)]
    parts = [c.function.arguments for d in chunks for c in d.tool_calls or ()]
    assert "".join(parts) == whole.choices[0].message.tool_calls[0].function.arguments and len(parts) > 5
    many = client.chat.completions.create(**ask, tool_choice="required")
    assert many.choices[0].message.tool_calls and many.choices[0].finish_reason in ("tool_calls", "length")
    calls = many.choices[0].message.tool_calls
    for call in calls if many.choices[0].finish_reason == "tool_calls" else calls[:-1]:
        schema = next(t["function"]["parameters"] for t in TOOLS if t["function"]["name"] == call.function.name)
        jsonschema.validate(json.loads(call.function.arguments), schema)


ANSWER = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
    "type": "object", "properties": {"ok": {"enum": ["a/b", "c"]}}, "required": ["ok"], "additionalProperties": False}}}


@pytest.mark.parametrize("form, whole", [
    ({"response_format": ANSWER}, r'\s*{\s*"ok"\s*:\s*"(a/b|c)"\s*}\s*'),
    ({"structured_outputs": {"regex": r"a/b\n?[\/x]{2}"}}, "a/b\n?[/x]{2}"),
    ({"structured_outputs": {"choice": ["oui", "no\nn"]}}, "oui|no\nn"),
])
def test_an_answer_has_its_form_or_is_a_call(client, form, whole):
    body = {"messages": ASK["messages"], "tools": TOOLS, "max_tokens": 300, "n": 6, "seed": 2, "model": "dummy:tiny"}
    for choice in client.chat.completions.create(**body, extra_body=form).choices:
        calls = choice.message.tool_calls or ()
        assert calls or re.fullmatch(whole, choice.message.content)
        assert not calls or choice.finish_reason in ("tool_calls", "length")
        assert all(isinstance(json.loads(c.function.arguments), dict) for c in calls[:-1])


def test_strict_calls_that_may_come_follow_their_schema(client):
    """The random model says anything; what the grammar makes certain is that an opened call is one of the schema's."""
    reply = client.chat.completions.create(
        model="dummy:tiny", messages=ASK["messages"], tools=strict("get_weather"), max_tokens=40, n=3, seed=1,
        logit_bias={"94": 40})  # an opening brace
    for choice in reply.choices:
        for call in choice.message.tool_calls or ():
            assert call.function.name in ("get_weather", "now")
        assert choice.finish_reason in ("stop", "length", "tool_calls")
