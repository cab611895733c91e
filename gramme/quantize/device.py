"""Where layers are solved and judged, the processor or a GPU: which it is, its memory, and how much was used of it.

The GPU's path has not run on a GPU yet: none was at hand. Tests run it on a second device that they pretend.
"""
import resource

import torch

from gramme.config import ConfigError


def chosen(asked: str) -> str:
    """torch's name of the device. `auto` is the GPU where PyTorch sees one."""
    seen = torch.cuda.is_available()
    if asked == "cuda" and not seen:
        raise ConfigError("--device cuda needs a GPU that PyTorch can use; it sees none")
    return "cuda" if asked == "auto" and seen else "cpu" if asked == "auto" else asked


def free_bytes(device: str) -> int:
    """Of a GPU's memory."""
    return torch.cuda.mem_get_info(device)[0]


def begin(device: str) -> None:
    """From now on counts what `gpu_peak_bytes` says. Raises ConfigError when the GPU cannot multiply."""
    if device != "cuda":
        return
    try:
        torch.cuda.init()
        torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # its library takes its memory now
        wait(device)
    except RuntimeError as error:  # too old for this PyTorch, or somebody else's
        why = str(error).partition("\n")[0]
        raise ConfigError(f"the GPU does not work with this PyTorch: {why:.120}; --device cpu needs none") from None
    torch.cuda.reset_peak_memory_stats(device)


def wait(device: str) -> None:
    """A GPU's work returns before it is done."""
    if device == "cuda":
        torch.cuda.synchronize(device)


def gpu_peak_bytes(device: str) -> int:
    """The most memory of a GPU that tensors have held since `begin`."""
    return torch.cuda.max_memory_allocated(device)


def host_peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
