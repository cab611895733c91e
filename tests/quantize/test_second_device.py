"""A GPU is taken where there is one and refused where there is none; nothing is computed beside the chosen device.

No GPU is needed: a second device is pretended, on which tensors of the first are refused.
"""
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import pretended  # noqa: E402
from small import MODEL  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from gramme.config import EngineConfig  # noqa: E402
from gramme.models.dummy import SHAPES  # noqa: E402
from gramme.models.load import shapes  # noqa: E402
from gramme.models.open import open_model  # noqa: E402
from gramme.quantize import calibrate, device, gate, run, session, solve  # noqa: E402
from gramme.quantize.plan import need  # noqa: E402
from gramme.quantize.recipe import Recipe  # noqa: E402

ALL = "compressed-tensors,gptq,awq,gguf"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def second(monkeypatch):
    """Whatever device is asked for, it is the second one, with much memory."""
    monkeypatch.setattr(device, "chosen", lambda asked: pretended.NAME)
    monkeypatch.setattr(device, "free_bytes", lambda name: 1 << 40)
    monkeypatch.setattr(device, "gpu_peak_bytes", lambda name: 123_000_000)
    with pretended.SecondDevice():
        yield


def weights(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.suffix in (".safetensors", ".gguf")}


@pytest.mark.parametrize("more", [
    ["--method", "gptq", "--format", ALL], ["--method", "awq", "--format", "awq,gguf"],
    ["--method", "rtn", "--format", "gguf,gptq", "--keep-worst", "1"]], ids=" ".join)
def test_everything_runs_on_another_device_and_gives_the_same_files(request, quantise, monkeypatch, tmp_path, more):
    judges, reference = [], session.reference
    with sdpa_kernel(SDPBackend.MATH):  # torch would choose another for a device that it does not know
        assert quantise(*more, out="here")[0] == 0
        request.getfixturevalue("second")
        monkeypatch.setattr(session, "reference", lambda task: judges.append(reference(task)) or judges[-1])
        code, said, _ = quantise(*more, out="there")
    assert code == 0, said
    assert judges[0].device.name == pretended.NAME
    assert "of the GPU's 1099.51 GB free" in said and "GPU memory: 123.0 MB at the peak" in said
    made = sorted(tmp_path.glob("here-*"))
    assert made
    for here in made:
        assert weights(here) == weights(tmp_path / here.name.replace("here", "there")), here.name


def read_on_the_first(monkeypatch):
    real = run.read_layer
    monkeypatch.setattr(run, "read_layer", lambda m, source, i, device: real(m, source, i, "cpu"))


def moments_on_the_first(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(calibrate.torch, "zeros", lambda *shape, device: zeros(*shape))


def inverse_on_the_first(monkeypatch):
    real = solve._inverse_factor
    monkeypatch.setattr(solve, "_inverse_factor", lambda moments: real(moments.cpu()))


def candidate_on_the_first(monkeypatch):
    real, calls = gate.backend, []

    def backend(name, torch_device):
        calls.append(name)
        return real(name, torch_device=torch_device if len(calls) == 1 else "cpu")  # the first is the reference's

    monkeypatch.setattr(gate, "backend", backend)


@pytest.mark.parametrize("forgotten", [
    read_on_the_first, moments_on_the_first, inverse_on_the_first, candidate_on_the_first], ids=lambda f: f.__name__)
def test_a_tensor_on_the_wrong_device_is_found(request, quantise, monkeypatch, forgotten):
    """So the test above can fail."""
    forgotten(monkeypatch)
    request.getfixturevalue("second")
    with pytest.raises(RuntimeError, match="is on the first device, others are not"):
        quantise()


def test_without_a_gpu_it_is_refused_and_auto_is_the_processor(quantise, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, said, _ = quantise("--device", "cuda")
    assert code == 2 and said.startswith("gramme: --device cuda needs a GPU") and said.count("\n") == 1
    assert not list(tmp_path.glob("out*")) and device.chosen("auto") == "cpu"
    code, said, _ = quantise("--device", "auto", "--layers", "1")
    assert code == 0 and "GPU" not in said


def test_auto_is_the_gpu_where_there_is_one_and_the_processor_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.chosen(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_a_gpu_that_does_not_work_is_one_line(quantise, monkeypatch):
    def init():
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    code, said, _ = quantise("--device", "auto")
    assert code == 2 and said.count("\n") == 1 and "no kernel image is available; --device cpu" in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_gpu_solves_as_the_processor_does_within_its_plan(quantise, method):
    """Sums are rounded in another order, so a few codes may differ; what was predicted suffices."""
    code, said, here = quantise("--method", method, out="here")
    assert code == 0, said
    code, said, there = quantise("--method", method, "--device", "cuda", out="there")
    assert code == 0 and "GPU memory" in said and "more than predicted" not in said, said
    a, b = (open_model(EngineConfig(model=str(d))).source for d in (here, there))
    for name, shape in shapes(MODEL):
        if name.startswith("layers.") and len(shape) == 2:
            assert (a(name).codes == b(name).codes).mean() > 0.98, name


def test_an_unknown_device_is_one_line(quantise, capsys):
    with pytest.raises(SystemExit) as stopped:
        quantise("--device", "tpu")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "tpu" in said and said.count("\n") == 1


def test_a_gpu_that_is_too_small_is_refused_before_any_work(second, quantise, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "free_bytes", lambda name: 10_000)
    code, said, _ = quantise()
    assert code == 2 and "of the GPU's memory are needed, 10.0 KB are free" in said and "--device cpu" in said
    assert not list(tmp_path.glob("out*"))


def test_memory_that_runs_out_after_all_is_one_line(quantise, monkeypatch, tmp_path):
    def solve(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB")

    monkeypatch.setattr(session, "solve", solve)
    code, said, out = quantise()
    assert code == 2 and "memory did not suffice" in said.splitlines()[-1] and not out.exists()


def test_what_was_solved_on_one_device_is_not_gone_on_with_on_another(request, quantise):
    assert quantise("--max-kl", "-1")[0] == 3
    request.getfixturevalue("second")
    code, said, _ = quantise()
    assert code == 2 and "unfinished run with other options" in said


def test_beside_a_gpu_layers_take_its_memory_and_little_of_the_hosts():
    m, asked = SHAPES["mistral-7b"], ([Recipe()], 16384, 1e13, 30_000)
    cpu, gpu = need(m, *asked), need(m, *asked, gpu=True)
    assert cpu.gpu_bytes == 0 and 4e9 < gpu.gpu_bytes < 12e9 and 2e9 < gpu.memory_bytes < cpu.memory_bytes
    assert gpu.seconds > cpu.seconds  # at equal operations a second: columns are started one by one
    assert need(m, [Recipe(method="rtn")], *asked[1:], gpu=True).gpu_bytes < gpu.gpu_bytes
    wide = replace(MODEL, vocab_size=200_000)
    assert need(wide, *asked, gpu=True).memory_bytes - need(MODEL, *asked, gpu=True).memory_bytes > 4 * 190_000 * 64
