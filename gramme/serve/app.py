"""The HTTP process: OpenAI's routes over an AsyncLLM. Tokenises, detokenises, streams; knows no tensor."""
import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gramme.config import EngineConfig, GenerationDefaults
from gramme.llm.assembly import Assembly
from gramme.models.open import open_model
from gramme.request import Logprobs, Request, RequestError, RequestMetrics, SamplingParams, Update
from gramme.serve.async_llm import AsyncLLM, EngineDead
from gramme.serve.metrics import Metrics
from gramme.serve.openai import ChatCompletion, Completion, Detokenize, Embeddings, Sampled, Tokenize, parse, sampling
from gramme.text.chat import Chat, open_chat
from gramme.text.detokenizer import Detokenizer
from gramme.text.tokenizer import Tokenizer, load_tokenizer

MAX_BODY_BYTES = 8 << 20
LEAST_LOGPROB = -9999.0  # JSON has no infinity


class HttpError(Exception):
    def __init__(self, status: int, message: str, kind: str, param: str | None = None, code: str | int | None = None):
        self.status, self.body = status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Job:
    """One HTTP request for tokens: its prompts, each an Assembly, and the ids in the reply."""

    def __init__(self, body: Sampled, assemblies: list[Assembly], model: str, chat: bool, echo: bool = False):
        self.body, self.assemblies, self.model, self.chat, self.echo = body, assemblies, model, chat, echo
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid4().hex
        self.created = int(time.time())
        self.params = assemblies[0].request.params

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self) -> dict[str, Any]:
        prompt = sum(len(a.request.prompt_token_ids) for a in self.assemblies)
        made = sum(len(t) for a in self.assemblies for t in a.tokens)
        cached = sum(a.metrics.cached_tokens for a in self.assemblies)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
                "prompt_tokens_details": {"cached_tokens": cached}}


class Server:
    """The routes' state. `chat_form` and `tokenizer` are the model's, `llm` its engine."""

    def __init__(self, llm: AsyncLLM, tokenizer: Tokenizer, chat_form: Chat, model: str,
                 metrics_prefix: str = "gramme"):
        self.llm, self.tokenizer, self.chat_form, self.model = llm, tokenizer, chat_form, model
        self.metrics = Metrics(metrics_prefix, model, lambda: llm.stats)
        self.created = int(time.time())

    def app(self) -> Starlette:
        posts = {"/v1/chat/completions": self.chat, "/v1/completions": self.complete, "/v1/embeddings": self.embed,
                 "/tokenize": self.tokenize, "/detokenize": self.detokenize}
        gets = {"/v1/models": self.models, "/v1/models/{id:path}": self.one_model, "/tokenizer_info": self.info,
                "/health": self.health, "/metrics": self.scrape}
        routes = [Route(path, guarded(run), methods=["POST"]) for path, run in posts.items()]
        routes += [Route(path, guarded(run), methods=["GET"]) for path, run in gets.items()]
        return Starlette(routes=routes, lifespan=self._lifespan,
                         exception_handlers={404: _plain_error, 405: _plain_error, 500: _plain_error})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.llm.start()
        try:
            yield
        finally:
            await self.llm.close()
            self.chat_form.close()

    async def health(self, http: HttpRequest) -> Response:
        self._check_ready()
        return JSONResponse({"status": "ok"})

    async def models(self, http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, http: HttpRequest) -> Response:
        self._check_model(http.path_params["id"])
        return JSONResponse(self._card())

    async def scrape(self, http: HttpRequest) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def info(self, http: HttpRequest) -> Response:
        t = self.tokenizer
        name = lambda i: None if i is None else t.token_str(i)
        return JSONResponse({"eos_token": name(t.eos_id), "bos_token": name(t.bos_id), "pad_token": None,
                             "vocab_size": t.vocab_size, "chat_template": self.chat_form.template})

    async def tokenize(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Tokenize)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("give either prompt or messages", "prompt")
        if body.messages is not None:
            ids = await run_in_threadpool(self.chat_form.encode, self.tokenizer, body.messages,
                                          add_generation_prompt=body.add_generation_prompt)
        else:
            ids = await self._encode(body.prompt, body.add_special_tokens)
        return _json({"tokens": ids, "count": len(ids), "max_model_len": self._limit,
                      "token_strs": [self.tokenizer.token_str(t) for t in ids]}, warnings)

    async def detokenize(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Detokenize)
        self._check_ids(body.tokens, "tokens")
        return _json({"prompt": self.tokenizer.decode(body.tokens, skip_special_tokens=False)}, warnings)

    async def embed(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Embeddings)
        if body.encoding_format not in ("float", "base64"):
            raise RequestError("encoding_format must be float or base64", "encoding_format")
        prompts = Completion(prompt=body.input).prompts()
        requests = [self._request(await self._ids(p), SamplingParams(), pooling="mean") for p in prompts]
        vectors = await _until_gone(http, asyncio.gather(*map(self._vector, requests)))
        data = [{"object": "embedding", "index": i, "embedding": _vector_form(v, body.encoding_format)}
                for i, v in enumerate(vectors)]
        used = sum(len(r.prompt_token_ids) for r in requests)
        return _json({"object": "list", "model": self.model, "data": data,
                      "usage": {"prompt_tokens": used, "total_tokens": used}}, warnings)

    async def complete(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Completion)
        own = {"logprobs": body.logprobs, "max_tokens": 16 if body.max_tokens is None else body.max_tokens}
        if body.echo:
            own["prompt_logprobs"] = body.logprobs
            if body.stream:
                raise RequestError("echo cannot be streamed", "echo")
        params = sampling(body, self._defaults, **own)
        prompts = [await self._ids(p, body.add_special_tokens) for p in body.prompts()]
        return await self._reply(http, body, params, prompts, False, warnings)

    async def chat(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, ChatCompletion)
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        params = sampling(body, self._defaults, max_tokens=most,
                          logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        ids = await run_in_threadpool(
            self.chat_form.encode, self.tokenizer, body.messages, add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message)
        return await self._reply(http, body, params, [ids], True, warnings)

    async def _reply(self, http: HttpRequest, body: Sampled, params: SamplingParams, prompts: list[list[int]],
                     chat: bool, warnings: list[str]) -> Response:
        assemblies = [self._assembly(self._request(ids, params, body)) for ids in prompts]
        job = Job(body, assemblies, self.model, chat, getattr(body, "echo", False))
        if body.stream:
            return StreamingResponse(self._stream(job), media_type="text/event-stream", headers=_header(warnings))
        await _until_gone(http, asyncio.gather(*(self._drain(a) for a in assemblies)))
        return _json(self._whole(job), warnings)

    async def _drain(self, assembly: Assembly) -> None:
        async with aclosing(self._run(assembly)) as updates:
            async for _ in updates:
                pass

    async def _run(self, assembly: Assembly) -> AsyncIterator[tuple[Update, str]]:
        """Updates with their text, until every sample has ended."""
        async with aclosing(self.llm.generate(assembly.request)) as updates:
            async for u in updates:
                if assembly.reasons[u.index] is not None:
                    continue  # tokens that were on their way when a stop string was found
                text = assembly.feed(u)
                if u.finish_reason == "error":
                    raise HttpError(500, u.error or "the engine failed", "internal_error")
                if assembly.reasons[u.index] and u.finish_reason is None:
                    self.llm.finish(u.id, u.index)
                yield u, text
                if assembly.finished:
                    break
        self.metrics.finished(assembly.metrics, [r for r in assembly.reasons if r])

    async def _stream(self, job: Job) -> AsyncIterator[bytes]:
        kind = "chat.completion.chunk" if job.chat else "text_completion"
        options, extra = job.body.stream_options, {}
        if options and options.include_usage:
            extra = {"usage": None}
        try:
            if job.chat:
                for i in range(job.params.n):
                    first = {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                    yield _event(job.head(kind) | {"choices": [first]} | extra)
            async with aclosing(_merge([self._run(a) for a in job.assemblies])) as merged:
                async for which, (update, text) in merged:
                    choice = self._chunk(job, which, update, text)
                    if choice is not None:
                        yield _event(job.head(kind) | {"choices": [choice]} | extra)
            if extra:
                yield _event(job.head(kind) | {"choices": [], "usage": job.usage()})
        except (RequestError, EngineDead, HttpError) as error:
            yield _event(_http_error(error).body)
        yield b"data: [DONE]\n\n"

    def _chunk(self, job: Job, which: int, update: Update, text: str) -> dict[str, Any] | None:
        a, i = job.assemblies[which], update.index
        if not (text or a.reasons[i] or update.logprobs):
            return None
        choice: dict[str, Any] = {"index": which * job.params.n + i, "finish_reason": a.reasons[i],
                                  "stop_reason": a.stops[i]}
        pairs = list(zip(update.token_ids, update.logprobs or ()))
        if job.chat:
            scores = {"content": self._chat_scores(pairs)} if update.logprobs else None
            return choice | {"delta": {"content": text} if text else {}, "logprobs": scores}
        return choice | {"text": text, "logprobs": self._scores(pairs) if update.logprobs else None}

    def _whole(self, job: Job) -> dict[str, Any]:
        make = self._chat_choice if job.chat else self._choice
        choices = [make(job, which, i) for which in range(len(job.assemblies)) for i in range(job.params.n)]
        kind = "chat.completion" if job.chat else "text_completion"
        return job.head(kind) | {"choices": choices, "usage": job.usage()}

    def _chat_choice(self, job: Job, which: int, i: int) -> dict[str, Any]:
        a = job.assemblies[which]
        scores = {"content": self._chat_scores(zip(a.tokens[i], a.logprobs[i]))} if job.body.logprobs else None
        return {"index": i, "message": {"role": "assistant", "content": a.texts[i]}, "logprobs": scores,
                "finish_reason": a.reasons[i], "stop_reason": a.stops[i]}

    def _choice(self, job: Job, which: int, i: int) -> dict[str, Any]:
        a = job.assemblies[which]
        pairs, text = list(zip(a.tokens[i], a.logprobs[i])), a.texts[i]
        if job.echo:
            ids = a.request.prompt_token_ids
            pairs = list(zip(ids, a.prompt_logprobs or ())) + pairs
            text = self.tokenizer.decode(ids) + text
        scores = self._scores(pairs) if job.params.logprobs is not None else None
        return {"index": which * job.params.n + i, "text": text, "logprobs": scores,
                "finish_reason": a.reasons[i], "stop_reason": a.stops[i]}

    def _scores(self, pairs: list[tuple[int, Logprobs | None]]) -> dict[str, Any]:
        """The completions form; a prompt's first token has no score. Ties of names keep the best float."""
        own = [None if s is None else _finite(s[t].logprob) for t, s in pairs]
        names = [self._name(t) for t, _ in pairs]
        offsets = [0]
        for name in names:
            offsets.append(offsets[-1] + len(name))
        return {"tokens": names, "token_logprobs": own, "text_offset": offsets[:-1],
                "top_logprobs": [None if s is None else self._top(s) for _, s in pairs]}

    def _top(self, scores: Logprobs) -> dict[str, float]:
        worst_first = sorted(scores.items(), key=lambda item: item[1].logprob)
        return {self._name(t): _finite(s.logprob) for t, s in worst_first}

    def _chat_scores(self, pairs: Any) -> list[dict[str, Any]]:
        entry = lambda t, s: {"token": self._name(t), "logprob": _finite(s.logprob),
                              "bytes": list(self.tokenizer.token_bytes(t))}
        ranked = lambda scores: sorted(scores.items(), key=lambda item: item[1].rank)
        return [entry(t, s[t]) | {"top_logprobs": [entry(o, x) for o, x in ranked(s)]} for t, s in pairs]

    def _name(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")

    async def _vector(self, request: Request) -> list[float]:
        async with aclosing(self.llm.generate(request)) as updates:
            async for u in updates:
                if u.embedding is not None:
                    return list(u.embedding)
        raise HttpError(500, "the engine gave no embedding", "internal_error")

    def _assembly(self, request: Request) -> Assembly:
        p = request.params
        made = [Detokenizer(self.tokenizer, skip_special_tokens=p.skip_special_tokens, stop=p.stop,
                            include_stop=p.include_stop_str_in_output) for _ in range(p.n)]
        return Assembly(request, None, made, RequestMetrics(arrival_s=request.arrival_s))

    def _request(self, ids: list[int], params: SamplingParams, body: Sampled | None = None, **more: Any) -> Request:
        room = self._limit - len(ids)
        if not ids:
            raise RequestError("the prompt is empty", "prompt")
        if room < (0 if more or params.max_tokens == 0 else 1):
            held = f"the context of {self._limit} holds prompt and answer"
            raise RequestError(f"the prompt has {len(ids)} tokens, {held}", "prompt")
        params.check(self.llm.ready.model.vocab_size)
        bad = [self.tokenizer.encode(w, add_special_tokens=False) for w in params.bad_words]
        if body is not None:
            more |= {"priority": body.priority, "cache_salt": body.cache_salt}
        return Request(id=uuid4().hex, prompt_token_ids=ids, params=params, bad_word_ids=bad,
                       arrival_s=time.monotonic(), **more)

    async def _ids(self, prompt: str | list[int], add_special_tokens: bool = True) -> list[int]:
        if isinstance(prompt, str):
            return await self._encode(prompt, add_special_tokens)
        self._check_ids(prompt, "prompt")
        return prompt

    async def _encode(self, text: str, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text holds half a surrogate pair", "prompt") from None
        return await run_in_threadpool(self.tokenizer.encode, text, add_special_tokens=special)

    def _check_ids(self, ids: list[int], param: str) -> None:
        size = self.llm.ready.model.vocab_size
        if not all(type(t) is int and 0 <= t < size for t in ids):
            raise RequestError(f"token ids must be integers from 0 to {size - 1}", param)

    async def _body(self, http: HttpRequest, kind: type) -> tuple[Any, list[str]]:
        self._check_ready()
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HttpError(415, "the content type must be application/json", "invalid_request_error")
        data = bytearray()
        async for piece in http.stream():
            data += piece
            if len(data) > MAX_BODY_BYTES:
                raise HttpError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "invalid_request_error")
        body, unknown = parse(bytes(data), kind)
        if body.model is not None:
            self._check_model(body.model)
        return body, unknown

    def _check_ready(self) -> None:
        if self.llm.dead is not None:
            raise EngineDead(self.llm.dead)
        if self.llm.ready is None:
            raise HttpError(503, "Loading model", "unavailable_error", code=503)

    def _check_model(self, name: str) -> None:
        if name != self.model:
            raise HttpError(404, f"the model {name!r:.200} does not exist; this is {self.model!r}",
                            "invalid_request_error", "model", "model_not_found")

    def _card(self) -> dict[str, Any]:
        limit = self._limit if self.llm.ready else None
        return {"id": self.model, "object": "model", "created": self.created, "owned_by": "gramme",
                "max_model_len": limit, "root": self.model, "parent": None}

    @property
    def _limit(self) -> int:
        return self.llm.ready.plan.max_model_len

    @property
    def _defaults(self) -> dict[str, Any]:
        own = {f.name: getattr(self.llm.ready.defaults, f.name) for f in fields(GenerationDefaults)}
        return {name: v for name, v in own.items() if name != "eos_token_ids" and v is not None}


def serve(config: EngineConfig, *, host: str = "127.0.0.1", port: int = 8000, served_model_name: str | None = None,
          metrics_prefix: str = "gramme") -> None:
    """Run until interrupted. HTTP answers while the engine loads; /health says when it is ready."""
    opened = open_model(config)
    chat_form, tokenizer = open_chat(opened.text_directory, config.chat_template), load_tokenizer(opened.text_directory)
    server = Server(AsyncLLM.spawn(config), tokenizer, chat_form, served_model_name or opened.name, metrics_prefix)
    uvicorn.run(server.app(), host=host, port=port, log_level="warning")


def guarded(run: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
    """The route with every foreseen error in OpenAI's form."""
    async def route(http: HttpRequest) -> Response:
        try:
            return await run(http)
        except (RequestError, EngineDead, HttpError) as error:
            made = _http_error(error)
            return JSONResponse(made.body, made.status)
        except ClientDisconnect:
            return Response(status_code=499)
    return route


def _http_error(error: Exception) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError):
        return HttpError(400, str(error), "invalid_request_error", error.param)
    return HttpError(503, str(error), "unavailable_error", code=503)


async def _plain_error(http: HttpRequest, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    kind = "internal_error" if status == 500 else "invalid_request_error"
    detail = "internal error" if status == 500 else getattr(error, "detail", "")
    return JSONResponse(HttpError(status, detail, kind, code=status).body, status)


async def _until_gone(http: HttpRequest, work: asyncio.Future[Any]) -> Any:
    """The result of `work`; it is cancelled when the client goes first."""
    gone = asyncio.ensure_future(http.receive())  # the body has been read: what comes now is the disconnect
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _merge(sources: list[AsyncIterator[Any]]) -> AsyncIterator[tuple[int, Any]]:
    """Items of several generators as they come, with the generator's index."""
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def pump(i: int) -> None:
        try:
            async with aclosing(sources[i]) as items:
                async for item in items:
                    queue.put_nowait((i, item))
            queue.put_nowait((i, None))
        except Exception as error:
            queue.put_nowait((i, error))

    tasks = [asyncio.create_task(pump(i)) for i in range(len(sources))]
    try:
        left = len(tasks)
        while left:
            i, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            if item is not None:
                yield i, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _vector_form(vector: list[float], form: str) -> list[float] | str:
    return vector if form == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _finite(x: float) -> float:
    return max(x, LEAST_LOGPROB)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _json(body: dict[str, Any], warnings: list[str]) -> JSONResponse:
    return JSONResponse(body, headers=_header(warnings))


def _header(unknown: list[str]) -> dict[str, str]:
    names = ", ".join(n.encode("ascii", "replace").decode() for n in unknown)[:500]
    printable = "".join(c if c.isprintable() else "?" for c in names)
    return {"warnings": f"ignored unknown fields: {printable}"} if unknown else {}
