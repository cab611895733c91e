"""The kernels compile, with a 7B model's shapes, for GeForce cards, and fit into their shared memory and registers."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_BYTES = 99 << 10  # of one program on the capabilities 8.6, 8.9 and 12.0 (CUDA programming guide, appendix)
STACK_BYTES = 384  # of a thread: registers that did not suffice; the worst tile of Blackwell takes 328
pytestmark = pytest.mark.torch
CARDS = os.environ.get("GRAMME_COMPILE_FOR", "86").split()  # 8.6: Ampere; 8.9: Ada; 12.0: Blackwell; 9.0: Hopper


@pytest.mark.parametrize("capability", CARDS)
def test_the_kernels_compile_and_fit(capability):
    root = Path(__file__).parents[3]
    script = [sys.executable, str(Path(__file__).with_name("compile_all.py")), capability]
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    run = subprocess.run(script, env=env, capture_output=True, text=True, timeout=3000)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split(maxsplit=4) for line in run.stdout.splitlines()]
    assert {name for name, *_ in lines} == {
        "add_norm_kernel", "attend_kernel", "choose_kernel", "edit_kernel", "mask_kernel", "matmul_kernel",
        "place_kernel", "rows_kernel", "swiglu_kernel"}
    for name, shared, registers, stack, constants in lines:
        said = f"{name}: {shared} bytes shared, {registers} registers, {stack} bytes of stack: {constants}"
        assert int(shared) <= SHARED_BYTES and int(stack) <= STACK_BYTES, said
