"""gramme runs open-weight language models on the machine that you own. The names below are imported when first used."""
from typing import Any

_HOME = {
    "LLM": "llm.llm", "AsyncLLM": "serve.async_llm", "SamplingParams": "request", "RequestOutput": "request",
    "CompletionOutput": "request", "RequestError": "request", "EngineConfig": "config", "ModelError": "config",
    "ConfigError": "config",
}
__all__ = [*_HOME]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gramme' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gramme.{_HOME[name]}"), name)
