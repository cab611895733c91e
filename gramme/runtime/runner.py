"""Runs a batch: arrays to the device, the decoder, the choices, the results back. Knows no queue and no text."""
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from gramme.config import ModelConfig, Plan
from gramme.core.batch import Batch
from gramme.kernels.load import Backend
from gramme.kernels.ops import Array, Edits, Sampled, Sampling, Step
from gramme.models.decoder import Decoder
from gramme.request import Logprob, Logprobs, Pooling
from gramme.runtime.cache import kv_cache
from gramme.runtime.graphs import Graphs
from gramme.runtime.inputs import HostStep, Wanted, host_step, wanted
from gramme.runtime.sampler import Choice, Chooser, sampling


@dataclass(frozen=True)
class Launched:
    """A step that was handed to the device."""

    batch: Batch
    choosers: Sequence[Chooser]
    wanted: Sequence[Wanted] = ()
    sampled: Sequence[Sampled] = ()  # in chunks of the plan's logit_rows
    pooled: dict[int, Array] = field(default_factory=dict)  # row -> (D,)

    def sample_index(self, row: int) -> int:
        """Which of the sampled tokens is the next one of `row`."""
        return next(i for i, w in enumerate(self.wanted) if w.row == row and w.target is None)


@dataclass
class RowResult:
    """What one row brought, on the host."""

    tokens: list[int] = field(default_factory=list)  # accepted drafts and one more; empty when the row does not sample
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    pooled: np.ndarray | None = None


class Runner:
    def __init__(self, model: ModelConfig, plan: Plan, decoder: Decoder, backend: Backend):
        self.vocab_size, self.page_size, self.logit_rows = model.vocab_size, plan.page_size, plan.logit_rows
        self.decoder, self.backend, self.device = decoder, backend, backend.device
        self.kv = kv_cache(model, plan, backend.device)
        self.graphs = Graphs(model, plan, decoder, self.kv, backend.device)

    def launch(self, batch: Batch, choosers: Sequence[Chooser], pooling: Sequence[Pooling | None],
               previous: Launched | None) -> Launched:
        """Start a step. choosers and pooling are by row; `previous` is the batch that rows' feeds refer to."""
        if not batch.rows:
            return Launched(batch, choosers)
        host = host_step(batch, self.page_size)
        scored = [c.params.prompt_logprobs is not None and p is None for c, p in zip(choosers, pooling, strict=True)]
        want = wanted(batch, host.starts, scored)
        outputs = np.array([w.index for w in want], np.int32)
        if graph := self.graphs.find(host, outputs):
            self._feed(graph.step.tokens, host, previous)
            hidden, logits = graph.run()
            sampled = [self._choose(logits, batch, want, choosers)]
        else:
            step = self._put(host, outputs, previous)
            hidden, sampled = self.decoder.hidden(step, self.kv), []
            for i in range(0, len(want), self.logit_rows):
                logits = self.decoder.logits(hidden, step.outputs[i : i + self.logit_rows])
                sampled.append(self._choose(logits, batch, want[i : i + self.logit_rows], choosers))
        return Launched(batch, choosers, want, sampled, self._pool(hidden, host, pooling))

    def collect(self, launched: Launched) -> list[RowResult]:
        """Wait for a step and say, row by row, what it brought."""
        results = [RowResult() for _ in launched.batch.rows]
        for row, vector in launched.pooled.items():
            results[row].pooled = self.device.get(vector)
        for i, sampled in enumerate(launched.sampled):
            host = Sampled(*(None if a is None else self.device.get(a) for a in sampled))
            for j, w in enumerate(launched.wanted[i * self.logit_rows : (i + 1) * self.logit_rows]):
                self._accept(results[w.row], w, j, host, launched)
        return results

    def _accept(self, result: RowResult, w: Wanted, j: int, sampled: Sampled, launched: Launched) -> None:
        params = launched.choosers[w.row].params
        if w.target is not None:
            result.prompt_logprobs.append(_logprobs(sampled, j, params.prompt_logprobs or 0))
            return
        draft = launched.batch.rows[w.row].draft
        if result.tokens and result.tokens[-1] != draft[len(result.tokens) - 1]:
            return  # the guess before this one was wrong
        result.tokens.append(int(sampled.tokens[j]))
        if params.logprobs is not None:
            result.logprobs.append(_logprobs(sampled, j, params.logprobs))

    def _put(self, host: HostStep, outputs: np.ndarray, previous: Launched | None) -> Step:
        put = self.device.put
        tokens = put(host.tokens)
        self._feed(tokens, host, previous)
        return Step(tokens, put(host.positions), put(host.slots), put(host.starts), put(host.lengths), put(host.pages),
                    put(outputs), host.max_row, host.max_length)

    def _feed(self, tokens: Array, host: HostStep, previous: Launched | None) -> None:
        """Tokens that the previous step samples go from device to device."""
        for index, row in host.feeds:
            i = previous.sample_index(row)
            tokens[index] = previous.sampled[i // self.logit_rows].tokens[i % self.logit_rows]

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

    def _pool(self, hidden: tuple[Array, Array], host: HostStep, pooling: Sequence[Pooling | None]) -> dict[int, Array]:
        """The sum (mean pooling) or the last of each pooled row's hidden states; a prompt's rows are added up later."""
        if not any(pooling):
            return {}
        states, out = self.decoder.normed(hidden), {}
        for b, kind in enumerate(pooling):
            row = states[int(host.starts[b]) : int(host.starts[b + 1])]
            if kind is not None:
                out[b] = row.sum(0) if kind == "mean" else row[-1]
        return out


def _logprobs(sampled: Sampled, j: int, top: int) -> Logprobs:
    out = {int(sampled.tokens[j]): Logprob(float(sampled.logprobs[j]), int(sampled.ranks[j]))}
    for rank, (token, value) in enumerate(zip(sampled.top_ids[j, :top], sampled.top_logprobs[j, :top]), 1):
        out.setdefault(int(token), Logprob(float(value), rank))
    return out
