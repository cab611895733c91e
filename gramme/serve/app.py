"""The routes: each reads a body, asks the engine and answers. Knows no tensor, no JSON form and no process."""
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from gramme import __version__
from gramme.plan.units import parse_seconds
from gramme.request import RequestError, SamplingParams, Stamps
from gramme.serve.admission import Admission, Place
from gramme.serve.answer import Answer
from gramme.serve.async_llm import AsyncLLM, EngineDead
from gramme.serve.errors import FORESEEN, HttpError, http_error
from gramme.serve.intake import Intake
from gramme.serve.job import Job
from gramme.serve.metrics import Metrics
from gramme.serve.openai import (
    ChatCompletion,
    Completion,
    Detokenize,
    Embeddings,
    Sampled,
    Tokenize,
    parse,
    sampling,
)
from gramme.serve.openai import prompts as prompts_of
from gramme.serve.openapi import document
from gramme.serve.options import ServeOptions
from gramme.serve.outlook import Expected, Load, Outlook, Vectors
from gramme.serve.page import page
from gramme.serve.replies import ChatReply, CompletionReply, Reply, embedding_list, model_card
from gramme.serve.response_events import ResponsesReply
from gramme.serve.responses import Responses
from gramme.serve.similarity import Rerank, Score, cosine, ranking, score_list
from gramme.serve.status import predictions, status
from gramme.serve.streaming import HeldStream, events, read_body, until_gone
from gramme.serve.tools import Reading
from gramme.text.chat import Chat
from gramme.text.tokenizer import Tokenizer

MAX_SEQUENCES = 1024  # of one request: 131,072, as prompts and n alone allow, keep the engine from all others
LARGE = 64 << 10  # bytes of a body that is parsed beside the event loop

ROUTES: dict[str, tuple[str, str, type | None]] = {  # path: method, Server's method, body
    "/": ("GET", "page", None),
    "/v1/chat/completions": ("POST", "chat", ChatCompletion),
    "/v1/completions": ("POST", "complete", Completion),
    "/v1/responses": ("POST", "respond", Responses),
    "/v1/embeddings": ("POST", "embed", Embeddings),
    "/v1/score": ("POST", "score", Score),
    "/v1/rerank": ("POST", "rerank", Rerank),
    "/rerank": ("POST", "rerank", Rerank),
    "/tokenize": ("POST", "tokenize", Tokenize),
    "/detokenize": ("POST", "detokenize", Detokenize),
    "/v1/models": ("GET", "models", None),
    "/v1/models/{id:path}": ("GET", "one_model", None),
    "/tokenizer_info": ("GET", "info", None),
    "/props": ("GET", "props", None),
    "/version": ("GET", "version", None),
    "/openapi.json": ("GET", "openapi", None),
    "/health": ("GET", "is_ready", None),
    "/health/ready": ("GET", "is_ready", None),
    "/health/live": ("GET", "is_live", None),
    "/v1/status": ("GET", "status", None),
    "/metrics": ("GET", "scrape", None),
}
QUEUING = frozenset(path for path, (_, name, _) in ROUTES.items()
                    if name in ("chat", "complete", "respond", "embed", "score", "rerank"))


class Server:
    """The routes' state. `chat_form` and `tokenizer` are the model's, `llm` its engine."""

    def __init__(self, llm: AsyncLLM, tokenizer: Tokenizer, chat_form: Chat, model: str, options: ServeOptions):
        self.llm, self.tokenizer, self.chat_form, self.model, self.options = llm, tokenizer, chat_form, model, options
        self.draining = False
        self.admission = Admission(options.max_queue, slo_ttft_s(options))
        self.intake = Intake(llm, tokenizer, chat_form, options)
        self.metrics = Metrics(options.metrics_prefix, model, lambda: llm.stats)
        self.outlook = Outlook(self.metrics)
        llm.watch = self.outlook.watch
        self.created = int(time.time())

    def app(self) -> Starlette:
        routes = [Route(path, guarded(getattr(self, name)), methods=[method])
                  for path, (method, name, _) in ROUTES.items()]
        made = Starlette(routes=routes, lifespan=self._lifespan,
                         exception_handlers={404: _plain_error, 405: _plain_error, Exception: _plain_error})
        made.router.redirect_slashes = False
        return made

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.llm.start()
        try:
            yield
        finally:
            await self.llm.close()
            self.chat_form.close()

    def check_room(self, path: str) -> None:
        """Refuse what must queue when not even one sequence has room. Asked before the body is read and any route is
        found: at four times the load that can be carried, three of four requests end here.
        """
        if path in QUEUING:
            self._check_ready()
            self.admission.check(1, self.llm.ready.plan.max_rows, self._expected(1, time.monotonic_ns()))

    async def page(self, http: HttpRequest) -> Response:
        return page()

    async def is_ready(self, http: HttpRequest) -> Response:
        """Ready: a request that comes now would get on."""
        self._check_ready()
        if self.llm.stalled:
            raise HttpError(503, "the engine does not get on", "unavailable_error", code="stalled")
        return Json({"status": "ok"})

    async def is_live(self, http: HttpRequest) -> Response:
        if self.llm.ended.is_set():
            raise EngineDead
        return Json({"status": "ok"})

    async def models(self, http: HttpRequest) -> Response:
        return Json({"object": "list", "data": [self._card()]})

    async def one_model(self, http: HttpRequest) -> Response:
        self._check_model(http.path_params["id"])
        return Json(self._card())

    async def scrape(self, http: HttpRequest) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def status(self, http: HttpRequest) -> Response:
        self._check_ready()
        llm, ready, hardware = self.llm, self.llm.ready, self.llm.ready.loaded.hardware
        checks = self.outlook.checks(ready.model, hardware, self.options.calibration) if hardware else []
        found = predictions(ready, llm.taken_bytes, checks, self.metrics.foretold_s)
        return Json(status(self.model, llm.config, ready, llm.stats, found))

    async def info(self, http: HttpRequest) -> Response:
        t = self.tokenizer
        name = lambda i: None if i is None else t.token_str(i)
        return Json({"eos_token": name(t.eos_id), "bos_token": name(t.bos_id), "pad_token": None,
                             "vocab_size": t.vocab_size, "chat_template": self.chat_form.template})

    async def props(self, http: HttpRequest) -> Response:
        """llama.cpp's page of facts, as far as they are meant for clients."""
        self._check_ready()
        plan = self.llm.ready.plan
        settings = {"n_ctx": plan.max_model_len, "params": self.intake.defaults}
        return Json({"default_generation_settings": settings, "total_slots": plan.max_rows,
                             "model_alias": self.model, "chat_template": self.chat_form.template,
                             "build_info": __version__})

    async def version(self, http: HttpRequest) -> Response:
        return Json({"version": __version__})

    async def openapi(self, http: HttpRequest) -> Response:
        return Json(document({path: (method, body) for path, (method, _, body) in ROUTES.items()}, __version__))

    async def tokenize(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Tokenize)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("give either prompt or messages", "prompt")
        if body.messages is not None:
            ids, _ = await self.intake.encode_chat(body)
        else:
            ids = await self.intake.encode(body.prompt, body.add_special_tokens)
        names = await run_in_threadpool(lambda: [self.tokenizer.token_str(t) for t in ids])
        return _json({"tokens": ids, "count": len(ids), "max_model_len": self.intake.limit, "token_strs": names},
                     warnings)

    async def detokenize(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Detokenize)
        self.intake.check_ids(body.tokens, "tokens")
        return _json({"prompt": self.tokenizer.decode(body.tokens, skip_special_tokens=False)}, warnings)

    async def embed(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Embeddings)
        width = self.llm.ready.model.width
        if body.dimensions not in (None, width):
            raise RequestError(f"dimensions must be {width}, which is what the model has", "dimensions")
        job = await self._pooled(http, prompts_of(body.input, "input"), "input")
        made = embedding_list(_vectors(job), body.encoding_format, self.model, job.usage()["prompt_tokens"])
        return _json(made | ({"timings": job.timings()} if body.timings else {}), warnings)

    async def score(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Score)
        texts = [text for pair in body.pairs() for text in pair]
        job = await self._pooled(http, texts, "text_1")
        vectors = _vectors(job)
        scores = list(map(cosine, vectors[::2], vectors[1::2]))
        return _json(score_list(scores, self.model, int(time.time()), job.usage()["prompt_tokens"]), warnings)

    async def rerank(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Rerank)
        job = await self._pooled(http, [body.query, *body.documents], "documents")
        query, *documents = _vectors(job)
        scores = [cosine(query, d) for d in documents]
        return _json(ranking(body, scores, self.model, job.usage()["prompt_tokens"]), warnings)

    async def complete(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Completion)
        own = {"logprobs": body.logprobs, "max_tokens": 16 if body.max_tokens is None else body.max_tokens}
        if body.echo:
            own["prompt_logprobs"] = body.logprobs if body.prompt_logprobs is None else body.prompt_logprobs
            if body.stream:
                raise RequestError("echo cannot be streamed", "echo")
        elif body.max_tokens == 0 and body.prompt_logprobs is None:
            raise RequestError("max_tokens 0 needs echo or prompt_logprobs", "max_tokens")
        form = await self.intake.structured(body)
        params = sampling(body, self.intake.defaults, structured_outputs=form.asked, **own)
        stamps = _parsed(http)
        prompts = [await self.intake.ids(p, body.add_special_tokens) for p in body.prompts()]
        job = self._job(body, params, prompts, stamps, form)
        return await self._answer(http, body, job, CompletionReply(job, body, self.model, self.tokenizer), warnings)

    async def chat(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, ChatCompletion)
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs", "top_logprobs")
        if most == 0:
            raise RequestError("max_tokens must be at least 1", "max_tokens")
        form = await self.intake.reading(body)
        params = sampling(body, self.intake.defaults, max_tokens=most, structured_outputs=form.asked,
                          logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        stamps = _parsed(http)
        ids, rendered_ns = await self.intake.encode_chat(body, form.shown)
        job = self._job(body, params, [ids], replace(stamps, rendered_ns=rendered_ns), form, "messages")
        reply = ChatReply(job, body, self.model, self.tokenizer, lambda: self._reader(form, ids))
        return await self._answer(http, body, job, reply, warnings)

    async def respond(self, http: HttpRequest) -> Response:
        body, warnings = await self._body(http, Responses)
        chat = body.chat()
        form = await self.intake.reading(chat)
        params = sampling(chat, self.intake.defaults, max_tokens=body.max_output_tokens, structured_outputs=form.asked)
        stamps = _parsed(http)
        ids, rendered_ns = await self.intake.encode_chat(chat, form.shown)
        job = self._job(chat, params, [ids], replace(stamps, rendered_ns=rendered_ns), form, "input")
        reply = ResponsesReply(job, body, self.model, self._reader(form, ids))
        return await self._answer(http, chat, job, reply, warnings)

    def _reader(self, form: Reading, ids: list[int]) -> Answer:
        """What takes the text of one sample of a chat apart."""
        return Answer(form.parser(self.intake.thinks(ids, form.marks)), form.form.id_chars if form.form else 24)

    def _job(self, body: Sampled, params: SamplingParams, prompts: list[list[int]], stamps: Stamps, form: Reading,
             param: str = "prompt") -> Job:
        if len(prompts) * params.n > MAX_SEQUENCES:
            raise RequestError(f"{len(prompts)} prompts with n {params.n} are more than {MAX_SEQUENCES} answers", "n")
        requests = [self.intake.request(ids, params, stamps, body, param) for ids in prompts]
        return Job(requests, self.llm, self.tokenizer, self.metrics, form)

    async def _answer(self, http: HttpRequest, body: Sampled, job: Job, reply: Reply, warnings: list[str]) -> Response:
        if body.stream:
            if body.prompt_logprobs is not None:
                raise RequestError("prompt_logprobs cannot be streamed", "prompt_logprobs")
            return HeldStream(self._admit(job), events(job, reply), media_type="text/event-stream",
                              headers=_header(warnings) | {"cache-control": "no-cache"})
        with self._admit(job):
            await until_gone(http, job.drain())
        return _json(reply.whole(), warnings)

    def _admit(self, load: Load) -> Place:
        expected = self._expected(load.prompt_tokens, load.arrived_ns)
        load.predicted_ttft_s = expected.ttft_s
        return self.admission.admit(load, self.llm.ready.plan.max_rows, expected)

    def _expected(self, prompt_tokens: int, arrived_ns: int) -> Expected:
        return self.outlook.expected(prompt_tokens, arrived_ns, self.admission.loads, self.llm.ready.plan)

    async def _pooled(self, http: HttpRequest, prompts: list[Any], param: str) -> Job:
        """The prompts' mean embeddings."""
        stamps = _parsed(http)
        ids = [await self.intake.ids(p, param=param) for p in prompts]
        requests = [self.intake.request(i, SamplingParams(), stamps, param=param, pooling="mean") for i in ids]
        job, load = Job(requests, self.llm, self.tokenizer, self.metrics), Vectors(requests)
        with self._admit(load):
            job.predicted_ttft_s = load.predicted_ttft_s
            await until_gone(http, job.drain())
        return job

    async def _body(self, http: HttpRequest, kind: type) -> tuple[Any, list[str]]:
        self._check_ready()
        data = await read_body(http, self.options.body_limit_s)
        body, unknown = await run_in_threadpool(parse, data, kind) if len(data) > LARGE else parse(data, kind)
        if body.model is not None:
            self._check_model(body.model)
        return body, unknown

    def _check_ready(self) -> None:
        if self.llm.ended.is_set():
            raise EngineDead
        if self.draining:
            raise HttpError(503, "the server is shutting down", "unavailable_error", code=503, retry_after_s=5)
        if self.llm.ready is None:
            raise HttpError(503, "Loading model", "unavailable_error", code=503, retry_after_s=1)

    def _check_model(self, name: str) -> None:
        if name != self.model:
            raise HttpError(404, f"the model {name!r:.200} does not exist; this is {self.model!r}", param="model",
                            code="model_not_found")

    def _card(self) -> dict[str, Any]:
        return model_card(self.model, self.created, self.intake.limit if self.llm.ready else None)


def slo_ttft_s(options: ServeOptions) -> float | None:
    return None if options.slo_ttft is None else parse_seconds(options.slo_ttft)


def guarded(run: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Awaitable[Response]]:
    """The route with every foreseen error in OpenAI's form."""
    async def route(http: HttpRequest) -> Response:
        try:
            return await run(http)
        except FORESEEN as error:
            made = http_error(error)
            return Json(made.body, made.status, made.headers)
        except ClientDisconnect:
            return Response(status_code=499)
    return route


def _parsed(http: HttpRequest) -> Stamps:
    """Now; and, as long as no template follows, rendered too."""
    now_ns = time.monotonic_ns()
    return Stamps(http.state.arrived_ns, now_ns, now_ns)


async def _plain_error(http: HttpRequest, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    kind = "internal_error" if status == 500 else "invalid_request_error"
    detail = "internal error" if status == 500 else getattr(error, "detail", "")
    return Json(HttpError(status, detail, kind, code=status).body, status)


def _vectors(job: Job) -> list[list[float]]:
    if any(a.embedding is None for a in job.assemblies):
        raise HttpError(500, "the engine gave no embedding", "internal_error")
    return [list(a.embedding or ()) for a in job.assemblies]


class Json(Response):
    """Encoded ten times faster than by the standard library: megabytes hold the event loop for milliseconds."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def _json(body: dict[str, Any], warnings: list[str]) -> Json:
    return Json(body, headers=_header(warnings))


def _header(unknown: list[str]) -> dict[str, str]:
    names = ", ".join(n.encode("ascii", "replace").decode() for n in unknown)[:500]
    printable = "".join(c if c.isprintable() else "?" for c in names)
    return {"warnings": f"ignored unknown fields: {printable}"} if unknown else {}
