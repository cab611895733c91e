"""A server whose engine says what the test wants, in the pieces that the test wants; no test in here."""
import asyncio
from dataclasses import replace
from pathlib import Path

import httpx2
import openai

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig
from gramme.llm.report import Loaded
from gramme.plan.hardware import Hardware
from gramme.plan.planner import plan
from gramme.request import EngineStats, Update
from gramme.serve.app import Server
from gramme.serve.guard import Guard
from gramme.serve.messages import Ready
from gramme.serve.options import ServeOptions
from gramme.text.chat import Chat
from gramme.text.tokenizer import load_tokenizer

EMBEDDED = Path(__file__).parents[2] / "gramme" / "embedded"
MODEL = ModelConfig(family="llama", vocab_size=4096, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, ff_width=8,
                    norm_eps=1e-5, max_positions=4096)


class Says:
    """An engine that answers every request with `text`, `step` tokens at a time, and remembers the requests.

    `left` counts those whose client went before the end.
    """

    stalled = False
    failed = None
    fingerprint = "fp"
    stats = EngineStats()
    taken_bytes = 0
    config = EngineConfig(backend="reference")

    def __init__(self, tokenizer, text, step=3, reason="stop", pause_s=0.0):
        machine = Hardware(cores=1, free_bytes=1 << 32)
        self.ready = Ready(MODEL, plan(MODEL, self.config, machine), GenerationDefaults(), Loaded(hardware=machine))
        self.tokenizer, self.text, self.step, self.reason = tokenizer, text, step, reason
        self.requests, self.ended, self.pause_s, self.left = [], asyncio.Event(), pause_s, 0

    async def start(self):
        pass

    async def close(self):
        pass

    def finish(self, id, index):
        pass

    async def generate(self, request):
        self.requests.append(request)
        self.left += 1
        ids = self.tokenizer.encode_plain(self.text)
        for i in range(request.params.n):
            for at in range(0, len(ids), self.step):
                await asyncio.sleep(self.pause_s)
                stamps = None if i or at else replace(request.stamps, due_ns=1, scheduled_ns=1, sampled_ns=1)
                yield Update(id=request.id, index=i, token_ids=tuple(ids[at : at + self.step]), stamps=stamps)
            self.left -= i == request.params.n - 1
            yield Update(id=request.id, index=i, finish_reason=self.reason)


class Templates:
    """Renders nothing: the prompt is the roles and contents, then `prefix`; remembers what templates are given."""

    def __init__(self, prefix=""):
        self.prefix, self.given = prefix, []

    def render(self, template, variables):
        self.given.append(variables)
        return "".join(f"{m['role']}: {m['content']}\n" for m in variables["messages"]) + self.prefix

    def close(self):
        pass


class Stub:
    """The real routes over the stub: `app`."""

    def __init__(self, template, text, prefix="", options=ServeOptions(), **says):
        self.tokenizer = load_tokenizer(EMBEDDED)
        self.engine, self.templates = Says(self.tokenizer, text, **says), Templates(prefix)
        self.server = Server(self.engine, self.tokenizer, Chat(template, self.templates), "stub", options)
        guarded = Guard(self.server.app(), options, lambda record: None, self.server.check_room)

        async def app(scope, receive, send):
            await guarded({"state": {}} | scope, receive, send)

        self.app = app

    async def post(self, path, body):
        async with self._http() as http:
            return await http.post(path, json=body)

    async def chat(self, **body):
        """With openai's own client: the answer, or the list of a stream's chunks."""
        return await self._ask(lambda client: client.chat.completions, body)

    async def respond(self, **body):
        return await self._ask(lambda client: client.responses, body)

    async def _ask(self, kind, body):
        async with openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="-", max_retries=0,
                                      http_client=self._http()) as client:
            reply = await kind(client).create(model="stub", **body)
            return [chunk async for chunk in reply] if body.get("stream") else reply

    def _http(self):
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://127.0.0.1")
