"""The ledger of a time to first token over HTTP: exact for every kind of request, and /metrics says the same."""
import json

import pytest
from canary import ASK

from gramme.request import PARTS

FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["oui", "non"]}}}
CHAT = {"messages": [{"role": "user", "content": "bonjour"}], "max_tokens": 6, "seed": 1}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
KINDS = {
    "completion": (COMPLETIONS, ASK), "chat": (CHATS, CHAT), "grammar": (CHATS, CHAT | {"response_format": FORM}),
    "samples": (COMPLETIONS, ASK | {"n": 3}), "prompts": (COMPLETIONS, ASK | {"prompt": [[3, 4], [5, 6], [7]]}),
    "tools": (CHATS, CHAT | {"n": 2}), "scores": (COMPLETIONS, ASK | {"logprobs": 2, "prompt_logprobs": 1}),
    "response": ("/v1/responses", {"input": "bonjour", "max_output_tokens": 6}),
    "embeddings": ("/v1/embeddings", {"input": ["bonjour", "merci"]}),
}


def timings(served, path, body, stream):
    if not stream:
        status, reply = served.post(path, body | {"timings": True})
        assert status == 200, reply
        return reply["timings"]
    data = json.dumps(body | {"timings": True, "stream": True})
    status, _, reply = served.request("POST", path, data, {"content-type": "application/json"})
    assert status == 200, reply
    *_, last = (json.loads(line[line.index("data: ") + 6 :]) for line in reply.decode().split("\n\n") if "{" in line)
    return last.get("response", last)["timings"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_the_whole(served, kind, stream):
    path, body = KINDS[kind]
    if stream and kind == "embeddings":
        pytest.skip("embeddings come whole")
    if "prompt_logprobs" in body and stream:
        body = ASK | {"logprobs": 2}
    t = timings(served, path, body, stream)
    parts = t["ttft_parts_ns"]
    assert list(parts) == list(PARTS) and all(isinstance(ns, int) and ns >= 0 for ns in parts.values())
    assert sum(parts.values()) == t["ttft_ns"] == pytest.approx(t["prompt_ms"] * 1e6)
    assert parts["prefill"] > 0 and parts["parse"] > 0 and parts["flush"] > 0
    assert (parts["template"] > 0) == (path in (CHATS, "/v1/responses"))


def test_cached_tokens_are_told_beside_the_computed_ones(served):
    body = ASK | {"prompt": list(range(20, 120))}
    first, again = (timings(served, COMPLETIONS, body, stream) for stream in (False, True))
    assert (first["cache_n"], first["prompt_n"]) == (0, 100)
    assert (again["cache_n"], again["prompt_n"]) == (96, 4)


def test_a_form_that_was_never_seen_is_waited_for(served):
    form = {"structured_outputs": {"regex": "[a-z]{1,9}(x|y|never asked)"}}
    first, again = (timings(served, COMPLETIONS, ASK | form, True) for _ in range(2))
    assert first["ttft_parts_ns"]["grammar"] > 0 == again["ttft_parts_ns"]["grammar"]
    for t in (first, again):
        assert 0 < t["mask_ns"] < t["ttft_parts_ns"]["prefill"]
    assert timings(served, COMPLETIONS, ASK, True)["mask_ns"] == 0


def test_the_histograms_add_up_like_the_requests(served):
    total = lambda name: served.metric(f"{name}_seconds_sum")
    every = [f"request_{part}_time" for part in PARTS]
    before = {name: total(name) for name in [*every, "time_to_first_token"]}
    asked = [timings(served, *KINDS[kind], stream) for kind in ("chat", "completion") for stream in (False, True)]
    grown = {name: total(name) - before[name] for name in before}
    assert grown["time_to_first_token"] == pytest.approx(sum(t["ttft_ns"] for t in asked) / 1e9)
    assert sum(grown[name] for name in every) == pytest.approx(grown["time_to_first_token"])
    for part in PARTS:
        assert grown[f"request_{part}_time"] == pytest.approx(sum(t["ttft_parts_ns"][part] for t in asked) / 1e9)
