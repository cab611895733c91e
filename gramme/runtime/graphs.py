"""Small steps by shape: the arrays of each shape stay where they are, so a step is captured once and then replayed.

What capturing means is the device's business: recorded C calls on a CPU, a CUDA graph on a GPU, nothing on the
reference. A shape is captured when it comes for the second time; the least recently used ones make room, so that all
buffers stay within the plan's bytes.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gramme.config import ModelConfig, Plan
from gramme.kernels.ops import KV, Array, Device, Step
from gramme.models.decoder import Decoder
from gramme.plan.memory import captured_bytes
from gramme.runtime.inputs import HostStep

MAX_TOKENS = 64  # of a step that is captured: longer ones are prefill chunks, where calls cost little beside the work
MAX_SHAPES = 32
LENGTHS = 512  # contexts are bucketed by so many tokens
INPUTS = ("tokens", "positions", "slots", "starts", "lengths", "pages", "outputs")


class Result(NamedTuple):
    hidden: tuple[Array, Array]
    logits: Array | None  # (N, V) of the outputs; None: not computed


class Graph:
    """One shape's input arrays, and the step on them. `nbytes`: at most, until it is captured."""

    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, step: Step, nbytes: int):
        self.step, self.result, self.nbytes = step, Result((None, None), None), nbytes

        def run() -> None:
            hidden = decoder.hidden(step, kv)
            self.result = Result(hidden, decoder.logits(hidden, step.outputs))

        self.replay: Callable[[], None] | None = None
        self._capture = lambda: device.capture(run)

    def run(self) -> Result:
        """On what the input arrays now hold. The result's arrays are overwritten by the next run."""
        if self.replay is None:
            self.replay = self._capture()
            self.nbytes = getattr(self.replay, "nbytes", self.nbytes)
        else:
            self.replay()
        return self.result


class Graphs:
    def __init__(self, model: ModelConfig, plan: Plan, decoder: Decoder, kv: Sequence[KV], device: Device):
        self.captured = self.replayed = 0  # steps
        self._decoder, self._kv, self._device, self._page_size = decoder, kv, device, plan.page_size
        self._model, self._max_bytes = model, plan.graph_bytes
        self._most_rows = plan.logit_rows
        self._graphs: OrderedDict[tuple[int, ...], Graph | None] = OrderedDict()

    def idle(self) -> bool:
        """Nothing is put off until the engine is idle: recording calls costs no more than making them."""
        return False

    def find(self, host: HostStep, outputs: np.ndarray) -> Graph | None:
        """The graph of this step's shape with the step's inputs in its arrays; None: run it operation by operation."""
        size = captured_bytes(self._model, len(host.tokens), len(outputs))
        if len(host.tokens) > MAX_TOKENS or not 0 < len(outputs) <= self._most_rows or size > self._max_bytes:
            return None
        bucket = -(-host.max_length // LENGTHS)
        key = (len(host.tokens), len(host.lengths), len(outputs), host.max_row, bucket)
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > MAX_SHAPES:
                self._drop_oldest()
            return None
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph is None:
            self.captured += 1
            while self._nbytes + size > self._max_bytes:
                self._drop_oldest()
            step = self._step(host, outputs, bucket)
            graph = self._graphs[key] = Graph(self._decoder, self._kv, self._device, step, size)
        else:
            self.replayed += 1
        self._fill(graph.step, host, outputs)
        return graph

    @property
    def _nbytes(self) -> int:
        return sum(graph.nbytes for graph in self._graphs.values() if graph is not None)

    def _drop_oldest(self) -> None:
        self._graphs.popitem(last=False)

    def _step(self, host: HostStep, outputs: np.ndarray, bucket: int) -> Step:
        width = bucket * LENGTHS // min(self._page_size, LENGTHS)
        shapes = {name: getattr(host, name).shape for name in INPUTS[:-2]}
        arrays = {name: self._device.empty(shape, "int32") for name, shape in shapes.items()}
        return Step(**arrays, pages=self._device.empty((len(host.lengths), width), "int32"),
                    outputs=self._device.empty(outputs.shape, "int32"), max_row=host.max_row,
                    max_length=bucket * LENGTHS)

    def _fill(self, step: Step, host: HostStep, outputs: np.ndarray) -> None:
        for name in INPUTS[:-2]:
            self._device.put(getattr(host, name), getattr(step, name))
        self._device.put(outputs, step.outputs)
        pages = np.zeros(step.pages.shape, np.int32)  # page 0, the scratch page, behind each row's own
        pages[:, : host.pages.shape[1]] = host.pages
        self._device.put(pages, step.pages)
