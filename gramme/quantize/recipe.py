"""What the user asked of a quantisation, which grid that means for a format, and what is refused before any work."""
from dataclasses import dataclass

import torch

from gramme.config import ConfigError, ModelConfig
from gramme.formats.schemes import LEAST_GROUP
from gramme.quantize.grid import Grid

METHODS = ("rtn", "gptq", "awq")
FORMATS = ("compressed-tensors", "gptq", "awq", "gguf")
GGUF_GROUP = 32  # Q4_0 and Q8_0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One result: a method's codes on a format's grid."""

    method: str = "gptq"
    bits: int = 4
    group: int = 128
    format: str = "compressed-tensors"
    embedding_bits: int = 16  # of the embedding and of a head of its own; 8: on the grid of 8 bits; GGUF's always

    @property
    def rounds_ends(self) -> bool:
        """Whether the embedding and the head are integers."""
        return self.format == "gguf" or self.embedding_bits == 8

    def check(self, m: ModelConfig) -> None:
        """Raises ConfigError naming the flag, what the format holds and what the model has."""
        if self.bits not in (4, 8):
            raise ConfigError(f"--bits must be 4 or 8, not {self.bits}")
        if self.format == "awq" and self.bits != 4:
            raise ConfigError("--format awq holds 4 bits only; use compressed-tensors, gptq or gguf for 8")
        if self.format == "gguf" and self.group != GGUF_GROUP:
            raise ConfigError(f"--format gguf (Q4_0, Q8_0) has groups of {GGUF_GROUP}, not {self.group}")
        if self.embedding_bits not in (8, 16):
            raise ConfigError(f"--embedding-bits must be 8 or 16, not {self.embedding_bits}")
        if self.embedding_bits == 8 and self.format in ("awq", "gptq"):
            raise ConfigError(f"--format {self.format} keeps the embedding as it is; --embedding-bits 8 needs "
                              "compressed-tensors, gguf has it anyway")
        if self.group < 1 or self.group % LEAST_GROUP:
            raise ConfigError(f"--group must be a positive multiple of {LEAST_GROUP}, not {self.group}")
        for columns in {columns for _, columns, _ in m.matrices()[1:]}:
            if columns % self.group:
                raise ConfigError(f"a matrix of this model has {columns} columns, no multiple of --group {self.group}")
        if self.format in ("awq", "gptq"):
            self._check_packing(m)

    def grid(self, m: ModelConfig, bits: int | None = None) -> Grid:
        """The grid of `bits` (default: the recipe's) that the format can hold."""
        bits = bits or self.bits
        if self.format == "gguf":
            return Grid(bits, GGUF_GROUP, "middle", torch.float16, negative_scales=bits == 4)
        if self.format == "compressed-tensors":  # its loaders keep scales in the model's dtype
            return Grid(bits, self.group, "middle", torch.bfloat16 if m.dtype == "bfloat16" else torch.float16)
        return Grid(bits, self.group, "free" if self.format == "awq" else "middle", torch.float16)

    def _check_packing(self, m: ModelConfig) -> None:
        """AWQ packs 8 rows into a word of codes, both pack 32 / bits rows into a word of zero points."""
        kv = m.kv_heads * m.head_dim
        for rows in (m.heads * m.head_dim, kv, m.width, m.ff_width):
            if rows % 8:
                raise ConfigError(f"--format {self.format} packs rows by 8, a matrix of this model has {rows}")


def stored_dtype(m: ModelConfig) -> torch.dtype:
    """Of what stays unquantised: the checkpoint's own."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(m.dtype, torch.float32)
