"""`LLM` as its users know it from elsewhere: text in, text out, and one line about what is wrong."""
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import gramme
from gramme import LLM, SamplingParams
from gramme.kernels.ops import Step
from gramme.request import RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=12)
IDS = {"prompt_token_ids": [5, 6, 7]}


@pytest.fixture(scope="module")
def llm():
    made = LLM(kv_tokens=4096)
    yield made
    assert made.engine.stats().pages_used == 0 and not made.engine.busy and not made._open
    made.close()


def text(llm, prompt, **params):
    return llm.generate(prompt, SamplingParams(**{"temperature": 0, "max_tokens": 12} | params))[0].outputs[0]


def test_the_front_door_has_what_its_sign_says():
    for name in gramme.__all__:
        assert getattr(gramme, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such"):
        _ = gramme.no_such


@pytest.mark.parametrize("make", [lambda: LLM(no_such=1), lambda: SamplingParams(no_such=1),
                                  lambda: gramme.EngineConfig(no_such=1)])
def test_unknown_arguments_are_errors(make):
    with pytest.raises(TypeError, match="no_such"):
        make()


def test_prompts_may_be_one_or_many_text_or_ids(llm):
    ids = llm.tokenizer.encode("Once upon")
    one = llm.generate("Once upon", GREEDY)
    many = llm.generate(["Once upon", {"prompt_token_ids": ids}, "Il"], [GREEDY, GREEDY, replace(GREEDY, max_tokens=3)])
    assert len(one) == 1 and len(many) == 3
    assert one[0].outputs[0].text == many[0].outputs[0].text == many[1].outputs[0].text
    assert list(many[0].prompt_token_ids) == ids and many[0].prompt == "Once upon" and many[1].prompt is None
    assert [len(out.outputs[0].token_ids) for out in many] == [12, 12, 3]
    assert one[0].outputs[0].text == llm.tokenizer.decode(one[0].outputs[0].token_ids)


@pytest.mark.parametrize("prompt", [5, [1, 2], {"prompt": [1]}, {"prompt_token_ids": "12"}, {"prompt_token_ids": 5},
                                    {"prompt_token_ids": [1.5]}, {"prompt_token_ids": []}, [None], ""])
def test_a_prompt_that_is_none_is_refused(llm, prompt):
    with pytest.raises(RequestError):
        llm.generate(prompt, GREEDY)
    assert not llm.engine.busy


def test_defaults_are_16_tokens_for_completions_and_the_rest_of_the_context_for_chat(llm):
    ignore = SamplingParams(temperature=0, ignore_eos=True)
    assert len(llm.generate("Once", ignore)[0].outputs[0].token_ids) == 16
    out = llm.chat([{"role": "user", "content": "Translate to French: It rains."}], ignore)[0]
    assert len(out.prompt_token_ids) + len(out.outputs[0].token_ids) == 512
    assert out.outputs[0].finish_reason == "length"


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_and_harms_no_other(llm):
    with pytest.raises(RequestError, match=r"513 tokens.*512"):
        llm.generate([IDS, {"prompt_token_ids": [1] * 513}], GREEDY)
    assert not llm.engine.busy and llm.engine.stats().pages_used == 0
    with pytest.raises(RequestError, match="2 prompts and 1"):
        llm.generate([IDS, IDS], [GREEDY])


def test_eos_ends_an_answer_unless_it_is_ignored_and_any_of_several_ends_it(llm, monkeypatch):
    free = text(llm, "Once upon a time", ignore_eos=True)
    some = {free.token_ids[7], free.token_ids[9]}
    at = min(map(free.token_ids.index, some))
    monkeypatch.setattr(llm.engine, "_eos", frozenset(some))
    out = text(llm, "Once upon a time")
    assert (out.token_ids, out.finish_reason, out.stop_reason) == (free.token_ids[: at + 1], "stop", None)
    assert text(llm, "Once upon a time", ignore_eos=True).token_ids == free.token_ids
    assert not some & set(text(llm, "Once upon a time", min_tokens=10).token_ids[:10])
    other = next(t for t in free.token_ids if t not in some)
    out = text(llm, "Once upon a time", ignore_eos=True, stop_token_ids=[other])
    assert (out.token_ids, out.stop_reason) == (free.token_ids[: free.token_ids.index(other) + 1], other)


def test_a_stop_string_ends_an_answer_across_tokens(llm):
    free = text(llm, "Once upon a time", max_tokens=40)
    tokens = [llm.tokenizer.decode([t]) for t in free.token_ids]
    at = len("".join(tokens[:6]))
    stop = free.text[at - 2 : at + 2]
    first = free.text.find(stop)
    out = text(llm, "Once upon a time", max_tokens=40, stop=stop)
    assert (out.text, out.finish_reason, out.stop_reason) == (free.text[:first], "stop", stop)
    out = text(llm, "Once upon a time", max_tokens=40, stop=["never there", stop], include_stop_str_in_output=True)
    assert out.text == free.text[: first + len(stop)]


def test_samples_differ_seeds_repeat_and_asking_again_is_answered_anew(llm):
    params = SamplingParams(temperature=1, n=3, seed=7, max_tokens=12)
    out = [o.text for o in llm.generate("Once", params)[0].outputs]
    assert len(set(out)) == 3
    assert out == [o.text for o in llm.generate(["Le", "Once", "A"], params)[1].outputs]
    unseeded = [text(llm, "Once", temperature=1).text for _ in range(4)]
    assert len(set(unseeded)) == 4


def test_logprobs_are_given_for_every_token_and_every_prompt_token_but_the_first(llm):
    out = llm.generate("Once upon a time", replace(GREEDY, logprobs=3, prompt_logprobs=2))[0]
    scores = out.outputs[0].logprobs
    for token, found in zip(out.outputs[0].token_ids, scores, strict=True):
        assert found[token].rank == 1 and len(found) == 3
    assert out.outputs[0].cumulative_logprob == pytest.approx(sum(s[t].logprob for t, s in zip(
        out.outputs[0].token_ids, scores, strict=True)))
    assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(out.prompt_token_ids)
    for token, found in zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:], strict=True):
        assert token in found and 2 <= len(found) <= 3
    assert out.outputs[0].text == text(llm, "Once upon a time").text


def test_no_tokens_may_be_asked_for(llm):
    out = llm.generate("Once upon", SamplingParams(max_tokens=0, prompt_logprobs=0))[0]
    assert (out.outputs[0].token_ids, out.outputs[0].finish_reason) == ((), "length")
    assert len(out.prompt_logprobs) == len(out.prompt_token_ids)


def test_streams_add_up_and_may_be_read_in_turn_and_left(llm):
    params = replace(GREEDY, n=2, temperature=0.8, seed=3)
    whole = [[o.text for o in llm.generate(p, params)[0].outputs] for p in ("Once", "Il y a")]
    parts = [["", ""], ["", ""]]
    streams = [llm.stream("Once", params), llm.stream("Il y a", params)]
    third = llm.stream("Never read to its end", params)
    next(third)
    for _ in range(1000):
        for stream, heard in zip(streams, parts, strict=True):
            for index, delta, _ in [item for item in [next(stream, None)] if item]:
                heard[index] += delta
    third.close()
    assert parts == whole
    *_, (_, _, last) = llm.stream("Once", params)
    assert last.finished and [o.text for o in last.outputs] == whole[0]
    assert last.metrics.newest_ns >= last.metrics.stamps.sampled_ns > 0


@pytest.fixture
def interruptible():
    """As in a terminal: a process that was started in the background may ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_step_and_leaves_a_whole_engine(llm, monkeypatch):
    launch = llm.engine.runner.launch

    def interrupted(*args):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)
        return launch(*args)

    monkeypatch.setattr(llm.engine.runner, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("Once", GREEDY)
    assert not llm.engine.busy and llm.engine.stats().pages_used == 0
    assert len(text(llm, "Once").token_ids) == 12
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_the_pooled_hidden_state_of_the_prompt_alone(llm, pooling):
    prompts = ["Once upon a time", "Il pleut", "a"]
    for prompt, out in zip(prompts, llm.embed(prompts, pooling), strict=True):
        ids = llm.tokenizer.encode(prompt)
        states = hidden_states(llm, ids)
        wanted = states.mean(0) if pooling == "mean" else states[-1]
        # K and V of float16 may move a code of the integer activations by one; another pooling is off by half and more
        assert np.linalg.norm(out.embedding - wanted) < 0.03 * np.linalg.norm(wanted)
        assert list(out.prompt_token_ids) == ids


def hidden_states(llm, ids):
    """(T, D) without pages."""
    n, device, decoder = len(ids), llm.engine.runner.device, llm.engine.runner.decoder
    ints = lambda *values: device.put(np.array(values, np.int32))
    step = Step(ints(*ids), ints(*range(n)), ints(*range(n)), ints(0, n), ints(n), ints(0)[None], ints(), n, n)
    return device.get(decoder.normed(decoder.hidden(step, None)))


def test_a_score_is_the_cosine_of_mean_embeddings(llm):
    a, b, c = (np.array(e.embedding) for e in llm.embed(["Il pleut", "It rains", "Il pleut"]))
    cosine = lambda x, y: float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert llm.score("Il pleut", ["It rains", "Il pleut"]) == pytest.approx([cosine(a, b), cosine(a, c)], abs=1e-5)


def test_without_a_tokenizer_ids_go_in_and_come_out():
    llm = LLM("dummy:tiny", skip_tokenizer_init=True, kv_tokens=4096)
    out = llm.generate(IDS, GREEDY)[0].outputs[0]
    assert len(out.token_ids) == 12 and out.text == ""
    for call in (lambda: llm.generate("text"), lambda: llm.chat([{"role": "user", "content": "text"}])):
        with pytest.raises(RequestError, match="tokenizer"):
            call()


def test_progress_is_told_up_to_the_last_parameter():
    seen = []
    LLM(progress=lambda done, total: seen.append((done, total)), kv_tokens=1024).close()
    assert seen[-1][0] == seen[-1][1] and [d for d, _ in seen] == sorted({d for d, _ in seen})


def test_known_lengths_of_all_requests_bound_the_context_and_the_answer_stays_the_same():
    params = SamplingParams(max_tokens=8, temperature=0)
    whole, short, own = LLM(), LLM(most_tokens=64, max_num_seqs=1), LLM(most_tokens=64, max_model_len=80)
    try:
        want = whole.generate("Translate to French: Hello!", params)[0].outputs[0].text
        assert short.generate("Translate to French: Hello!", params)[0].outputs[0].text == want
        assert (short.engine.plan.max_model_len, own.engine.plan.max_model_len) == (64, 80)
        assert short.engine.plan.ledger.kv < whole.engine.plan.ledger.kv
        endless = LLM(most_tokens=10**9)
        assert endless.engine.plan.max_model_len == whole.engine.plan.max_model_len
        endless.close()
    finally:
        for llm in (whole, short, own):
            llm.close()
