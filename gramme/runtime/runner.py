"""Runs a batch: arrays to the device, the decoder, the choices, the results back. Knows no queue and no text."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from gramme.config import ModelConfig, Plan
from gramme.core.batch import Batch, Row
from gramme.kernels.load import Backend
from gramme.kernels.ops import Array, Edits, Sampled, Sampling, Step
from gramme.models.decoder import Decoder
from gramme.request import Logprob, Logprobs, Pooling, Scores
from gramme.runtime.cache import give_back_freed, kv_cache
from gramme.runtime.graphs import Graphs
from gramme.runtime.inputs import HostStep, Wanted, host_step, wanted
from gramme.runtime.padded import PaddedGraphs
from gramme.runtime.sampler import Choice, Chooser, sampling

Fetch = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """At most `Plan.logit_rows` rows of logits, and what was chosen from them."""

    wanted: Sequence[Wanted]
    sampled: Sampled  # on the device
    arriving: Sequence[Fetch | None]  # the same, on its way to the host


@dataclass(frozen=True)
class Launched:
    """A step that was handed to the device."""

    batch: Batch
    choosers: Sequence[Chooser]
    chunks: Sequence[Chunk] = ()
    pooled: dict[int, list[Fetch]] = field(default_factory=dict)  # row -> (D,) to be added up
    failed: frozenset[int] = frozenset()  # rows for which there was no memory

    def sample_place(self, row: int) -> tuple[int, int]:
        """(chunk, index in it) of the next token of `row`."""
        return next((c, i) for c, chunk in enumerate(self.chunks) for i, w in enumerate(chunk.wanted)
                    if w.row == row and w.target is None)


@dataclass
class RowResult:
    """What one row brought, on the host."""

    tokens: list[int] = field(default_factory=list)  # accepted drafts and one more; empty when the row does not sample
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: Scores = field(default_factory=Scores)
    pooled: np.ndarray | None = None


class Runner:
    def __init__(self, model: ModelConfig, plan: Plan, decoder: Decoder, backend: Backend):
        self.vocab_size, self.page_size, self.logit_rows = model.vocab_size, plan.page_size, plan.logit_rows
        self.decoder, self.backend, self.device = decoder, backend, backend.device
        give_back_freed()
        self.kv = kv_cache(model, plan, backend.device)
        self.halved = 0  # steps for which memory did not suffice
        self.graphs: Graphs | PaddedGraphs
        if backend.pads:
            self.graphs = PaddedGraphs(decoder, self.kv, backend.device, plan)
        else:
            self.graphs = Graphs(model, plan, decoder, self.kv, backend.device)

    def launch(self, batch: Batch, choosers: Sequence[Chooser], pooling: Sequence[Pooling | None],
               previous: Launched | None) -> Launched:
        """Start a step. choosers and pooling are by row; `previous` is the batch that rows' feeds refer to.

        A step for which memory does not suffice is run as two smaller ones, and those likewise.
        """
        if not batch.rows:
            return Launched(batch, choosers)
        try:
            return self._launch(batch, choosers, pooling, previous)
        except self.device.out_of_memory:
            pass  # only here are the arrays that the step did get free again
        self.halved += 1
        parts = halves(batch)
        if not parts:
            return Launched(batch, choosers, failed=frozenset({0}))
        launched = [self.launch(Batch(rows), [choosers[i] for i in owners], [pooling[i] for i in owners], previous)
                    for rows, owners in parts]
        return _joined(batch, choosers, pooling, launched, [owners for _, owners in parts])

    def _launch(self, batch: Batch, choosers: Sequence[Chooser], pooling: Sequence[Pooling | None],
                previous: Launched | None) -> Launched:
        host = host_step(batch, self.page_size)
        scored = [c.params.prompt_logprobs is not None and p is None for c, p in zip(choosers, pooling, strict=True)]
        want = wanted(batch, host.starts, scored)
        outputs = np.array([w.index for w in want], np.int32)
        if graph := self.graphs.find(host, outputs):
            self._feed(graph.step.tokens, host, previous)
            hidden, logits = graph.run()
        else:
            hidden, logits = self.decoder.hidden(self._put(host, previous), self.kv), None
        chunks = []
        for i in range(0, len(want), self.logit_rows):
            part = slice(i, i + self.logit_rows)
            rows = self.decoder.logits(hidden, self.device.put(outputs[part])) if logits is None else logits[part]
            sampled = self._choose(rows, batch, want[part], choosers)
            chunks.append(Chunk(want[part], sampled, [None if a is None else self.device.fetch(a) for a in sampled]))
        return Launched(batch, choosers, chunks, self._pool(hidden, host, pooling))

    def collect(self, launched: Launched) -> list[RowResult]:
        """Wait for a step and say, row by row, what it brought."""
        results = [RowResult() for _ in launched.batch.rows]
        for row, vectors in launched.pooled.items():
            results[row].pooled = sum(vector() for vector in vectors)
        for chunk in launched.chunks:
            host = Sampled(*(None if fetch is None else fetch() for fetch in chunk.arriving))
            for j, w in enumerate(chunk.wanted):
                self._accept(results[w.row], w, j, host, launched)
        return results

    def _accept(self, result: RowResult, w: Wanted, j: int, sampled: Sampled, launched: Launched) -> None:
        params = launched.choosers[w.row].params
        if w.target is not None:
            top = slice(params.prompt_logprobs or 0)
            result.prompt_logprobs.add(int(sampled.tokens[j]), float(sampled.logprobs[j]), int(sampled.ranks[j]),
                                       sampled.top_ids[j, top].tolist(), sampled.top_logprobs[j, top].tolist())
            return
        draft = launched.batch.rows[w.row].draft
        if result.tokens and result.tokens[-1] != draft[len(result.tokens) - 1]:
            return  # the guess before this one was wrong
        result.tokens.append(int(sampled.tokens[j]))
        if params.logprobs is not None:
            result.logprobs.append(_logprobs(sampled, j, params.logprobs))

    def _put(self, host: HostStep, previous: Launched | None) -> Step:
        put = self.device.put
        tokens = put(host.tokens)
        self._feed(tokens, host, previous)
        return Step(tokens, put(host.positions), put(host.slots), put(host.starts), put(host.lengths), put(host.pages),
                    None, host.max_row, host.max_length)

    def _feed(self, tokens: Array, host: HostStep, previous: Launched | None) -> None:
        """Tokens that the previous step samples go from device to device."""
        places = [(index, *previous.sample_place(row)) for index, row in host.feeds]
        for c in {chunk for _, chunk, _ in places}:
            here = np.array([(index, i) for index, chunk, i in places if chunk == c], np.int32)
            tokens[self.device.put(here[:, 0])] = previous.chunks[c].sampled.tokens[self.device.put(here[:, 1])]

    def _choose(self, logits: Array, batch: Batch, chunk: Sequence[Wanted], choosers: Sequence[Chooser]) -> Sampled:
        choices = []
        for w in chunk:
            seq, draft = batch.rows[w.row].seq, batch.rows[w.row].draft
            guessed = draft[: max(w.position - len(seq.tokens), 0)]
            choices.append(Choice(choosers[w.row], seq.tokens, seq.prompt_len, w.target, guessed))
        host = sampling(choices, [w.position for w in chunk], self.vocab_size)
        return self.backend.ops.sample(logits, self._put_sampling(host))

    def _put_sampling(self, host: Sampling) -> Sampling:
        put = lambda a: self.device.put(a) if isinstance(a, np.ndarray) else a
        values = {f.name: put(getattr(host, f.name)) for f in fields(host)}
        values["edits"] = None if host.edits is None else Edits(*map(put, host.edits))
        return Sampling(**values)

    def _pool(self, hidden: tuple[Array, Array], host: HostStep,
              pooling: Sequence[Pooling | None]) -> dict[int, list[Fetch]]:
        """The sum (mean pooling) or the last of each pooled row's hidden states; a prompt's rows are added up later."""
        if not any(pooling):
            return {}
        states, out = self.decoder.normed(hidden), {}
        for b, kind in enumerate(pooling):
            row = states[int(host.starts[b]) : int(host.starts[b + 1])]
            if kind is not None:
                out[b] = [self.device.fetch(row.sum(0) if kind == "mean" else row[-1])]
        return out


def halves(batch: Batch) -> list[tuple[tuple[Row, ...], list[int]]]:
    """The same work as two batches, each with the rows of `batch` that its own come from; none if it has one token.

    A single row is cut before its guesses, which are judged together.
    """
    rows, count = batch.rows, len(batch.rows)
    if count > 1:
        middle = count // 2
        return [(rows[:middle], list(range(middle))), (rows[middle:], list(range(middle, count)))]
    row = rows[0]
    cut = min(len(row.tokens) // 2, len(row.tokens) - 1 - len(row.draft))
    if cut < 1:
        return []
    first = row._replace(tokens=row.tokens[:cut], samples=False, draft=())
    return [((first,), [0]), ((row._replace(start=row.start + cut, tokens=row.tokens[cut:]),), [0])]


def _joined(batch: Batch, choosers: Sequence[Chooser], pooling: Sequence[Pooling | None], parts: Sequence[Launched],
            owners: Sequence[Sequence[int]]) -> Launched:
    """Parts of a batch as one: row i of a part belongs to row owners[part][i] of the batch."""
    chunks, pooled = [], {}
    for part, rows in zip(parts, owners, strict=True):
        for chunk in part.chunks:
            chunks.append(replace(chunk, wanted=[replace(w, row=rows[w.row]) for w in chunk.wanted]))
        for row, vectors in part.pooled.items():
            before = pooled.get(rows[row], []) if pooling[rows[row]] == "mean" else []
            pooled[rows[row]] = before + vectors
    failed = frozenset(rows[i] for part, rows in zip(parts, owners, strict=True) for i in part.failed)
    return Launched(batch, choosers, chunks, pooled, failed)


def _logprobs(sampled: Sampled, j: int, top: int) -> Logprobs:
    out = {int(sampled.tokens[j]): Logprob(float(sampled.logprobs[j]), int(sampled.ranks[j]))}
    for rank, (token, value) in enumerate(zip(sampled.top_ids[j, :top], sampled.top_logprobs[j, :top]), 1):
        out.setdefault(int(token), Logprob(float(value), rank))
    return out
