"""The engine: requests in, updates out, one step at a time. `Engine` speaks token ids, `LLM` speaks text.

Knows no HTTP and no kernel. The path of a request through this file: Engine.add -> Scheduler.schedule -> Runner.launch
-> Runner.collect -> Scheduler.commit -> Update; LLM tokenises before it and detokenises after it.
"""
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from typing import Any

import numpy as np

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig, Plan
from gramme.core.batch import Batch
from gramme.core.pages import PagePool
from gramme.core.scheduler import Event, Scheduler
from gramme.core.sequence import Sequence as TokenSequence
from gramme.kernels.load import backend
from gramme.models.load import build
from gramme.models.open import Opened, open_model
from gramme.plan.hardware import this_machine
from gramme.plan.planner import plan
from gramme.request import (
    CompletionOutput,
    EmbeddingOutput,
    EngineStats,
    FinishReason,
    Logprobs,
    Pooling,
    Request,
    RequestError,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    Update,
)
from gramme.runtime.runner import Launched, RowResult, Runner
from gramme.runtime.sampler import Chooser
from gramme.text.chat import Chat, open_chat
from gramme.text.detokenizer import Detokenizer
from gramme.text.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Mapping[str, Sequence[int]]  # text, or {"prompt_token_ids": [...]}


@dataclass(eq=False)
class Live:
    """What the engine keeps for one sequence of a request until it has ended."""

    request: Request
    seq: TokenSequence
    chooser: Chooser
    prompt_logprobs: list[Logprobs | None] | None = None  # grows while the prompt runs; None: not asked or delivered
    pooled: np.ndarray | None = None


class Engine:
    """Scheduler and runner under one roof. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, model: ModelConfig, decided: Plan, defaults: GenerationDefaults, runner: Runner):
        self.model, self.plan, self.defaults, self.runner = model, decided, defaults, runner
        pool = PagePool(decided.pages, decided.page_size)
        self.scheduler = Scheduler(pool, decided.max_rows, decided.max_batch_tokens,
                                   prefix_caching=decided.prefix_caching)
        self._pool = pool
        self._eos = frozenset(model.eos_token_ids) | frozenset(defaults.eos_token_ids)
        self._live: dict[TokenSequence, Live] = {}
        self._by_id: dict[str, list[TokenSequence]] = {}
        self._flying: Launched | None = None
        self._counts = {"steps": 0, "step_s": 0.0, "prompt_tokens": 0, "generated_tokens": 0}

    @classmethod
    def load(cls, config: EngineConfig, opened: Opened | None = None) -> "Engine":
        """Plan, then load. Raises ModelError or ConfigError with one line that says what is wrong."""
        opened = opened or open_model(config)
        decided = plan(opened.config, config, this_machine())
        kernels = backend(decided.backend)
        decoder = build(opened.config, opened.source, kernels, decided.dtype, decided.max_model_len)
        opened.check_all_used()
        return cls(opened.config, decided, opened.defaults, Runner(opened.config, decided, decoder, kernels))

    @property
    def busy(self) -> bool:
        return bool(self._live) or self._flying is not None

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError, with the numbers, when it can never run."""
        if request.id in self._by_id:
            raise RequestError(f"a request with id {request.id!r:.80} is already running", "id")
        lives = [self._sequence(request, i) for i in range(request.params.n)]
        for live in lives:
            self.scheduler.add(live.seq)
        self._by_id[request.id] = [live.seq for live in lives]
        self._live |= {live.seq: live for live in lives}
        self._counts["prompt_tokens"] += len(request.prompt_token_ids)

    def abort(self, request_id: str) -> None:
        """End a request at the next commit; an unknown id is one that has ended already."""
        for seq in self._by_id.get(request_id, ()):
            self.scheduler.abort(seq)

    def finish(self, request_id: str, index: int, reason: FinishReason) -> None:
        """End one sample at the next commit: whoever owns the text found a stop string."""
        for seq in self._by_id.get(request_id, ()):
            if seq.index == index:
                self.scheduler.finish(seq, reason)

    def step(self) -> list[Update]:
        """Plan and run one step, commit what has come back, and say what it brought."""
        began = time.monotonic()
        launched = self._launch(self.scheduler.schedule(began))
        ready = [launched]
        if self.plan.run_ahead:
            ready, self._flying = [self._flying] if self._flying else [], launched
            if not launched.batch.rows:  # nothing to wait for
                ready, self._flying = [*ready, launched], None
        updates = [update for step in ready for update in self._commit(step)]
        self._counts["steps"] += 1
        self._counts["step_s"] += time.monotonic() - began
        return updates

    def stats(self) -> EngineStats:
        s = self.scheduler
        return EngineStats(
            running=len(s.running), waiting=len(s.waiting), pages_used=self._pool.used, pages_total=self.plan.pages - 1,
            preemptions=s.preemptions, recomputed_tokens=s.recomputed_tokens,
            prefix_queried_tokens=s.prefix_queried_tokens, prefix_hit_tokens=s.prefix_hit_tokens, **self._counts,
        )

    def _sequence(self, request: Request, index: int) -> Live:
        params, prompt = request.params, list(request.prompt_token_ids)
        params.check(self.model.vocab_size)
        max_tokens = self._check_prompt(request, prompt)
        prompt_only = request.pooling is not None or max_tokens == 0
        scores = params.prompt_logprobs is not None and request.pooling is None
        chooser = Chooser(params, index, self.plan.seed, self._eos, self.model.vocab_size, request.bad_word_ids)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        seq = TokenSequence(
            id=request.id, index=index, tokens=prompt, max_tokens=max_tokens, stop_ids=stop_ids,
            priority=request.priority, deadline_s=request.deadline_s,
            root=f"{self.plan.dtype} {self.plan.kv_dtype} {request.cache_salt}".encode(),
            runs_ahead=not chooser.needs_history, caches=not scores and request.pooling is None, pooling=prompt_only,
        )
        return Live(request, seq, chooser, [None] if scores else None)

    def _check_prompt(self, request: Request, prompt: list[int]) -> int:
        """The number of tokens to generate, after every bound that needs the model."""
        limit, most = self.plan.max_model_len, request.params.max_tokens
        if not prompt:
            raise RequestError("the prompt is empty", "prompt")
        if not all(type(t) is int and 0 <= t < self.model.vocab_size for t in prompt):
            raise RequestError(f"prompt token ids must be integers from 0 to {self.model.vocab_size - 1}", "prompt")
        room = limit - len(prompt)
        if room < (0 if request.pooling or most == 0 else 1):
            held = f"the context of {limit} holds prompt and answer"
            raise RequestError(f"the prompt has {len(prompt)} tokens, {held}", "prompt")
        return 0 if request.pooling else room if most is None else min(most, room)

    def _launch(self, batch: Batch) -> Launched:
        lives = [self._live.get(row.seq) for row in batch.rows]
        return self.runner.launch(
            batch, [live.chooser for live in lives], [live.request.pooling for live in lives], self._flying)

    def _commit(self, launched: Launched) -> list[Update]:
        results = self.runner.collect(launched)
        for row, result in zip(launched.batch.rows, results, strict=True):
            self._gather(row.seq, row.start, result)
        events = self.scheduler.commit(launched.batch, [r.tokens for r in results], time.monotonic())
        return [self._update(e, results[e.row] if e.row >= 0 else RowResult()) for e in events]

    def _gather(self, seq: TokenSequence, start: int, result: RowResult) -> None:
        """Prompt scores and pooled states, chunk by chunk; a prompt that starts anew after preemption replaces them."""
        live = self._live.get(seq)
        if live is None:
            return
        if live.prompt_logprobs is not None:
            live.prompt_logprobs[start + 1 :] = result.prompt_logprobs
        if result.pooled is not None:
            add = start > 0 and live.request.pooling == "mean"
            live.pooled = live.pooled + result.pooled if add else result.pooled

    def _update(self, event: Event, result: RowResult) -> Update:
        seq = event.seq
        live = self._live[seq]
        self._counts["generated_tokens"] += len(event.tokens)
        scores, reason = None, event.finish_reason
        if event.tokens or reason:
            scores, live.prompt_logprobs = live.prompt_logprobs, None
        if reason == "stop" and seq.pooling and live.request.pooling is None:
            reason = "length"  # nothing was to be generated
        if reason:
            self._forget(seq)
        wants = live.request.params.logprobs is not None and event.tokens
        return Update(
            id=seq.id, index=seq.index, token_ids=tuple(event.tokens), finish_reason=reason,
            logprobs=tuple(result.logprobs[: len(event.tokens)]) if wants else None,
            stop_reason=self._stop_reason(event), prompt_logprobs=scores, embedding=_embedding(live, reason),
            error="the model's logits were not finite" if reason == "error" else None,
            cached_tokens=seq.hit_tokens, scheduled_s=seq.scheduled_s,
        )

    def _stop_reason(self, event: Event) -> int | None:
        last = event.tokens[-1] if event.finish_reason == "stop" and event.tokens else None
        return None if last in self._eos else last

    def _forget(self, seq: TokenSequence) -> None:
        del self._live[seq]
        left = [s for s in self._by_id[seq.id] if s is not seq]
        if left:
            self._by_id[seq.id] = left
        else:
            del self._by_id[seq.id]


def _embedding(live: Live, reason: FinishReason | None) -> tuple[float, ...] | None:
    if live.pooled is None or reason != "stop":
        return None
    vector = live.pooled / live.seq.prompt_len if live.request.pooling == "mean" else live.pooled
    return tuple(float(x) for x in vector)


@dataclass
class Assembly:
    """Turns a request's updates into RequestOutputs: one detokenizer for each sample."""

    request: Request
    prompt: str | None
    detokenizers: list[Detokenizer | None]
    metrics: RequestMetrics
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[Logprobs]] = field(default_factory=list)
    reasons: list[FinishReason | None] = field(default_factory=list)
    stops: list[int | str | None] = field(default_factory=list)
    prompt_logprobs: Sequence[Logprobs | None] | None = None

    def __post_init__(self) -> None:
        n = self.request.params.n
        self.texts, self.reasons, self.stops = [""] * n, [None] * n, [None] * n
        self.tokens, self.logprobs = [[] for _ in range(n)], [[] for _ in range(n)]

    def feed(self, u: Update) -> str:
        """Take an update; returns the new text of its sample. A stop string sets `stops` and ends the sample here."""
        if self.reasons[u.index] is not None:
            return ""
        self._clock(u)
        self.prompt_logprobs = u.prompt_logprobs or self.prompt_logprobs
        self.tokens[u.index] += u.token_ids
        self.logprobs[u.index] += u.logprobs or ()
        text = self._text(u)
        self.texts[u.index] += text
        return text

    def output(self, index: int | None = None) -> RequestOutput:
        chosen = range(self.request.params.n) if index is None else [index]
        return RequestOutput(
            request_id=self.request.id, prompt=self.prompt, prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(self._completion(i) for i in chosen), finished=self.finished,
            prompt_logprobs=self.prompt_logprobs, metrics=self.metrics,
        )

    @property
    def finished(self) -> bool:
        return None not in self.reasons

    def _text(self, u: Update) -> str:
        d, i = self.detokenizers[u.index], u.index
        text = d.feed(u.token_ids) if d else ""
        self.reasons[i], self.stops[i] = u.finish_reason, u.stop_reason
        if d and d.stopped is not None:
            self.reasons[i], self.stops[i] = "stop", d.stopped
        elif d and u.finish_reason:
            text += d.finish()
            if d.stopped is not None:
                self.reasons[i], self.stops[i] = "stop", d.stopped
        return text

    def _clock(self, u: Update) -> None:
        now = time.monotonic()
        first = self.metrics.first_token_s or (now if u.token_ids else None)
        self.metrics = replace(self.metrics, scheduled_s=u.scheduled_s, first_token_s=first, finished_s=now,
                               cached_tokens=u.cached_tokens)

    def _completion(self, i: int) -> CompletionOutput:
        lp = self.logprobs[i] if self.request.params.logprobs is not None else None
        total = None if lp is None else sum(scores[t].logprob for scores, t in zip(lp, self.tokens[i]))
        return CompletionOutput(index=i, text=self.texts[i], token_ids=tuple(self.tokens[i]), cumulative_logprob=total,
                                logprobs=lp, finish_reason=self.reasons[i], stop_reason=self.stops[i])


class LLM:
    """A model in this process. Arguments are EngineConfig's fields; unknown ones are a TypeError.

    >>> llm = LLM()                                                             # doctest: +SKIP
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=20))[0].outputs[0].text   # doctest: +SKIP
    """

    def __init__(self, model: str = "", **options: Any):
        config = EngineConfig(model=model, **options)
        opened = open_model(config)
        self.chat_form: Chat | None = None
        self.tokenizer: Tokenizer | None = None
        if not config.skip_tokenizer_init:
            self.chat_form = open_chat(opened.text_directory, config.chat_template)  # its child starts while we load
            self.tokenizer = load_tokenizer(opened.text_directory)
        self.engine = Engine.load(config, opened)
        self._ids = count()

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[RequestOutput]:
        """Complete each prompt. One SamplingParams serves all, or one each. max_tokens defaults to 16."""
        batch = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        every = self._params(params, len(batch), 16)
        return self._run([self._request(p, q) for p, q in zip(batch, every, strict=True)])

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None,
             **template: Any) -> list[RequestOutput]:
        """Answer [{"role": "user", "content": "..."}, ...]. max_tokens defaults to the rest of the context."""
        ids = self.chat_ids(messages, **template)
        return self._run([self._request({"prompt_token_ids": ids}, *self._params(params, 1, None))])

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[tuple[int, str, RequestOutput]]:
        """(sample index, new text, everything so far) as it comes. Leaving the loop early ends the request."""
        assembly = self._request(prompt, *self._params(params, 1, None))
        self.engine.add(assembly.request)
        try:
            while not assembly.finished:
                for update in self.engine.step():
                    text = self._feed(assembly, update)
                    yield update.index, text, assembly.output()
        finally:
            self.engine.abort(assembly.request.id)
            while self.engine.busy:
                self.engine.step()

    def embed(self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "mean") -> list[EmbeddingOutput]:
        """The last hidden states of each prompt, pooled: their mean or the last one, (D,) floats."""
        batch = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        requests = [replace(self._request(p, SamplingParams()).request, pooling=pooling) for p in batch]
        vectors: dict[str, Sequence[float]] = {}
        for request in requests:
            self.engine.add(request)
        while self.engine.busy:
            vectors |= {u.id: u.embedding for u in self.engine.step() if u.embedding is not None}
        return [EmbeddingOutput(request_id=r.id, prompt_token_ids=r.prompt_token_ids, embedding=vectors[r.id])
                for r in requests]

    def score(self, query: Prompt, documents: Sequence[Prompt]) -> list[float]:
        """Cosine similarity of the query's mean embedding and each document's."""
        vectors = np.array([e.embedding for e in self.embed([query, *documents])])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return [float(x) for x in vectors[1:] @ vectors[0]]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        if self.chat_form is None or self.tokenizer is None:
            raise RequestError("the model was loaded without a tokenizer", "messages")
        return self.chat_form.encode(self.tokenizer, messages, **template)

    def default_params(self, **given: Any) -> SamplingParams:
        """SamplingParams with the model's recommended values where none are given."""
        own = {f.name: getattr(self.engine.defaults, f.name) for f in fields(GenerationDefaults)}
        own = {name: value for name, value in own.items() if name != "eos_token_ids" and value is not None}
        return SamplingParams(**(own | given))

    def close(self) -> None:
        if self.chat_form is not None:
            self.chat_form.close()

    def _params(self, params: Any, n: int, max_tokens: int | None) -> list[SamplingParams]:
        if params is None:
            params = self.default_params(max_tokens=max_tokens)
        out = [params] * n if isinstance(params, SamplingParams) else list(params)
        if len(out) != n:
            raise RequestError(f"there are {n} prompts and {len(out)} SamplingParams", "params")
        return out

    def _request(self, prompt: Prompt, params: SamplingParams) -> Assembly:
        arrival_s = time.monotonic()
        text = prompt if isinstance(prompt, str) else None
        ids = self._encode(prompt)
        bad = [self.tokenizer.encode(w, add_special_tokens=False) for w in params.bad_words] if self.tokenizer else []
        request = Request(id=f"r{next(self._ids)}", prompt_token_ids=tuple(ids), params=params, bad_word_ids=bad,
                          arrival_s=arrival_s)
        make = lambda: Detokenizer(self.tokenizer, skip_special_tokens=params.skip_special_tokens, stop=params.stop,
                                   include_stop=params.include_stop_str_in_output)
        detokenize = self.tokenizer is not None and params.detokenize
        return Assembly(request, text, [make() if detokenize else None for _ in range(params.n)],
                        RequestMetrics(arrival_s=arrival_s))

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, Mapping):
            if set(prompt) != {"prompt_token_ids"}:
                raise RequestError('a prompt is a string or {"prompt_token_ids": [...]}', "prompt")
            return prompt["prompt_token_ids"]
        if self.tokenizer is None:
            raise RequestError("the model was loaded without a tokenizer: give prompt_token_ids", "prompt")
        return self.tokenizer.encode(prompt)

    def _run(self, assemblies: list[Assembly]) -> list[RequestOutput]:
        by_id = {a.request.id: a for a in assemblies}
        try:
            for a in assemblies:
                self.engine.add(a.request)
            while not all(a.finished for a in assemblies):
                for update in self.engine.step():
                    self._feed(by_id[update.id], update)
        finally:
            for a in assemblies:
                self.engine.abort(a.request.id)
            while self.engine.busy:
                self.engine.step()
        return [a.output() for a in assemblies]

    def _feed(self, assembly: Assembly, update: Update) -> str:
        text = assembly.feed(update)
        if assembly.reasons[update.index] and update.finish_reason is None:
            self.engine.finish(update.id, update.index, "stop")
        return text
