"""Laws of the server, with the real client, the real app and the real engine in its own process."""
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")


def complete(client, **more):
    return client.completions.create(model="dummy:tiny", prompt=[3, 4, 5], max_tokens=8, temperature=0, **more)


def test_streaming_brings_the_same_text_and_usage(client):
    whole = complete(client, extra_body={"ignore_eos": True})
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True},
                           extra_body={"ignore_eos": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8


def test_echo_scores_the_prompt_and_one_token(client):
    reply = client.completions.create(model="dummy:tiny", prompt=[[3, 4, 5], [6, 7]], max_tokens=1, logprobs=1,
                                      echo=True, temperature=0, seed=1234)
    assert [c.index for c in reply.choices] == [0, 1]
    for choice, size in zip(reply.choices, (4, 3)):
        scores = choice.logprobs
        assert len(scores.token_logprobs) == len(scores.top_logprobs) == size
        assert scores.token_logprobs[0] is None
        assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())


def test_embeddings_in_both_forms(client):
    a, b = (client.embeddings.create(model="dummy:tiny", input=[[3, 4, 5], [6]], encoding_format=f).data
            for f in ("float", "base64"))
    assert len(a) == 2
    assert a[0].embedding == pytest.approx(list(_floats(b[0].embedding)))


def _floats(text):
    import base64
    import struct
    raw = base64.b64decode(text)
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def metric(base, name):
    lines = httpx.get(base + "/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith(f"gramme:{name}{{")).split()[-1])


def leave_early(url, body):
    with pytest.raises(httpx.TimeoutException):
        httpx.post(url, json=body, timeout=httpx.Timeout(5, read=0.005))


def leave_after_one_line(url, body):
    with httpx.stream("POST", url, json=body | {"stream": True}) as reply:
        next(reply.iter_lines())


@pytest.mark.parametrize("leave", [leave_early, leave_after_one_line])
def test_a_client_that_leaves_ends_its_request(base, leave):
    before = now = metric(base, "generation_tokens_total")
    body = {"prompt": [3, 4], "max_tokens": 250, "ignore_eos": True, "n": 8}
    leave(base + "/v1/completions", body)
    for _ in range(50):
        time.sleep(0.2)
        last, now = now, metric(base, "generation_tokens_total")
        if now == last and metric(base, "num_requests_running") == 0:
            break
    assert now - before < 8 * 250


def test_many_streams_bring_what_each_brings_alone(client):
    def text(i):
        chunks = client.completions.create(
            model="dummy:tiny", prompt=list(range(3, 4 + 5 * i)), max_tokens=12, stream=True, seed=i,
            temperature=float(i % 2), extra_body={"ignore_eos": True})
        return "".join(c.choices[0].text for c in chunks)

    alone = [text(i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(text, range(32))) == alone


def test_a_stop_string_ends_text_and_stream_alike(client):
    free = complete(client, extra_body={"ignore_eos": True}).choices[0].text
    stop = free[len(free) // 2 :][:2]
    whole = complete(client, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    chunks = complete(client, stop=[stop], stream=True, extra_body={"ignore_eos": True})
    assert whole.text == free[: free.index(stop)] and whole.finish_reason == "stop" and whole.stop_reason == stop
    assert "".join(c.choices[0].text for c in chunks) == whole.text


def test_chat_streams_the_role_first_and_the_same_text(client):
    ask = {"model": "dummy:tiny", "messages": [{"role": "user", "content": "bonjour"}], "max_tokens": 8,
           "temperature": 0}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens


def test_tokens_go_there_and_back(base):
    ids = httpx.post(base + "/tokenize", json={"prompt": "héllo", "add_special_tokens": False}).json()
    assert ids["count"] == len(ids["tokens"]) == len(ids["token_strs"])
    assert httpx.post(base + "/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "héllo"}
    assert "eos_token" in httpx.get(base + "/tokenizer_info").json()


def test_the_one_model_is_listed_and_unknown_fields_are_named(base, client):
    assert [m.id for m in client.models.list()] == ["dummy:tiny"] and client.models.retrieve("dummy:tiny").id
    reply = httpx.post(base + "/v1/completions", json={"prompt": [3], "max_tokens": 1, "colour": "red"})
    assert "colour" in reply.headers["warnings"]
    assert httpx.post(base + "/v1/completions", content=b"a=1").status_code == 415
    assert set(httpx.get(base + "/nowhere").json()["error"]) == {"message", "type", "param", "code"}


def test_null_means_absent(base):
    body = {"prompt": [3], "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    plain = httpx.post(base + "/v1/completions", json=body).json()
    nulls = dict.fromkeys(("n", "stop", "seed", "logprobs", "stream", "tools", "cache_salt", "echo", "suffix"))
    assert httpx.post(base + "/v1/completions", json=body | nulls).json()["choices"] == plain["choices"]


def test_tokens_and_times_come_when_asked_for(base):
    ask = {"prompt": [3, 4], "max_tokens": 5, "ignore_eos": True, "return_token_ids": True, "timings": True}
    reply = httpx.post(base + "/v1/completions", json=ask).json()
    assert len(reply["choices"][0]["token_ids"]) == 5 and reply["choices"][0]["prompt_token_ids"] == [3, 4]
    assert reply["timings"]["predicted_n"] == 5 and reply["timings"]["prompt_ms"] > 0
    assert "timings" not in httpx.post(base + "/v1/completions", json=ask | {"timings": False}).json()


def test_prompt_scores_come_in_vllms_form(base):
    ask = {"prompt": [3, 4, 5], "max_tokens": 1, "prompt_logprobs": 2}
    scores = httpx.post(base + "/v1/completions", json=ask).json()["choices"][0]["prompt_logprobs"]
    assert scores[0] is None and "5" in scores[2] and scores[2]["5"]["rank"] >= 1


def test_metrics_have_vllms_names(base):
    text = httpx.get(base + "/metrics").text
    for name in ("num_requests_running", "kv_cache_usage_perc", "prompt_tokens_total", "num_preemptions_total",
                 "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
                 "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket", "request_success_total"):
        assert f"\ngramme:{name}{{" in text, name
