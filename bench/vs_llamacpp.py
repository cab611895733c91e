"""gramme beside llama.cpp on the same GGUF file, pair by pair: prefill, one sequence decoding, eight decoding together.

    pip install llama-cpp-python==0.3.36 numpy          # in an environment of its own, compiled for this processor
    python bench/vs_llamacpp.py model.gguf --peer-python PEER/bin/python [--pairs 4] [--level avx2] [--save NAME]
    python bench/vs_llamacpp.py model.gguf --peer-python PEER/bin/python --busy spin     # beside a process that spins

Both sides report the median of the same number of repeats in a process of their own; sides alternate; the bandwidth
is probed before and after each pair. --save adds the pairs to bench/results/vs_llamacpp-NAME.json: sittings add up.
"""
import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROWS = ("prefill", "decode", "decode8")
RESULTS = Path(__file__).parent / "results"
SPIN = "while True: pass"
STREAM = "import numpy as np\na = np.ones(1 << 27, np.float32)\nwhile True: a.sum()"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--peer-python")
    p.add_argument("--pairs", type=int, default=4)
    p.add_argument("--prompt", type=int, default=256)
    p.add_argument("--gen", type=int, default=24)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--level", help="forces gramme's instruction set")
    p.add_argument("--busy", choices=("spin", "memory"), help="measure also beside such a process")
    p.add_argument("--save", metavar="NAME")
    p.add_argument("--worker", choices=("gramme", "llama.cpp"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        side = Gramme(a) if a.worker == "gramme" else LlamaCpp(a)
        print(json.dumps(measure(side, a)))
    else:
        compare(a)


def measure(side: "Gramme | LlamaCpp", a: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of each row, the median of the repeats after one that is not counted."""
    side.prefill(8)
    side.decode(1, 4)
    works = {"prefill": lambda: a.prompt / side.prefill(a.prompt), "decode": lambda: a.gen / side.decode(1, a.gen),
             "decode8": lambda: 8 * a.gen / side.decode(8, a.gen)}
    return {name: statistics.median(work() for _ in range(a.repeat)) for name, work in works.items()}


class Gramme:
    def __init__(self, a: argparse.Namespace):
        if a.level:
            os.environ["GRAMME_CPU_LEVEL"] = a.level
        from gramme.config import EngineConfig
        from gramme.llm.engine import Engine

        self.engine = Engine.load(EngineConfig(
            model=a.model, backend="cpu", threads=a.threads, max_model_len=2048, kv_tokens=16384, max_num_seqs=8,
            max_num_batched_tokens=512, skip_tokenizer_init=True, prefix_caching=False))

    def prefill(self, tokens: int) -> float:
        self._add(1, tokens, 1)
        return self._run()[0]

    def decode(self, sequences: int, tokens: int) -> float:
        """Seconds of `tokens` steps after the one that prefills."""
        self._add(sequences, 1, tokens + 1)
        return sum(self._run()[1:])

    def _add(self, sequences: int, prompt: int, tokens: int) -> None:
        from gramme.request import Request, SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        for i in range(sequences):
            self.engine.add(Request(id=str(i), prompt_token_ids=[300 + i % 200 for i in range(prompt)], params=params))

    def _run(self) -> list[float]:
        times = []
        while self.engine.busy:
            began = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - began)
        return times


class LlamaCpp:
    def __init__(self, a: argparse.Namespace):
        import llama_cpp as c

        self.c, self.quiet = c, c.llama_log_callback(lambda *_: None)
        c.llama_backend_init()
        c.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = c.llama_model_load_from_file(a.model.encode(), c.llama_model_default_params())
        p = c.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max, p.kv_unified = 8192, 2048, 512, 8, True
        p.n_threads = p.n_threads_batch = a.threads
        self.context = c.llama_init_from_model(self.model, p)

    def prefill(self, tokens: int) -> float:
        self._clear()
        began = time.perf_counter()
        self._step([(300 + i % 200, i, 0, i == tokens - 1) for i in range(tokens)])
        return time.perf_counter() - began

    def decode(self, sequences: int, tokens: int) -> float:
        self._clear()
        self._step([(300, 0, s, True) for s in range(sequences)])
        began = time.perf_counter()
        for i in range(1, tokens + 1):
            self._step([(300 + i % 200, i, s, True) for s in range(sequences)])
        return time.perf_counter() - began

    def _clear(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def _step(self, rows: list[tuple[int, int, int, bool]]) -> None:
        b = self.c.llama_batch_init(len(rows), 0, 1)
        b.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, position, 1, sequence, logits
        if status := self.c.llama_decode(self.context, b):
            raise RuntimeError(f"llama_decode returned {status}")
        self.c.llama_synchronize(self.context)
        self.c.llama_batch_free(b)


def compare(a: argparse.Namespace) -> None:
    pairs = []
    for i in range(a.pairs):
        pair = {"at": time.strftime("%Y-%m-%d %H:%M"), "bandwidth_before": bandwidth(a.threads)}
        for name in ("gramme", "llama.cpp") if i % 2 else ("llama.cpp", "gramme"):
            pair[name] = run(name, a)
            if a.busy:
                with beside(a.busy):
                    pair[f"{name} busy"] = run(name, a)
        pairs.append(pair | {"bandwidth_after": bandwidth(a.threads)})
        show(pairs[-1])
    every = save(a, pairs) if a.save else pairs
    for row in ROWS:
        ratios = [p["gramme"][row] / p["llama.cpp"][row] for p in every]
        print(f"{row:8} gramme / llama.cpp: median {statistics.median(ratios):.2f} of {len(ratios)} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")
        for name in ("gramme", "llama.cpp") if a.busy else ():
            kept = [p[f"{name} busy"][row] / p[name][row] for p in every if f"{name} busy" in p]
            print(f"{'':8} {name} keeps {statistics.median(kept):.0%} beside a busy process")


def run(name: str, a: argparse.Namespace) -> dict[str, float]:
    python = sys.executable if name == "gramme" else a.peer_python
    command = [python, __file__, a.model, "--worker", name, "--prompt", str(a.prompt), "--gen", str(a.gen), "--repeat",
               str(a.repeat), "--threads", str(a.threads), *(["--level", a.level] if a.level else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


@contextmanager
def beside(kind: str):
    child = subprocess.Popen([sys.executable, "-c", SPIN if kind == "spin" else STREAM])
    time.sleep(0.5)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def bandwidth(threads: int) -> float:
    """GB/s at which all threads read 512 MB, the best of three."""
    import numpy as np

    from gramme.kernels.cpu.kernels import CpuKernels
    from gramme.kernels.cpu.known import best_level

    cpu, data, times = CpuKernels(best_level(), threads), np.ones(1 << 26, np.float64), []
    for _ in range(3):
        began = time.perf_counter()
        cpu.read(data)
        times.append(time.perf_counter() - began)
    return round(data.nbytes / min(times) / 1e9, 2)


def show(pair: dict) -> None:
    names = [n for n in pair if isinstance(pair[n], dict)]
    speeds = "   ".join(f"{n}: " + " ".join(f"{pair[n][row]:.1f}" for row in ROWS) for n in names)
    print(f"{speeds}   tokens/s; memory {pair['bandwidth_before']} to {pair['bandwidth_after']} GB/s", flush=True)


def save(a: argparse.Namespace, pairs: list[dict]) -> list[dict]:
    from gramme.plan.hardware import cpu_name

    path = RESULTS / f"vs_llamacpp-{a.save}.json"
    old = json.loads(path.read_text())["pairs"] if path.exists() else []
    version = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"
    peer = subprocess.run([a.peer_python, "-c", version], capture_output=True, text=True).stdout.strip()
    facts = Path("/proc/cpuinfo").read_text()
    flags = [f for f in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8") if f in facts]
    machine = {"cpu": cpu_name(), "flags": flags, "threads": a.threads, "system": platform.platform()}
    record = {"model": Path(a.model).name, "bytes": Path(a.model).stat().st_size, "prompt": a.prompt, "gen": a.gen,
              "repeat": a.repeat, "level": a.level or "best", "machine": machine, "llama.cpp": peer,
              "pairs": old + pairs}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return old + pairs


if __name__ == "__main__":
    main()
