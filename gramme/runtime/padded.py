"""Steps padded to a power of two of tokens, so that few graphs serve all: for devices on which capturing takes long.

A graph is one size, for rows of one token each or for rows of any kind; which rows they are, only its input arrays say.
Tokens that fill a step up write their K and V to page 0 and belong to no row. A graph is captured when the engine is
idle (`idle`); until then the steps that asked for it run operation by operation.
"""
from collections.abc import Sequence

import numpy as np

from gramme.kernels.ops import KV, Array, Device, Step
from gramme.models.decoder import Decoder
from gramme.plan.gpu_memory import SIZES
from gramme.runtime.graphs import Result
from gramme.runtime.inputs import HostStep


class Padded:
    """One captured size. Its hidden states are overwritten by the next run."""

    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, step: Step):
        self.step = step
        self._hidden: tuple[Array, Array] | None = None

        def run() -> None:
            self._hidden = decoder.hidden(step, kv)

        self._replay = device.capture(run)

    def run(self) -> Result:
        """On what the input arrays now hold. Logits are the caller's business: how many are wanted varies."""
        self._replay()
        return Result(self._hidden, None)


class PaddedGraphs:
    def __init__(self, decoder: Decoder, kv: Sequence[KV], device: Device, page_size: int, max_tokens: int):
        self.captured = self.replayed = 0  # steps
        self._decoder, self._kv, self._device = decoder, kv, device
        self._pages, self._length = -(-max_tokens // page_size), max_tokens
        self._graphs: dict[tuple[int, bool], Padded] = {}
        self._asked: list[tuple[int, bool]] = []

    def find(self, host: HostStep, outputs: np.ndarray) -> Padded | None:
        """The graph that this step fits into, its inputs in place but for tokens fed later; None: there is none yet."""
        size = next((s for s in SIZES if s >= len(host.tokens)), None)
        if size is None:
            return None
        key = size, host.max_row == 1
        if key not in self._graphs:
            if key not in self._asked:
                self._asked.append(key)
            return None
        self.replayed += 1
        self._fill(self._graphs[key].step, host)
        return self._graphs[key]

    def idle(self) -> bool:
        """Capture one size that was asked for; whether there was one."""
        if not self._asked:
            return False
        size, single = key = self._asked.pop(0)
        self._graphs[key] = Padded(self._decoder, self._kv, self._device, self._step(size, single))
        self.captured += 1
        return True

    def _step(self, size: int, single: bool) -> Step:
        new = lambda *shape: self._device.empty(shape, "int32")
        return Step(new(size), new(size), new(size), new(size + 1), new(size), new(size, self._pages), None,
                    max_row=1 if single else size, max_length=self._length)

    def _fill(self, step: Step, host: HostStep) -> None:
        """What stands in rows and columns of the page table behind this step's own is never looked at."""
        for name in ("tokens", "positions", "slots"):
            self._put(getattr(host, name), getattr(step, name), 0)
        self._put(host.starts, step.starts, len(host.tokens))
        self._put(host.lengths, step.lengths, 0)
        rows, columns = host.pages.shape
        self._device.put(host.pages, step.pages[:rows, :columns])

    def _put(self, values: np.ndarray, into: Array, filler: int) -> None:
        padded = np.full(into.shape, filler, np.int32)
        padded[: len(values)] = values
        self._device.put(padded, into)
