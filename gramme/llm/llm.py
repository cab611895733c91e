"""A model in this process, from text to text: tokenises before the engine and detokenises after it."""
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from typing import Any

import numpy as np

from gramme.config import EngineConfig, GenerationDefaults
from gramme.grammar.source import check
from gramme.llm.assembly import Assembly
from gramme.llm.engine import Engine
from gramme.models.open import open_model
from gramme.request import (
    EmbeddingOutput,
    Pooling,
    Request,
    RequestError,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    Update,
)
from gramme.text.chat import Chat, open_chat
from gramme.text.detokenizer import Detokenizer
from gramme.text.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Mapping[str, Sequence[int]]  # text, or {"prompt_token_ids": [...]}


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
            self.chat_form = open_chat(opened.text, config.chat_template)  # its child starts while we load
            self.tokenizer = load_tokenizer(opened.text)
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
        if params.structured_outputs is not None:
            check(params.structured_outputs)
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
        if update.error_param is not None:
            raise RequestError(str(update.error), update.error_param)
        text = assembly.feed(update)
        if assembly.reasons[update.index] and update.finish_reason is None:
            self.engine.finish(update.id, update.index, "stop")
        return text
