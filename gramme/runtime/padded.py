"""Steps padded to a power of two of tokens, so that few graphs serve all: for devices on which capturing takes long.

A graph is one size, for rows of one token each or for rows of any kind; which rows they are, only its input arrays say.
Tokens that fill a step up write their K and V to page 0 and belong to no row. Graphs are captured one by one when the
engine is idle (`idle`), the smallest first; until then steps run operation by operation.
"""
from collections.abc import Sequence

import numpy as np

from gramme.config import Plan
from gramme.kernels.ops import KV, Array, Device, Step
from gramme.models.decoder import Decoder
from gramme.plan.gpu_memory import captured_inputs, captured_sizes
from gramme.runtime.graphs import Result
from gramme.runtime.inputs import HostStep

INPUTS = ("tokens", "positions", "slots", "starts", "lengths")  # side by side in one array: one copy a step


class Padded:
    """One captured size. Its hidden states are overwritten by the next run."""

    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, step: Step, inputs: Array):
        self.step, self.inputs = step, inputs
        self._hidden: tuple[Array, Array] | None = None

        def run() -> None:
            self._hidden = decoder.hidden(step, kv)

        self._replay = device.capture(run)

    def run(self) -> Result:
        """On what the input arrays now hold. Logits are the caller's business: how many are wanted varies."""
        self._replay()
        return Result(self._hidden, None)


class PaddedGraphs:
    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, plan: Plan):
        self.captured = self.replayed = 0  # steps
        self.refused = 0  # sizes for which memory did not suffice
        self._decoder, self._kv, self._device = decoder, kv, device
        self._pages, self._length = -(-plan.max_model_len // plan.page_size), plan.max_model_len
        self._graphs: dict[tuple[int, bool], Padded] = {}
        self._sizes = captured_sizes(plan.max_rows, plan.max_batch_tokens)
        self._waiting = list(self._sizes)

    def find(self, host: HostStep, outputs: np.ndarray) -> Padded | None:
        """The graph that this step fits into, its inputs in place but for tokens fed later; None: there is none yet."""
        single = host.max_row == 1
        size = next((s for s, kind in self._sizes if kind == single and s >= len(host.tokens)), 0)
        graph = self._graphs.get((size, single))
        if graph is not None:
            self.replayed += 1
            self._fill(graph, host)
        return graph

    def idle(self) -> bool:
        """Capture one size more; whether there was one."""
        if not self._waiting:
            return False
        size, single = self._waiting.pop(0)
        try:
            step, inputs = self._step(size, single)
            self._graphs[size, single] = Padded(self._decoder, self._kv, self._device, step, inputs)
            self.captured += 1
        except self._device.out_of_memory:
            self.refused += 1
        return True

    def _step(self, size: int, single: bool) -> tuple[Step, Array]:
        inputs = self._device.empty((len(INPUTS), captured_inputs(size)), "int32")
        pages = self._device.empty((size, self._pages), "int32")
        arrays = [a[: size + (name == "starts")] for name, a in zip(INPUTS, inputs, strict=True)]
        return Step(*arrays, pages, None, max_row=1 if single else size, max_length=self._length), inputs

    def _fill(self, graph: Padded, host: HostStep) -> None:
        """What stands in rows and columns of the page table behind this step's own is never looked at."""
        inputs = np.zeros(graph.inputs.shape, np.int32)
        for row, name in zip(inputs, INPUTS, strict=True):
            values = getattr(host, name)
            row[: len(values)] = values
        inputs[INPUTS.index("starts"), len(host.starts) :] = len(host.tokens)
        self._device.put(inputs, graph.inputs)
        rows, columns = host.pages.shape
        self._device.put(host.pages, graph.step.pages[:rows, :columns])
