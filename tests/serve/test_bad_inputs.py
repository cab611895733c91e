"""Bad inputs, each answered as the table says, and the canary after each. Sockets that misbehave are in test_guard."""
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from canary import SECRET

COMPLETE, CHAT, EMBED, TOKENIZE, DETOKENIZE = (
    "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize")
RESPOND, RERANK, SCORE = "/v1/responses", "/v1/rerank", "/v1/score"
LIMIT = 512
VOCAB = 4096
BIG = 1 << 20


def ask(**more):
    return {"prompt": [3, 4], "max_tokens": 2, **more}


def say(content="hello", **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def raw(text):
    return text if isinstance(text, bytes) else text.encode()


JSON = {
    "open brace": "{", "nothing": "", "null": "null", "a list": "[]", "a string": '"x"', "a number": "1",
    "100,000 brackets": "[" * 100_000, "5,000 objects": '{"a":' * 5000, "NaN": '{"prompt":"a","temperature":NaN}',
    "Infinity": '{"prompt":"a","temperature":Infinity}', "1e999": '{"prompt":"a","temperature":1e999}',
    "5,000 digits": '{"prompt":"a","seed":' + "9" * 5000 + "}", "half a pair": '{"prompt":"\\ud800"}',
    "no UTF-8": b'{"prompt":"\xff\xfe"}', "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
    "a mark first": b"\xef\xbb\xbf" + b'{"prompt":"a"}', "a key twice": '{"prompt":"a","n":1,"n":2}',
    "two objects": '{"prompt":"a"}{"prompt":"b"}', "a comma too much": '{"prompt":"a",}', "5,000 lists": json.dumps(
        {"prompt": "a", "x": "here"}).replace('"here"', "[" * 5000 + "]" * 5000),
    "single quotes": "{'prompt':'a'}", "a comment": '{"prompt":"a"} // x',
}
NUMBERS = {  # field: values that are refused
    "max_tokens": [0, -1, 1 << 31, 1 << 63, 1.5, "5", True, [1], {}],
    "temperature": [-0.1, 2.1, "hot", True, [0], 1e300], "top_p": [0, -1, 1.1, "x"], "top_k": [-2, 1 << 40, 1.5],
    "min_p": [-0.1, 1.1], "frequency_penalty": [3, -3], "presence_penalty": [2.5], "repetition_penalty": [0, -1, 1e30],
    "n": [0, -1, 129, 10**9, "2", True], "best_of": [0, 2, 10**6], "seed": [-(1 << 63) - 1, 1 << 64, "x", 1.5],
    "min_tokens": [-1, 5, 1 << 31], "logprobs": [-1, 21, VOCAB, "x"], "prompt_logprobs": [-1, 21, VOCAB],
    "priority": [1 << 63, -(1 << 63), "high"], "cache_salt": ["", "x" * 300, 5],
    "stop": [["a"] * 5, ["a"] * 500_000, "", "x" * BIG, [1], [["a"]], {"a": 1}],
    "stop_token_ids": [[1] * 100_000, [-1], [VOCAB], ["a"], 5],
    "logit_bias": [{str(i): 1 for i in range(100_000)}, {"abc": 1}, {"-1": 1}, {str(VOCAB): 1}, {str(1 << 31): 1},
                   {"5": 101}, {"5": "x"}, [1], {"1.5": 1}],
    "bad_words": [["a"] * 129, [""], ["x" * 1000], "word", [1]], "allowed_token_ids": [[], [-1], [VOCAB], ["a"]],
    "stream_options": [{"include_usage": True}, 5], "stream": ["yes", 1], "echo": ["yes"],
    "user": ["x" * BIG, 5, {}], "metadata": [{"a": "x" * BIG}, {"a": 5}, [1]], "ignore_eos": ["x"],
    "prompt_embeds": ["AAAA"], "suffix": ["x"], "chat_template": ["{{ 1 }}"], "use_beam_search": [True],
    "guided_json": ["{}"], "service_tier": ["flex"], "store": [True], "truncate_prompt_tokens": [1],
}
PROMPTS = ["", [], [[]], [""], None, [-1], [VOCAB], [1 << 31], [1.5], [1, "a"], [True], {"a": 1}, 5, [[1], 2], [[[1]]],
           ["a"] * 1025, [1] * (LIMIT + 1), [1] * LIMIT, [1] * (2 << 20), "\u0000" * 2000]
MESSAGES = [None, "string", [123], [{}], [{"role": 123}], [{"role": "user", "content": 123}], [{"content": "hello"}],
            [],
            [{"role": "user", "content": "a"}] * 4097, [{"role": "tool", "content": ""}] * 100_000,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
            [{"role": "user", "content": [{"type": "input_audio"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [5]}], {"role": "user"},
            [{"role": "user", "content": "x " * 5000}]]


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


CHATTING = [
    {"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"chat_template": "x"}},
    {"chat_template_kwargs": {"tokenize": True}}, {"chat_template_kwargs": {"messages": []}},
    {"chat_template_kwargs": {"tools": []}}, {"chat_template_kwargs": {f"k{i}": 1 for i in range(1000)}},
    {"chat_template_kwargs": {f"k{i}": 1 for i in range(100_000)}}, {"chat_template_kwargs": {"a": nested(200)}},
    {"chat_template_kwargs": {"a": [1]}}, {"chat_template_kwargs": 5}, {"top_logprobs": 21, "logprobs": True},
    {"top_logprobs": -1, "logprobs": True}, {"top_logprobs": 3}, {"logprobs": 5}, {"max_completion_tokens": 0},
    {"continue_final_message": True, "add_generation_prompt": True}, {"tool_choice": "required"},
    {"tools": [{"type": "function", "function": {"name": "a"}}] * 129}, {"tools": [{"type": "x"}]}, {"tools": "x"},
    {"tools": [{"type": "function", "function": {"name": "a\nb"}}]}, {"tools": [{"type": "function"}]},
    {"response_format": {"type": "sound"}}, {"response_format": {"type": "json_schema"}}, {"response_format": 5},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 123}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 123}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hiccup"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "file:///etc/passwd"}}}},
    {"structured_outputs": {"regex": "["}}, {"structured_outputs": {"regex": "(?:"}},
    {"structured_outputs": {"regex": "(" * 20_000}}, {"structured_outputs": {"grammar": "start: undefined"}},
    {"structured_outputs": {}}, {"structured_outputs": {"json": "{", "regex": "a"}},
    {"structured_outputs": {"choice": []}},
    *({"structured_outputs": {"regex": pattern}} for pattern in (
        "foo**", "^+[a-z]$", "^{2}x", "(?<=x)+", r"(a)\1", "a{1000000000}", "((a{1,1000}){1,1000}){1,1000}", "a{2,1}",
        "[z-a]", r"\p{Nonsense}", "(?<n>a)(?<n>b)", "a" * 16_385)),
    *({"structured_outputs": {"grammar": text}} for text in (
        "start: start", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000, "%llguidance {}",
        'root ::= "a"', 'start: %json {"$ref": "file:///etc/passwd"}', 'start: "a"{1000000000}')),
    *({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}} for schema in (
        nested(65), nested(200), [], {"enum": list(range(200_000))}, {"enum": []}, False,
        {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}, {"$ref": "#"}, {"$ref": "#/nowhere"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 10**9}, {"minimum": 5, "maximum": 3,
         "type": "integer"}, {"not": {"type": "string"}}, {"if": {}, "then": {}}, {"unevaluatedProperties": False},
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(8)]} for i in range(12)]},
        {"type": "string", "pattern": "foo**"}, {"patternProperties": {"^+a": {}}})),
    {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": nested(200)}}]},
    {"reasoning_effort": "high"}, {"web_search_options": {}}, {"audio": {}}, {"modalities": ["audio"]},
    {"prediction": {"type": "content", "content": "x"}}, {"functions": [{"name": "f"}]}, {"verbosity": "high"},
]
OTHERS = [
    (EMBED, {}), (EMBED, {"input": ""}), (EMBED, {"input": []}), (EMBED, {"input": [[]]}), (EMBED, {"input": [-1]}),
    (EMBED, {"input": "a", "encoding_format": "hex"}), (EMBED, {"input": "a", "dimensions": 7}),
    (EMBED, {"input": "a", "dimensions": 0}), (EMBED, {"input": {"a": 1}}), (EMBED, {"input": [1] * 600}),
    (TOKENIZE, {}), (TOKENIZE, {"prompt": "a", "messages": []}), (TOKENIZE, {"prompt": 5}),
    (TOKENIZE, {"messages": [{}]}),
    (DETOKENIZE, {}), (DETOKENIZE, {"tokens": [-1]}), (DETOKENIZE, {"tokens": [VOCAB]}), (DETOKENIZE, {"tokens": "a"}),
    (DETOKENIZE, {"tokens": [1.5]}), (RESPOND, {}), (RESPOND, {"input": []}), (RESPOND, {"input": [{"type": "image"}]}),
    (RESPOND, {"input": "a", "previous_response_id": "r"}), (RESPOND, {"input": "a", "background": True}),
    (RESPOND, {"input": "a", "max_output_tokens": 0}), (RESPOND, {"input": "a", "tools": [{"type": "web_search"}]}),
    (RESPOND, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    (RESPOND, {"input": [{"role": "wizard", "content": "a"}]}), (RESPOND, {"input": [{"type": "function_call"}]}),
    (RESPOND, {"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}),
    (RESPOND, {"input": "a", "tools": [{"type": "function"}]}), (RESPOND, {"input": "a", "tool_choice": "required"}),
    (RESPOND, {"input": "a", "tools": [{"type": "function", "name": "a"}] * 129}),
    (RESPOND, {"input": "a", "text": {"format": {"type": "x"}}}),
    (RERANK, {}), (RERANK, {"query": "a"}), (RERANK, {"query": "a", "documents": []}),
    (RERANK, {"query": "a", "documents": [5]}), (RERANK, {"query": "a", "documents": ["b"], "top_n": 0}),
    (RERANK, {"query": "", "documents": ["b"]}), (SCORE, {"text_1": "a"}),
    (SCORE, {"text_1": ["a", "b"], "text_2": ["c"]}),
    (SCORE, {"text_1": [], "text_2": "a"}),
]
CASES = (
    [(f"json: {name}", COMPLETE, raw(text), 400) for name, text in JSON.items()]
    + [(f"{name}={value!r:.30}", COMPLETE, ask(**{name: value}), 400) for name, values in NUMBERS.items()
       for value in values]
    + [(f"prompt={p!r:.30}", COMPLETE, ask(prompt=p), 400) for p in PROMPTS]
    + [(f"messages={m!r:.40}", CHAT, {"messages": m}, 400) for m in MESSAGES]
    + [(f"chat {more!r:.60}", CHAT, say(**more), 400) for more in CHATTING]
    + [(f"{path} {body!r:.40}", path, body, 400) for path, body in OTHERS]
    + [(f"model={m!r:.20}", COMPLETE, ask(model=m), status) for m, status in (
        ("other", 404), ("", 404), ("../../x", 404), ("x" * BIG, 400), (5, 400), ("a\r\nb\x1b[31m", 404))]
    + [("too many answers", COMPLETE, ask(prompt=[[3]] * 1024, n=2), 400)]
    + [("a body that is too large", COMPLETE, b" " * (8 * BIG + 1), 413)]
)
GOOD = {  # odd, and right
    "a body of 8 MB": (COMPLETE, b'{"prompt":[3],"max_tokens":1}' + b" " * (8 * BIG - 29)),
    "NUL in text": (COMPLETE, ask(prompt="a\u0000b")),
    "marks and flags": (COMPLETE, ask(prompt="\u200b\u202eab\U0001f468\u200d\U0001f469\u200d\U0001f467")),
    "control strings": (CHAT, say("<s>[INST]</s><|im_start|>system")),
    "a growing regex": (COMPLETE, ask(structured_outputs={"regex": "(a+)+$"}, max_tokens=300)),
    "a form that is cut": (CHAT, say(response_format={"type": "json_object"}, max_tokens=3)),
    "a form that must stop": (CHAT, say(structured_outputs={"regex": "[ab]{40}"}, max_tokens=60, stop=["a", "b"])),
    "every bias low": (COMPLETE, ask(logit_bias={str(i): -100 for i in range(1000)})),
    "a tiny temperature": (COMPLETE, ask(temperature=1e-320)), "room to spare": (COMPLETE, ask(max_tokens=10**6)),
    "the last token": (COMPLETE, ask(prompt=[1] * (LIMIT - 1))),
    "echo of 512": (COMPLETE, ask(prompt=[5] * LIMIT, max_tokens=0, echo=True, logprobs=1)),
    "unknown field": (COMPLETE, ask(colour="red\r\nx: y")), "a line break in user": (COMPLETE, ask(user="a\r\nb")),
    "an unknown role": (CHAT, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                            {"role": "user", "content": "c"}], "max_tokens": 1}),
    "the stop string is everything": (COMPLETE, ask(stop=["a", "e", " ", "t"])),
    "an integer temperature": (COMPLETE, ask(temperature=1)), "unsupported but off": (COMPLETE, ask(suffix="", n=1)),
}

ROLES = [  # the template's own rules decide: never a fault of ours
    ["wizard"], ["system"], ["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["tool"],
    ["user", "assistant", "tool"], ["user"] * 4096, ["user", "assistant", "system", "user"], [""], ["user\n"],
]


def send(served, path, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, reply = served.request("POST", path, data, {"content-type": "application/json"})
    return status, reply.decode()


@pytest.mark.parametrize("name, path, body, wanted", CASES,
                         ids=[name.encode("ascii", "replace").decode() for name, *_ in CASES])
def test_bad_input_is_refused_in_one_line_and_changes_nothing(served, canary, name, path, body, wanted):
    began_s = time.monotonic()
    status, reply = send(served, path, body)
    took_s = time.monotonic() - began_s
    assert status == wanted, reply[:300]
    error = json.loads(reply)["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(reply) < 1500 and "\n" not in error["message"]
    assert not SECRET.search(reply) and took_s < 10
    if isinstance(body, dict) and status == 400:
        assert error["param"] in body or "required field" in error["message"] or "give either" in error["message"]
    canary.check()


@pytest.mark.parametrize("field", sorted(NUMBERS.keys() - {"stream"}))
def test_streams_refuse_before_they_begin(served, canary, field):
    value = 5 if field == "stream_options" else NUMBERS[field][0]
    assert send(served, COMPLETE, ask(**{"stream": True, field: value}))[0] == 400
    if field != "echo":  # which a chat does not know
        assert send(served, CHAT, say(**{"stream": True, field: value}))[0] == 400
    canary.check()


@pytest.mark.parametrize("roles", ROLES, ids=lambda r: " ".join(r[:4]))
def test_roles_are_the_templates_matter(served, canary, roles):
    status, reply = send(served, CHAT, {"messages": [{"role": r, "content": "a"} for r in roles], "max_tokens": 1})
    assert status == 200 or (status == 400 and json.loads(reply)["error"]["param"] == "messages"), reply[:300]
    canary.check()


@pytest.mark.parametrize("name", GOOD)
def test_odd_input_is_served(served, canary, name):
    status, reply = send(served, *GOOD[name])
    assert status == 200, reply[:300]
    canary.check()


@pytest.mark.parametrize("text", ["a", " ", "\u0301", "<|im_start|>"])
def test_health_is_answered_while_megabytes_are_tokenised(served, canary, text):
    """/tokenize alone takes what no context holds, up to a bound of its own."""
    body = json.dumps({"prompt": text * (BIG // len(text))}, ensure_ascii=False).encode()
    with ThreadPoolExecutor(1) as pool:
        future, slowest_s = pool.submit(send, served, TOKENIZE, body), 0.0
        while not future.done():
            began_s = time.monotonic()
            assert served.get("/health/live")[0] == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert future.result()[0] == 200
    assert send(served, COMPLETE, ask(prompt=text * BIG))[0] in (400, 413)
    assert slowest_s < 10  # a hang limit; the latency is measured by bench/scale.py
    canary.check()
