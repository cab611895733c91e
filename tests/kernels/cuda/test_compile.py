"""The kernels compile, with a 7B model's shapes, for a GeForce card, and fit into its shared memory."""
import os
import subprocess
import sys
from pathlib import Path

SHARED_BYTES = 99 << 10  # of one program on the capabilities 8.6, 8.9 and 12.0 (CUDA programming guide, appendix)


def test_the_kernels_compile_for_an_rtx_3090_and_fit():
    root = Path(__file__).parents[3]
    script = [sys.executable, str(Path(__file__).with_name("compile_all.py")), "86"]
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    run = subprocess.run(script, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split(maxsplit=2) for line in run.stdout.splitlines()]
    assert {name for name, _, _ in lines} == {
        "add_norm_kernel", "attend_kernel", "choose_kernel", "dense_kernel", "edit_kernel", "mask_kernel",
        "matmul_kernel", "place_kernel", "swiglu_kernel"}
    for name, shared, constants in lines:
        assert int(shared) <= SHARED_BYTES, f"{name} takes {shared} bytes: {constants}"
