"""Small steps by shape: a step is captured once for each shape and then replayed.

What capturing means is the device's business: recorded C calls on a CPU, a CUDA graph on a GPU, nothing on the
reference. A shape is captured when it comes for the second time; the least recently used ones make room. Only one step
runs at a time, so all shapes have their inputs in the same arrays and their results in the same memory, which is as
large as the largest of them needs.
"""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from gramme.config import ModelConfig, Plan
from gramme.kernels.ops import KV, Array, Device, Step
from gramme.models.decoder import Decoder
from gramme.plan.memory import CAPTURED_LENGTHS, CAPTURED_SHAPES, CAPTURED_TOKENS, captured_inputs
from gramme.runtime.inputs import HostStep

INPUTS = ("tokens", "positions", "slots", "starts", "lengths")


class Result(NamedTuple):
    hidden: tuple[Array, Array]
    logits: Array | None  # (N, V) of the outputs; None: not computed


class Graph:
    """The step of one shape. Its result lasts until the next step of any shape."""

    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, step: Step):
        self.step, self.result = step, Result((None, None), None)

        def run() -> None:
            hidden = decoder.hidden(step, kv)
            self.result = Result(hidden, decoder.logits(hidden, step.outputs))

        self.replay: Callable[[], None] | None = None
        self._capture = lambda: device.capture(run)

    def run(self) -> Result:
        """On what the input arrays now hold."""
        if self.replay is None:
            self.replay = self._capture()
        else:
            self.replay()
        return self.result


class Graphs:
    def __init__(self, model: ModelConfig, plan: Plan, decoder: Decoder, kv: Sequence[KV], device: Device):
        self.captured = self.replayed = 0  # steps
        self._decoder, self._kv, self._device, self._page_size = decoder, kv, device, plan.page_size
        self._most_rows = plan.logit_rows
        self._graphs: OrderedDict[tuple[int, ...], Graph | None] = OrderedDict()
        sizes = captured_inputs(plan.max_rows, plan.max_batch_tokens, plan.max_model_len, plan.page_size)
        self._inputs = {name: device.empty((size,), "int32") for name, size in sizes.items()}
        device.share(plan.captured_bytes)

    def idle(self) -> bool:
        """Nothing is put off until the engine is idle: recording calls costs no more than making them."""
        return False

    @property
    def last(self) -> Callable[[], object]:
        """The step that was captured or replayed last, to be run again."""
        return next(graph.run for graph in reversed(self._graphs.values()) if graph is not None)

    def find(self, host: HostStep, outputs: np.ndarray) -> Graph | None:
        """The graph of this step's shape with the step's inputs in its arrays; None: run it operation by operation."""
        if len(host.tokens) > CAPTURED_TOKENS or not 0 < len(outputs) <= self._most_rows:
            return None
        bucket = -(-host.max_length // CAPTURED_LENGTHS)
        key = (len(host.tokens), len(host.lengths), len(outputs), host.max_row, bucket)
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > CAPTURED_SHAPES:
                self._graphs.popitem(last=False)
            return None
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph is None:
            self.captured += 1
            step = self._step(host, outputs, bucket)
            graph = self._graphs[key] = Graph(self._decoder, self._kv, self._device, step)
        else:
            self.replayed += 1
        self._fill(graph.step, host, outputs)
        return graph

    def _step(self, host: HostStep, outputs: np.ndarray, bucket: int) -> Step:
        width = bucket * CAPTURED_LENGTHS // min(self._page_size, CAPTURED_LENGTHS)
        arrays = {name: self._input(name, getattr(host, name).shape) for name in INPUTS}
        return Step(**arrays, pages=self._input("pages", (len(host.lengths), width)),
                    outputs=self._input("outputs", outputs.shape), max_row=host.max_row,
                    max_length=bucket * CAPTURED_LENGTHS)

    def _input(self, name: str, shape: tuple[int, ...]) -> Array:
        return self._inputs[name][: prod(shape)].reshape(shape)

    def _fill(self, step: Step, host: HostStep, outputs: np.ndarray) -> None:
        for name in INPUTS:
            self._device.put(getattr(host, name), getattr(step, name))
        self._device.put(outputs, step.outputs)
        pages = np.zeros(step.pages.shape, np.int32)  # page 0, the scratch page, behind each row's own
        pages[:, : host.pages.shape[1]] = host.pages
        self._device.put(pages, step.pages)
