"""`gramme chat`: a conversation in the terminal, with the model in this process."""
import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

from gramme.cli.flags import settle
from gramme.cli.options import SamplingOptions
from gramme.cli.progress import Bar
from gramme.config import ConfigError, EngineConfig
from gramme.llm.llm import LLM
from gramme.request import RequestError, SamplingParams


def main(args: argparse.Namespace) -> None:
    sampling = settle(args, SamplingOptions)
    llm = LLM(**asdict(replace(settle(args, EngineConfig), max_num_seqs=1)), progress=Bar("loading"))
    try:
        if llm.chat_form is None or llm.chat_form.template is None:
            raise ConfigError("this model has no chat template; use `gramme run --raw`, or give --chat-template FILE")
        print("An empty line or Ctrl-D ends the conversation, Ctrl-C an answer.", file=sys.stderr)
        _converse(llm, llm.default_params(**sampling.given()))
    finally:
        llm.close()


def _converse(llm: LLM, params: SamplingParams) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing for input)
    messages: list[dict[str, str]] = []
    while question := _ask():
        messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": _answer(llm, messages, params)})
        except RequestError as error:
            print(f"gramme: {error}", file=sys.stderr)
            messages.pop()


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> str:
    text, prompt = "", {"messages": messages}
    with _interruptible():
        for _, delta, _ in llm.stream(prompt, params):
            text += delta
            print(delta, end="", flush=True)
    print(flush=True)
    return text


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends what stands inside, not the conversation."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
