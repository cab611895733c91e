"""`gramme chat`: a conversation in the terminal, with the model in this process."""
import argparse
import contextlib
import sys
from dataclasses import asdict

from gramme.cli.flags import settle
from gramme.cli.main import sampling_given
from gramme.config import ConfigError
from gramme.llm.llm import LLM
from gramme.request import RequestError


def main(args: argparse.Namespace) -> None:
    llm = LLM(**asdict(settle(args, model=args.model)))
    try:
        if llm.chat_form is None or llm.chat_form.template is None:
            raise ConfigError("this model has no chat template; use `gramme run --raw`, or give --chat-template FILE")
        print("An empty line or Ctrl-D ends the conversation, Ctrl-C an answer.", file=sys.stderr)
        _converse(llm, args)
    finally:
        llm.close()


def _converse(llm: LLM, args: argparse.Namespace) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing for input)
    messages: list[dict[str, str]] = []
    while question := _ask():
        messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": _answer(llm, messages, args)})
        except RequestError as error:
            print(f"gramme: {error}", file=sys.stderr)
            messages.pop()


def _answer(llm: LLM, messages: list[dict[str, str]], args: argparse.Namespace) -> str:
    text, prompt = "", {"prompt_token_ids": llm.chat_ids(messages)}
    with contextlib.suppress(KeyboardInterrupt):
        for _, delta, _ in llm.stream(prompt, llm.default_params(**sampling_given(args))):
            text += delta
            print(delta, end="", flush=True)
    print(flush=True)
    return text


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
