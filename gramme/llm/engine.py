"""The engine loop: requests in, updates out, one step at a time. Speaks token ids; knows no text and no kernel.

The path of a request: Engine.add -> Scheduler.schedule -> Runner.launch, collect -> Scheduler.commit -> Update.
"""
import sys
import time
import traceback
from dataclasses import dataclass, replace

import numpy as np

from gramme.config import LOSS, EngineConfig, GenerationDefaults, ModelConfig, Plan
from gramme.core.batch import Batch
from gramme.core.pages import PagePool
from gramme.core.scheduler import Event, Scheduler
from gramme.core.sequence import Sequence
from gramme.grammar.compiler import Compiled, Grammars
from gramme.kernels.load import Backend, backend, machine
from gramme.kernels.present import available, missing
from gramme.llm.energy import PowerMeter, power
from gramme.llm.meter import Meter, piece
from gramme.llm.report import Loaded, found
from gramme.llm.vocabulary import vocabulary
from gramme.models.layouts import Layouts, folder, layouts, refusal
from gramme.models.load import build
from gramme.models.open import Opened, open_model
from gramme.plan.hardware import this_machine
from gramme.plan.limits import resident_bytes
from gramme.plan.memory import results_bytes
from gramme.plan.planner import plan
from gramme.request import (
    NOTHING,
    EngineStats,
    FinishReason,
    Request,
    RequestError,
    Scores,
    Spent,
    Stamps,
    StructuredOutputsParams,
    Update,
)
from gramme.runtime.runner import Launched, RowResult, Runner
from gramme.runtime.sampler import Chooser

IDLE_WAIT_S = 0.02  # for a grammar, when there is nothing else to do


@dataclass(eq=False)
class Live:
    """What the engine keeps for one sequence of a request until it has ended."""

    request: Request  # without its tokens, which the sequence has
    seq: Sequence
    chooser: Chooser
    prompt_logprobs: Scores | None = None  # grows while the prompt runs; None: not asked or delivered
    pooled: np.ndarray | None = None
    spent: Spent = NOTHING
    refusal: RequestError | None = None  # its grammar could not be compiled, or there was no memory for it
    due_ns: int = 0  # as in Stamps
    scheduled_ns: int = 0
    stamped: bool = False  # an update has taken its stamps along


class Engine:
    """Scheduler and runner under one roof. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, model: ModelConfig, decided: Plan, defaults: GenerationDefaults, runner: Runner,
                 grammars: Grammars | None = None, loaded: Loaded | None = None, drawn: PowerMeter | None = None):
        self.model, self.plan, self.defaults, self.runner = model, decided, defaults, runner
        self.loaded = loaded or found(runner.backend)
        pool = PagePool(decided.pages, decided.page_size)
        self.scheduler = Scheduler(pool, decided.max_rows, decided.max_batch_tokens,
                                   prefix_caching=decided.prefix_caching)
        self._pool = pool
        self._eos = frozenset(model.eos_token_ids) | frozenset(defaults.eos_token_ids)
        self._live: dict[Sequence, Live] = {}
        self._by_id: dict[str, list[Sequence]] = {}
        self._flying: Launched | None = None
        self._added = 0
        self._grammars = grammars
        self._compiling: list[tuple[Compiled, list[Live]]] = []
        self._rows = 0
        self._counts = {"steps": 0, "step_s": 0.0, "cpu_s": 0.0, "prompt_tokens": 0,
                        "generated_tokens": 0}
        self.meter = Meter(decided.tariff, drawn or power(decided), time.monotonic_ns() / 1e9)

    @classmethod
    def load(cls, config: EngineConfig, opened: Opened | None = None) -> "Engine":
        """Plan, then load. Raises ModelError or ConfigError with one line that says what is wrong."""
        began_s, opened = time.monotonic(), opened or open_model(config)
        host = replace(this_machine(), backends=available())
        name = host.backends[0] if config.backend == "auto" else config.backend
        hardware = machine(name, host)
        decided = plan(opened.config, config, hardware)
        drawn = power(decided)
        slow = missing() if config.backend == "auto" and decided.backend == "reference" else None
        losses = [note for note in opened.config.notes if note.startswith(LOSS)]
        for note in losses + ([slow] if slow else []):
            print(f"gramme: {note}", file=sys.stderr)
        kernels = backend(decided.backend, decided.threads, decided.deterministic, decided.half)
        without = resident_bytes()
        kept = layouts(opened.name, opened.files, kernels, decided.dtype, decided.ledger.weights) \
            if config.layout_cache else None
        decoder = build(opened.config, opened.source, kernels, decided.dtype, decided.max_model_len, kept=kept)
        opened.check_all_used()
        if kept is not None:
            kept.close()
        told = opened.text, opened.config, opened.defaults  # not its source: the file would stay mapped beside its copy
        grammars = None if config.skip_tokenizer_init else Grammars(lambda: vocabulary(*told))
        runner = Runner(opened.config, decided, decoder, kernels)
        loaded = found(kernels, hardware, time.monotonic() - began_s, without,
                       *_layout(config, opened, kernels, decided, kept))
        return cls(opened.config, decided, opened.defaults, runner, grammars, loaded, drawn)

    @property
    def taken_bytes(self) -> int:
        """What this process takes beyond one that has loaded no model: anonymous memory and mapped weights."""
        return resident_bytes() - self.loaded.without_bytes

    @property
    def busy(self) -> bool:
        return bool(self._live) or self._flying is not None

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError, with the numbers, when it can never run."""
        if request.id in self._by_id:
            raise RequestError(f"a request with id {request.id!r:.80} is already running", "id")
        lives = [self._sequence(request, i) for i in range(request.params.n)]
        if request.params.structured_outputs is not None:
            self._compile(request.params.structured_outputs, lives)
        self.scheduler.hash_once([live.seq for live in lives])
        for live in lives:
            self.scheduler.add(live.seq)
        self._by_id[request.id] = [live.seq for live in lives]
        self._live |= {live.seq: live for live in lives}
        self._added += 1
        self._counts["prompt_tokens"] += len(request.prompt_token_ids)

    def holds(self, request_id: str) -> bool:
        """Whether a request has not ended yet."""
        return request_id in self._by_id

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
        began_ns, began_cpu_s = time.monotonic_ns(), time.process_time()
        self.meter.begin(began_ns / 1e9)
        self._take_compiled()
        launched = self._launch(self.scheduler.schedule(began_ns / 1e9), began_ns)
        self._rows = len(launched.batch.rows)
        ready = [launched]
        if self.plan.run_ahead:
            ready, self._flying = [self._flying] if self._flying else [], launched
            if not launched.batch.rows:  # nothing to wait for
                ready, self._flying = [*ready, launched], None
        updates = [update for step in ready for update in self._commit(step)]
        self._counts["steps"] += 1
        self._counts["step_s"] += (time.monotonic_ns() - began_ns) / 1e9
        self._counts["cpu_s"] += time.process_time() - began_cpu_s
        if self._compiling and not launched.batch.rows and self._flying is None:
            self._compiling[0][0].wait(IDLE_WAIT_S)  # nobody else has work
            self.meter.charge(time.monotonic_ns() / 1e9, ())
        self.meter.end(time.monotonic_ns() / 1e9, self.busy)
        return updates

    def handed_over(self) -> None:
        """What the last step brought has reached its readers: the time for that is its rows', not nobody's."""
        self.meter.end(time.monotonic_ns() / 1e9, self.busy)

    def hold(self) -> None:
        """Take and touch the memory of the largest step now, so that none is missing in the middle of an answer. Who
        runs one prompt leaves it: its steps may never be so large."""
        self.runner.device.hold(results_bytes(self.plan))

    def idle(self) -> bool:
        """Do one thing that waits until nothing else is to be done; whether there was one."""
        return self.runner.graphs.idle()

    def stats(self) -> EngineStats:
        s, graphs, meter = self.scheduler, self.runner.graphs, self.meter
        return EngineStats(
            running=len(s.running), waiting=len(s.waiting), **self._prefilling(), pages_used=self._pool.used,
            pages_cached=self._pool.cached, pages_total=self.plan.pages - 1, rows=self._rows,
            preemptions=s.preemptions, prefix_queried_tokens=s.prefix_queried_tokens,
            prefix_hit_tokens=s.prefix_hit_tokens, prefill_chunks=s.prefill_chunks, rows_ahead=s.rows_ahead,
            drafted_tokens=s.drafted_tokens, accepted_tokens=s.accepted_tokens, captured=graphs.captured,
            replayed=graphs.replayed, halved=self.runner.halved, spent=meter.total, other_s=meter.other_s,
            idle_s=meter.idle_s, watts=meter.power.watts, power_source=meter.power.source, **self._counts,
            **self._grammar_stats(),
        )

    def _prefilling(self) -> dict[str, int]:
        begun = [seq for seq in self.scheduler.running if not seq.generated]
        return {"prefilling": len(begun), "prefilling_tokens": sum(seq.prompt_len for seq in begun),
                "prefilled_tokens": sum(seq.cached for seq in begun)}

    def _grammar_stats(self) -> dict[str, float]:
        if self._grammars is None:
            return {}
        m = self._grammars.meter
        return {"grammar_masks": m.masks, "grammar_mask_s": m.mask_s, "grammar_compile_s": m.compile_s}

    def _compile(self, asked: StructuredOutputsParams, lives: list[Live]) -> None:
        """The grammar is compiled beside the steps of others; until it is there, these sequences are held."""
        if self._grammars is None:
            raise RequestError("a form needs the model's tokenizer, which was not loaded", "structured_outputs")
        for live in lives:
            live.seq.held = True
        self._compiling.append((self._grammars.compile(asked), lives))

    def _take_compiled(self) -> None:
        for compiled, lives in [pair for pair in self._compiling if pair[0].ready]:
            self._compiling.remove((compiled, lives))
            for live in lives:
                self._release(live, compiled)

    def _release(self, live: Live, compiled: Compiled) -> None:
        try:
            live.chooser.matcher = compiled.matcher()
        except RequestError as error:
            live.refusal = error
            self.scheduler.finish(live.seq, "error")
        live.seq.held = False

    def _sequence(self, request: Request, index: int) -> Live:
        params = request.params
        params.check(self.model.vocab_size)
        max_tokens = self._check_prompt(request)
        prompt_only = request.pooling is not None or max_tokens == 0
        scores = params.prompt_logprobs is not None and request.pooling is None
        seed = self.plan.seed + self._added if params.seed is None else params.seed  # asked again, answered anew
        chooser = Chooser(params, index, seed, self._eos, self.model.vocab_size, request.bad_word_ids)
        goes_on = params.ignore_eos and params.structured_outputs is None  # a form ends where its grammar does
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if goes_on else self._eos)
        seq = Sequence(
            id=request.id, index=index, tokens=request.prompt_token_ids, max_tokens=max_tokens, stop_ids=stop_ids,
            priority=request.priority, start_by_s=request.start_by_s, deadline_s=request.deadline_s,
            root=f"{self.plan.dtype} {self.plan.kv_dtype} {request.cache_salt}".encode(),
            runs_ahead=not chooser.needs_history, caches=not scores and request.pooling is None, pooling=prompt_only,
        )
        return Live(replace(request, prompt_token_ids=()), seq, chooser, Scores() if scores else None)

    def _check_prompt(self, request: Request) -> int:
        """The number of tokens to generate, after every bound that needs the model."""
        prompt, limit, most = request.prompt_token_ids, self.plan.max_model_len, request.params.max_tokens
        if not prompt:
            raise RequestError("the prompt is empty", "prompt")
        if not all(type(t) is int and 0 <= t < self.model.vocab_size for t in prompt):
            raise RequestError(f"prompt token ids must be integers from 0 to {self.model.vocab_size - 1}", "prompt")
        room = limit - len(prompt)
        if room < (0 if request.pooling or most == 0 else 1):
            held = f"the context of {limit} holds prompt and answer"
            raise RequestError(f"the prompt has {len(prompt)} tokens, {held}", "prompt")
        return 0 if request.pooling else room if most is None else min(most, room)

    def _launch(self, batch: Batch, now_ns: int) -> Launched:
        lives = [self._live.get(row.seq) for row in batch.rows]
        self._stamp(lives, now_ns)
        launched = self.runner.launch(
            batch, [live.chooser for live in lives], [live.request.pooling for live in lives], self._flying)
        for row in launched.failed:
            lives[row].refusal = RequestError("the device's memory does not suffice for a single token of this request")
            self.scheduler.finish(lives[row].seq, "error")
        return launched

    def _stamp(self, lives: list[Live], now_ns: int) -> None:
        """Those whose first row was planned, and those whose turn it would be, were it not for their grammar."""
        for live in lives:
            live.scheduled_ns = live.scheduled_ns or now_ns
        for live in [*lives, *(live for _, held in self._compiling for live in held)]:
            if live.seq.due:
                live.due_ns = live.due_ns or now_ns

    def _commit(self, launched: Launched) -> list[Update]:
        results, rows = self.runner.collect(launched), launched.batch.rows
        for row, result in zip(rows, results, strict=True):
            self._gather(row.seq, row.start, result)
            self._cut(row.seq, result)
        before = [(row.seq.had, row.seq.finish_reason is not None) for row in rows]
        now_ns = time.monotonic_ns()
        events = self.scheduler.commit(launched.batch, [r.tokens for r in results], now_ns / 1e9)
        new = {e.row: len(e.tokens) for e in events}
        pieces = [piece(row, *known, new.get(i, 0), len(result.prompt_logprobs) - 1)
                  for i, (row, known, result) in enumerate(zip(rows, before, results, strict=True))]
        for row, spent in zip(rows, self.meter.charge(now_ns / 1e9, pieces), strict=True):
            self._book(row.seq, spent)
        return [self._update(e, results[e.row] if e.row >= 0 else RowResult(), now_ns) for e in events]

    def _book(self, seq: Sequence, spent: Spent) -> None:
        live = self._live.get(seq)  # None: it ended while this step ran ahead
        if live is not None and live.spent is NOTHING:
            found = Spent(cached_tokens=seq.hit_tokens)
            spent, self.meter.total = spent + found, self.meter.total + found
        if live is not None:
            live.spent += spent

    def _gather(self, seq: Sequence, start: int, result: RowResult) -> None:
        """Prompt scores and pooled states, chunk by chunk; a prompt that starts anew after preemption replaces them."""
        live = self._live.get(seq)
        if live is None:
            return
        if live.prompt_logprobs is not None:
            live.prompt_logprobs.put(start, result.prompt_logprobs)
        if result.pooled is not None:
            add = start > 0 and live.request.pooling == "mean"
            live.pooled = live.pooled + result.pooled if add else result.pooled

    def _cut(self, seq: Sequence, result: RowResult) -> None:
        """Drop what came after the end of the grammar: with guesses, a row may reach beyond it."""
        live = self._live.get(seq)
        if live is None or live.chooser.matcher is None:
            return
        answer = seq.tokens[seq.prompt_len :]
        ends = (k for k in range(1, len(result.tokens)) if live.chooser.ended([*answer, *result.tokens[:k]]))
        del result.tokens[next(ends, len(result.tokens)) :]

    def _update(self, event: Event, result: RowResult, now_ns: int) -> Update:
        seq = event.seq
        live = self._live[seq]
        self._counts["generated_tokens"] += len(event.tokens)
        scores, reason = None, event.finish_reason
        if event.tokens or reason:
            scores, live.prompt_logprobs = live.prompt_logprobs, None
        if reason == "stop" and seq.pooling and live.request.pooling is None:
            reason = "length"  # nothing was to be generated
        if event.tokens and reason in (None, "length") and live.chooser.ended(seq.tokens[seq.prompt_len :]):
            self.scheduler.finish(seq, "stop")  # comes with the next commit; no step is run for the end token alone
            reason = reason and "stop"
        if reason:
            self._forget(seq)
            if live.chooser.fault is not None:
                traceback.print_exception(live.chooser.fault)
        wants = live.request.params.logprobs is not None and event.tokens
        return Update(
            id=seq.id, index=seq.index, token_ids=tuple(event.tokens), finish_reason=reason,
            logprobs=tuple(result.logprobs[: len(event.tokens)]) if wants else None,
            stop_reason=self._stop_reason(event), prompt_logprobs=scores, embedding=_embedding(live, reason),
            error=str(_refusal(live)) if reason == "error" else None,
            error_param=_refusal(live).param if reason == "error" else None,
            cached_tokens=seq.hit_tokens, stamps=_stamps(live, event, now_ns),
            mask_ns=live.chooser.matcher.spent_ns if live.chooser.matcher else 0, spent=live.spent,
        )

    def _stop_reason(self, event: Event) -> int | None:
        last = event.tokens[-1] if event.finish_reason == "stop" and event.tokens else None
        return None if last in self._eos else last

    def _forget(self, seq: Sequence) -> None:
        del self._live[seq]
        left = [s for s in self._by_id[seq.id] if s is not seq]
        if left:
            self._by_id[seq.id] = left
        else:
            del self._by_id[seq.id]


def _layout(config: EngineConfig, opened: Opened, kernels: Backend, decided: Plan,
            kept: Layouts | None) -> tuple[str, str]:
    """What became of the laid-out weights, and why."""
    if kept is not None:
        return ("mapped", "") if kept.mapped else ("written", "")
    why = refusal(opened.files, kernels, decided.ledger.weights) or f"there was no room in {folder()}"
    return "none", why if config.layout_cache else "--no-layout-cache"


def _refusal(live: Live) -> RequestError:
    """Why a request ended with reason "error"; with `param` where the request is at fault."""
    if live.refusal is not None:
        return live.refusal
    matcher = live.chooser.matcher
    if live.chooser.fault is not None:
        return RequestError("internal error")
    if matcher is None:
        return RequestError("the model's logits were not finite")
    why = matcher.error or "the other limits forbid the rest, or the logits were not finite"
    return RequestError(f"the grammar allows no token here: {why}", "structured_outputs" if matcher.error else None)


def _stamps(live: Live, event: Event, now_ns: int) -> Stamps | None:
    """With the first tokens, or with the end of what had none."""
    if live.stamped or not (event.tokens or event.finish_reason):
        return None
    live.stamped = True
    sampled = event.tokens or (live.seq.pooling and event.finish_reason == "stop")
    return replace(live.request.stamps, due_ns=live.due_ns, scheduled_ns=live.scheduled_ns,
                   sampled_ns=now_ns if sampled else 0)


def _embedding(live: Live, reason: FinishReason | None) -> tuple[float, ...] | None:
    if live.pooled is None or reason != "stop":
        return None
    vector = live.pooled / live.seq.prompt_len if live.request.pooling == "mean" else live.pooled
    return tuple(float(x) for x in vector)
