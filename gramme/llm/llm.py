"""A model in this process, from text to text: tokenises before the engine and detokenises after it."""
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from typing import Any

import numpy as np

from gramme.config import EngineConfig, GenerationDefaults
from gramme.grammar.source import check
from gramme.llm.assembly import Assembly, assemble
from gramme.llm.engine import Engine
from gramme.models.open import open_model, watched
from gramme.request import (
    EmbeddingOutput,
    Pooling,
    Request,
    RequestError,
    RequestOutput,
    SamplingParams,
    Stamps,
)
from gramme.text.chat import Chat, open_chat
from gramme.text.tokenizer import Tokenizer, load_tokenizer

# A text, {"prompt_token_ids": [...]}, or {"messages": [...]} with what else the chat template takes
Prompt = str | Mapping[str, Any]


class LLM:
    """A model in this process. Arguments are EngineConfig's fields; unknown ones are a TypeError.

    `progress` is called while the model loads with how many parameters have been read, and how many there are. No
    request takes more than `most_tokens` of context, prompt and answer, where that is known: less memory is planned.

    >>> llm = LLM()                                                             # doctest: +SKIP
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=20))[0].outputs[0].text   # doctest: +SKIP
    """

    def __init__(self, model: str = "", *, progress: Callable[[int, int], None] | None = None,
                 most_tokens: int | None = None, **options: Any):
        config = EngineConfig(model=model, **options)
        opened = open_model(config)
        if most_tokens is not None and config.max_model_len is None:
            config = replace(config, max_model_len=min(most_tokens, opened.config.max_positions))
        self.chat_form: Chat | None = None
        self.tokenizer: Tokenizer | None = None
        if not config.skip_tokenizer_init:
            self.chat_form = open_chat(opened.text, config.chat_template)  # its child starts while we load
        try:
            if not config.skip_tokenizer_init:
                self.tokenizer = load_tokenizer(opened.text)
            self.engine = Engine.load(config, opened if progress is None else watched(opened, progress))
        except BaseException:
            self.close()
            raise
        self._ids = count()
        self._open: dict[str, tuple[Assembly, deque[tuple[int, str]]]] = {}  # by request id

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[RequestOutput]:
        """Complete each prompt. One SamplingParams serves all, or one each. max_tokens defaults to 16."""
        batch = prompts if isinstance(prompts, list | tuple) else [prompts]
        every = self._params(params, len(batch), 16)
        return self._run([self._request(p, q) for p, q in zip(batch, every, strict=True)])

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None,
             **template: Any) -> list[RequestOutput]:
        """Answer [{"role": "user", "content": "..."}, ...]. max_tokens defaults to the rest of the context."""
        return self._run([self._request({"messages": messages, **template}, *self._params(params, 1, None))])

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[tuple[int, str, RequestOutput]]:
        """(sample index, new text, everything so far) as it comes. Leaving the loop early ends the request.

        Several streams may be read in turn: whoever waits runs the steps of all.
        """
        assembly = self._request(prompt, *self._params(params, 1, None))
        with self._opened([assembly]) as news:
            while news or not assembly.finished:
                if news:
                    yield *news.popleft(), assembly.output()
                else:
                    self._step()
                    assembly.check()

    def embed(self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "mean") -> list[EmbeddingOutput]:
        """The last hidden states of each prompt, pooled: their mean or the last one, (D,) floats."""
        batch = prompts if isinstance(prompts, list | tuple) else [prompts]
        assemblies = [self._request(p, SamplingParams(), pooling) for p in batch]
        self._run(assemblies)
        return [EmbeddingOutput(request_id=a.request.id, prompt_token_ids=a.request.prompt_token_ids,
                                embedding=a.embedding or ()) for a in assemblies]

    def score(self, query: Prompt, documents: Sequence[Prompt]) -> list[float]:
        """Cosine similarity of the query's mean embedding and each document's."""
        vectors = np.array([e.embedding for e in self.embed([query, *documents])])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return [float(x) for x in vectors[1:] @ vectors[0]]

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
            params = self.default_params()
        out = [params] * n if isinstance(params, SamplingParams) else list(params)
        out = [replace(p, max_tokens=max_tokens) if p.max_tokens is None else p for p in out]
        if len(out) != n:
            raise RequestError(f"there are {n} prompts and {len(out)} SamplingParams", "params")
        return out

    def _request(self, prompt: Prompt, params: SamplingParams, pooling: Pooling | None = None) -> Assembly:
        stamps = Stamps(arrived_ns=time.monotonic_ns())
        if params.structured_outputs is not None:
            check(params.structured_outputs)
        stamps = replace(stamps, parsed_ns=time.monotonic_ns())
        text = self._text(prompt)
        stamps = replace(stamps, rendered_ns=time.monotonic_ns())
        ids = self._encode(prompt, text)
        bad = [self.tokenizer.encode(w, add_special_tokens=False) for w in params.bad_words] if self.tokenizer else []
        stamps = replace(stamps, tokenised_ns=time.monotonic_ns())
        request = Request(id=f"r{next(self._ids)}", prompt_token_ids=tuple(ids), params=params, bad_word_ids=bad,
                          stamps=stamps, pooling=pooling)
        return assemble(request, self.tokenizer, prompt if isinstance(prompt, str) else None)

    def _text(self, prompt: Prompt) -> str | None:
        """None where the prompt is token ids. A conversation is rendered."""
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt, Mapping) and "messages" in prompt:
            if self.chat_form is None or self.tokenizer is None:
                raise RequestError("the model was loaded without a tokenizer", "messages")
            return self.chat_form.render(self.tokenizer, **prompt)
        return None

    def _encode(self, prompt: Prompt, text: str | None) -> Sequence[int]:
        if text is None:
            if isinstance(prompt, Mapping) and isinstance(ids := prompt.get("prompt_token_ids"), list | tuple):
                return ids
            forms = '{"prompt_token_ids": [...]} or {"messages": [...]}'
            raise RequestError(f"a prompt is a string, {forms}, not {prompt!r:.60}", "prompt")
        if self.tokenizer is None or self.chat_form is None:
            raise RequestError("the model was loaded without a tokenizer: give prompt_token_ids", "prompt")
        return self.tokenizer.encode(text) if isinstance(prompt, str) else self.chat_form.tokens(self.tokenizer, text)

    def _run(self, assemblies: list[Assembly]) -> list[RequestOutput]:
        with self._opened(assemblies):
            while not all(a.finished for a in assemblies):
                self._step()
                for a in assemblies:
                    a.check()
        return [a.output() for a in assemblies]

    @contextmanager
    def _opened(self, assemblies: list[Assembly]) -> Iterator[deque[tuple[int, str]]]:
        """The requests in the engine, and (sample index, new text) as it comes; afterwards nothing of them is left."""
        news: deque[tuple[int, str]] = deque()
        try:
            for a in assemblies:
                self.engine.add(a.request)
                self._open[a.request.id] = a, news
            yield news
        finally:
            for a in assemblies:
                self.engine.abort(a.request.id)
            while any(self.engine.holds(a.request.id) for a in assemblies):
                self._step()
            for a in assemblies:
                self._open.pop(a.request.id, None)
            while not self._open and self.engine.idle():
                pass

    def _step(self) -> None:
        """One step of the engine; what it brought goes to whoever asked."""
        with _uninterrupted():
            updates = self.engine.step()
        for u in updates:
            assembly, news = self._open[u.id]
            news.append((u.index, assembly.feed(u)))
            assembly.handed_over()
            if assembly.reasons[u.index] and u.finish_reason is None:
                self.engine.finish(u.id, u.index, "stop")
        self.engine.handed_over()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A KeyboardInterrupt waits for the end of the step: half a step can be neither committed nor taken back."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
