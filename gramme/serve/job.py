"""One HTTP request for tokens on its way through the engine: Requests in, text out. Knows no JSON and no HTTP."""
import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gramme.llm.assembly import Assembly, assemble
from gramme.plan.receipts import Power, as_json
from gramme.request import Request, RequestError, Spent, Update
from gramme.serve.async_llm import AsyncLLM
from gramme.serve.errors import HttpError
from gramme.serve.metrics import Metrics
from gramme.serve.tools import Reading
from gramme.text.tokenizer import Tokenizer


class Job:
    """Its prompts, each an Assembly; all have the same SamplingParams."""

    def __init__(self, requests: list[Request], llm: AsyncLLM, tokenizer: Tokenizer, metrics: Metrics,
                 reading: Reading = Reading()):
        self.assemblies = [assemble(r, tokenizer, shown=reading.visible(tokenizer)) for r in requests]
        self.params = requests[0].params
        self.created = int(time.time())
        self.fingerprint = llm.fingerprint
        self.arrived_ns, self.sequences = requests[0].stamps.arrived_ns, len(requests) * self.params.n
        self.prompt_tokens = len(requests[0].prompt_token_ids)  # of the prompt whose answer comes first
        self.waiting_tokens = sum(len(r.prompt_token_ids) for r in requests)  # of the prompts that have no token yet
        self.predicted_ttft_s: float | None = None
        self._llm, self._metrics, self._reading = llm, metrics, reading

    async def run(self) -> AsyncIterator[tuple[int, Update, str]]:
        """(which prompt, update, its new text) until every sample has ended; closing it earlier ends the requests.

        An update's reasons are the text's: a stop string may have ended it. The assemblies may be further already.
        Each update's part of the answer is to be handed over before the next is asked for.
        """
        left = [self.params.n] * len(self.assemblies)
        async with aclosing(_merge([self._one(a) for a in self.assemblies])) as merged:
            async for which, (update, text) in merged:
                yield which, update, text
                left[which] -= update.finish_reason is not None
                if not left[which]:
                    self._metrics.finished(self.assemblies[which])
        if len(self.assemblies) == 1 and self.predicted_ttft_s is not None:
            self._metrics.foretold(self.predicted_ttft_s, self.assemblies[0].metrics.stamps.ttft_ns / 1e9)

    async def drain(self) -> None:
        async with aclosing(self.run()) as updates:
            async for which, _, _ in updates:
                self.assemblies[which].handed_over()

    def usage(self) -> dict[str, Any]:
        prompt = sum(len(a.request.prompt_token_ids) for a in self.assemblies)
        made = sum(len(t) for a in self.assemblies for t in a.tokens)
        cached = sum(a.metrics.cached_tokens for a in self.assemblies)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
                "prompt_tokens_details": {"cached_tokens": cached}}

    def timings(self) -> dict[str, Any]:
        """llama.cpp's names: milliseconds from arrival to the first of the answer, and from there to the last token.
        Beside them the ledger of the first of these, in nanoseconds; of several prompts, that which was first.
        `mask_ns` is a part of prefill: what the grammar's first mask took."""
        m = min((a.metrics for a in self.assemblies), key=lambda m: m.stamps.flushed_ns or math.inf)
        first = m.stamps
        last_ns = max(a.metrics.newest_ns for a in self.assemblies)
        used, prompt_ms = self.usage(), first.ttft_ns / 1e6
        predicted_ms = max(0, last_ns - first.flushed_ns) / 1e6
        n, cached = used["completion_tokens"], used["prompt_tokens_details"]["cached_tokens"]
        computed = used["prompt_tokens"] - cached
        return {"prompt_n": computed, "prompt_ms": prompt_ms, "prompt_per_second": _rate(computed, prompt_ms),
                "predicted_n": n, "predicted_ms": predicted_ms, "predicted_per_second": _rate(n - 1, predicted_ms),
                "cache_n": cached, "ttft_ns": first.ttft_ns, "ttft_parts_ns": first.parts(),
                "mask_ns": m.mask_ns, "predicted_ttft_ns": round(1e9 * (self.predicted_ttft_s or 0.0)),
                "receipt": self._receipt()}

    def _receipt(self) -> dict[str, Any]:
        stats = self._llm.stats
        spent = sum((a.metrics.spent for a in self.assemblies), Spent())
        return as_json(spent, Power(watts=stats.watts, source=stats.power_source), self._llm.ready.plan.price)

    async def _one(self, assembly: Assembly) -> AsyncIterator[tuple[Update, str]]:
        async with aclosing(self._llm.generate(assembly.request)) as updates:
            async for u in updates:
                if assembly.reasons[u.index] is not None:
                    continue  # tokens that were on their way when a stop string was found
                before, text = assembly.metrics, assembly.feed(u)
                if assembly.metrics.stamps.sampled_ns and not before.stamps.sampled_ns:
                    self.waiting_tokens -= len(assembly.request.prompt_token_ids)
                if u.token_ids:
                    self._metrics.progressed(before, assembly.metrics)
                if u.error_param is not None:
                    raise RequestError(str(u.error), self._reading.param)
                if u.finish_reason == "error":
                    raise HttpError(500, u.error or "the engine failed", "internal_error", code="engine_error")
                if u.finish_reason == "deadline":
                    raise _late(assembly.metrics.stamps.scheduled_ns > 0)
                reason, stop = assembly.reasons[u.index], assembly.stops[u.index]
                if reason and u.finish_reason is None:
                    self._llm.finish(u.id, u.index)
                yield replace(u, finish_reason=reason, stop_reason=stop), text
                if assembly.finished:
                    break


def _late(ran: bool) -> HttpError:
    if not ran:
        return HttpError(503, "the request waited too long for its turn", "unavailable_error", code="queue_timeout",
                         retry_after_s=5)
    return HttpError(504, "the request ran for too long", "timeout_error", code="run_timeout")


def _rate(tokens: int, ms: float) -> float | None:
    return tokens / ms * 1e3 if ms > 0 else None


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
