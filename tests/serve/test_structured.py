"""response_format and structured_outputs over HTTP with the real client, app and engine."""
import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


def chat(client, **more):
    more = {"max_tokens": 200, "seed": 4} | more
    return client.chat.completions.create(model="dummy:tiny", messages=[{"role": "user", "content": "x"}], **more)


def test_a_schema_whole_and_streamed_with_several_samples(client):
    whole = chat(client, response_format=FORMAT, n=3)
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert len({c.message.content for c in whole.choices}) == 3
    texts = {}
    for chunk in chat(client, response_format=FORMAT, n=3, stream=True):
        for c in chunk.choices:
            texts[c.index] = texts.get(c.index, "") + (c.delta.content or "")
    assert texts == {c.index: c.message.content for c in whole.choices}


@pytest.mark.parametrize("form, pattern", [
    ({"regex": "[ab]{3,9}c"}, "[ab]{3,9}c"), ({"choice": ["oui", "non"]}, "oui|non"),
    ({"grammar": 'start: "<" start ">" | "x"'}, "<*x>*"), ({"json": {"enum": [1, "a"]}}, '1|"a"'),
    ({"json": '{"type": "boolean"}'}, "true|false"),
])
def test_structured_outputs(client, form, pattern):
    body = {"structured_outputs": form}
    reply = client.completions.create(model="dummy:tiny", prompt="x", max_tokens=60, seed=1, n=2, extra_body=body)
    for choice in [*reply.choices, chat(client, extra_body=body).choices[0]]:
        text = choice.text if hasattr(choice, "text") else choice.message.content
        assert re.fullmatch(pattern, text) if choice.finish_reason == "stop" else text


def test_any_object_and_a_stop_string(client):
    text = chat(client, response_format={"type": "json_object"}, temperature=0).choices[0].message.content
    assert text.startswith("{")
    cut = chat(client, response_format=FORMAT, stop=['"age"']).choices[0]
    assert cut.finish_reason == "stop" and cut.stop_reason == '"age"' and '"age"' not in cut.message.content


BAD = [
    ({"response_format": {"type": "sound"}}, "response_format"), ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "hiccup"}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/"}}}},
     "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}},
     "response_format"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"), ({"structured_outputs": {"xml": 1}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs"), ({"structured_outputs": []}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: <|nobody|>"}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "response_format"),
    ({"guided_json": SCHEMA}, "guided_json"),
]


@pytest.mark.parametrize("body, param", BAD, ids=lambda x: str(x)[:60])
def test_what_cannot_be_followed_is_400_and_never_free_text(base, client, body, param):
    ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    reply = httpx.post(base + "/v1/chat/completions", json=ask | body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert chat(client, max_tokens=2).choices


def test_many_clients_with_many_forms(client):
    """One compile for equal forms, unequal ones do not disturb each other, free requests run beside them."""
    def one(i):
        if i % 4 == 3:
            return chat(client, max_tokens=8, seed=i).choices[0].finish_reason is not None
        form = {"regex": f"[a-{chr(98 + i % 8)}]{{{1 + i % 5}}}"}
        choice = chat(client, seed=i, extra_body={"structured_outputs": form}).choices[0]
        return choice.finish_reason == "stop" and re.fullmatch(form["regex"], choice.message.content)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(48)))
