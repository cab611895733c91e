"""The JSON of OpenAI's answers. A reply is fed a job's updates and says events, or says all at the end. Knows no HTTP.

A Reply has `begin`, `chunk` and `end`, the objects of a stream in order, and `whole`, the answer in one piece.
"""
import base64
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from uuid import uuid4

from gramme.llm.assembly import Assembly
from gramme.request import Logprobs, Update
from gramme.serve.answer import Answer
from gramme.serve.job import Job
from gramme.serve.openai import ChatCompletion, Completion, Sampled
from gramme.text.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # JSON has no infinity

Json = dict[str, Any]


class Reply(Protocol):
    def begin(self) -> Iterator[Json]: ...
    def chunk(self, which: int, update: Update, text: str) -> Iterator[Json]: ...
    def end(self) -> Iterator[Json]: ...
    def whole(self) -> Json: ...


class CompletionReply:
    """/v1/completions. With `echo` the prompt comes back before the answer, in text and in scores."""

    def __init__(self, job: Job, body: Completion, model: str, tokenizer: Tokenizer):
        self._job, self._body, self._tokenizer = job, body, tokenizer
        self._head = {"id": "cmpl-" + uuid4().hex, "object": "text_completion", "created": job.created, "model": model,
                      "system_fingerprint": job.fingerprint}

    def begin(self) -> Iterator[Json]:
        return iter(())

    def chunk(self, which: int, update: Update, text: str) -> Iterator[Json]:
        if text or update.finish_reason or update.logprobs or self._body.return_token_ids:
            pairs = list(zip(update.token_ids, update.logprobs or ()))
            choice = {"index": which * self._job.params.n + update.index, "text": text,
                      "finish_reason": update.finish_reason, "stop_reason": update.stop_reason,
                      "logprobs": self._scores(pairs) if update.logprobs else None}
            yield self._head | {"choices": [choice | _token_ids(self._body, update.token_ids)]} | _no_usage(self._body)

    def end(self) -> Iterator[Json]:
        yield from _last(self._body, self._job, self._head)

    def whole(self) -> Json:
        n = self._job.params.n
        choices = [self._choice(which, i) for which in range(len(self._job.assemblies)) for i in range(n)]
        return self._head | {"choices": choices, "usage": self._job.usage()} | _timings(self._body, self._job)

    def _choice(self, which: int, i: int) -> Json:
        a = self._job.assemblies[which]
        pairs, text = list(zip(a.tokens[i], a.logprobs[i])), a.texts[i]
        if self._body.echo:
            ids = a.request.prompt_token_ids
            pairs = list(zip(ids, a.prompt_logprobs or ())) + pairs
            text = self._tokenizer.decode(ids) + text
        scores = self._scores(pairs) if self._job.params.logprobs is not None else None
        choice = {"index": which * self._job.params.n + i, "text": text, "logprobs": scores,
                  "finish_reason": a.reasons[i], "stop_reason": a.stops[i]}
        return choice | _token_ids(self._body, a.tokens[i], a) | _prompt_scores(self._body, a, self._tokenizer)

    def _scores(self, pairs: Sequence[tuple[int, Logprobs | None]]) -> Json:
        """The completions form: lists by token. A prompt's first token has no score."""
        names = [token_name(self._tokenizer, t) for t, _ in pairs]
        offsets, at = [], 0
        for name in names:
            offsets.append(at)
            at += len(name)
        return {"tokens": names, "text_offset": offsets,
                "token_logprobs": [None if s is None else finite(s[t].logprob) for t, s in pairs],
                "top_logprobs": [None if s is None else self._top(s) for _, s in pairs]}

    def _top(self, scores: Logprobs) -> dict[str, float]:
        worst_first = sorted(scores.items(), key=lambda item: item[1].logprob)
        return {token_name(self._tokenizer, t): finite(s.logprob) for t, s in worst_first}


class ChatReply:
    """/v1/chat/completions. `reader` makes what takes a sample's text apart."""

    def __init__(self, job: Job, body: ChatCompletion, model: str, tokenizer: Tokenizer, reader: Callable[[], Answer]):
        self._job, self._body, self._tokenizer = job, body, tokenizer
        self._answers = [reader() for _ in range(job.params.n)]
        self._head = {"id": "chatcmpl-" + uuid4().hex, "created": job.created, "model": model,
                      "system_fingerprint": job.fingerprint}

    def begin(self) -> Iterator[Json]:
        for i in range(self._job.params.n):
            yield self._event({"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def chunk(self, which: int, update: Update, text: str) -> Iterator[Json]:
        answer = self._answers[update.index]
        delta = answer.delta(text, last=update.finish_reason is not None)
        if delta or update.finish_reason or update.logprobs or self._body.return_token_ids:
            pairs = list(zip(update.token_ids, update.logprobs or ()))
            scores = {"content": self._scores(pairs)} if update.logprobs else None
            choice = {"index": update.index, "delta": delta, "logprobs": scores,
                      "finish_reason": answer.reason(update.finish_reason), "stop_reason": update.stop_reason}
            yield self._event(choice | _token_ids(self._body, update.token_ids))

    def end(self) -> Iterator[Json]:
        yield from _last(self._body, self._job, self._head | {"object": "chat.completion.chunk"})

    def whole(self) -> Json:
        [a] = self._job.assemblies
        choices = [self._choice(i) for i in range(self._job.params.n)]
        head = self._head | {"object": "chat.completion", "choices": choices, "usage": self._job.usage()}
        return head | _timings(self._body, self._job) | _prompt_scores(self._body, a, self._tokenizer)

    def _event(self, choice: Json) -> Json:
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | _no_usage(self._body)

    def _choice(self, i: int) -> Json:
        [a] = self._job.assemblies
        scores = {"content": self._scores(list(zip(a.tokens[i], a.logprobs[i])))} if self._body.logprobs else None
        message = self._answers[i].message(a.texts[i])
        choice = {"index": i, "message": message, "logprobs": scores,
                  "finish_reason": self._answers[i].reason(a.reasons[i]), "stop_reason": a.stops[i]}
        return choice | _token_ids(self._body, a.tokens[i], a)

    def _scores(self, pairs: Sequence[tuple[int, Logprobs]]) -> list[Json]:
        ranked = lambda scores: sorted(scores.items(), key=lambda item: item[1].rank)
        return [self._entry(t, s[t].logprob) | {"top_logprobs": [self._entry(o, x.logprob) for o, x in ranked(s)]}
                for t, s in pairs]

    def _entry(self, token: int, logprob: float) -> Json:
        return {"token": token_name(self._tokenizer, token), "logprob": finite(logprob),
                "bytes": list(self._tokenizer.token_bytes(token))}


def _no_usage(body: Sampled) -> Json:
    """Chunks of a stream that will end with usage say that they have none."""
    return {"usage": None} if body.stream_options and body.stream_options.include_usage else {}


def _last(body: Sampled, job: Job, head: Json) -> Iterator[Json]:
    """The chunk without choices that ends a stream, if usage or timings were asked for."""
    usage = {"usage": job.usage()} if _no_usage(body) else {}
    if last := usage | _timings(body, job):
        yield head | {"choices": []} | last


def _timings(body: Sampled, job: Job) -> Json:
    return {"timings": job.timings()} if body.timings else {}


def _token_ids(body: Sampled, ids: Sequence[int], whole: Assembly | None = None) -> Json:
    if not body.return_token_ids:
        return {}
    return {"token_ids": list(ids)} | ({"prompt_token_ids": list(whole.request.prompt_token_ids)} if whole else {})


def _prompt_scores(body: Sampled, a: Assembly, tokenizer: Tokenizer) -> Json:
    """vLLM's form: None for the first token, then {token id: {logprob, rank, decoded_token}}."""
    if body.prompt_logprobs is None or a.prompt_logprobs is None:
        return {}
    entry = lambda t, s: {"logprob": finite(s.logprob), "rank": s.rank, "decoded_token": token_name(tokenizer, t)}
    return {"prompt_logprobs": [None if scores is None else {str(t): entry(t, s) for t, s in scores.items()}
                                for scores in a.prompt_logprobs]}


def embedding_list(vectors: Sequence[Sequence[float]], form: str, model: str, tokens: int) -> Json:
    """`form`: "float", or "base64" of little-endian float32."""
    pack = lambda v: base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode()
    data = [{"object": "embedding", "index": i, "embedding": list(v) if form == "float" else pack(v)}
            for i, v in enumerate(vectors)]
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def model_card(model: str, created: int, max_model_len: int | None) -> Json:
    return {"id": model, "object": "model", "created": created, "owned_by": "gramme", "max_model_len": max_model_len,
            "root": model, "parent": None}


def token_name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def finite(x: float) -> float:
    return max(x, LEAST_LOGPROB)
