"""From a body's texts and token ids to engine Requests: tokenises and bounds. Knows no HTTP and no reply."""
import asyncio
import time
from dataclasses import fields, replace
from typing import Any
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from gramme.config import GenerationDefaults
from gramme.request import Request, RequestError, SamplingParams, Stamps
from gramme.serve.async_llm import AsyncLLM
from gramme.serve.openai import ChatCompletion, Completion, Sampled, Tokenize, template_variables
from gramme.serve.options import ServeOptions
from gramme.serve.tools import Reading, history, reading, structured
from gramme.text.chat import Chat
from gramme.text.tokenizer import Tokenizer


class Intake:
    """`llm` must be ready: the bounds are its model's and its plan's."""

    def __init__(self, llm: AsyncLLM, tokenizer: Tokenizer, chat_form: Chat, options: ServeOptions):
        self.llm, self.tokenizer, self.chat_form, self.options = llm, tokenizer, chat_form, options

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer together."""
        return self.llm.ready.plan.max_model_len

    @property
    def defaults(self) -> dict[str, Any]:
        """The sampling values that the model's authors recommend."""
        own = {f.name: getattr(self.llm.ready.defaults, f.name) for f in fields(GenerationDefaults)}
        return {name: v for name, v in own.items() if name != "eos_token_ids" and v is not None}

    def request(self, ids: list[int], params: SamplingParams, stamps: Stamps, body: Sampled | None = None,
                param: str = "prompt", **more: Any) -> Request:
        """Raises RequestError for every fault that shows before the engine is asked; `param` is where the text is."""
        room = self.limit - len(ids)
        if not ids:
            raise RequestError("the prompt is empty", param)
        if room < (0 if more or params.max_tokens == 0 else 1):
            held = f"the context of {self.limit} holds prompt and answer"
            raise RequestError(f"the prompt has {len(ids)} tokens, {held}", param)
        params.check(self.llm.ready.model.vocab_size)
        bad = [self.tokenizer.encode(w, add_special_tokens=False) for w in params.bad_words]
        if body is not None:
            more |= {"priority": body.priority, "cache_salt": body.cache_salt or ""}
        stamps = replace(stamps, tokenised_ns=time.monotonic_ns())
        now_s = stamps.tokenised_ns / 1e9
        return Request(id=uuid4().hex, prompt_token_ids=ids, params=params, bad_word_ids=bad, stamps=stamps,
                       start_by_s=now_s + self.options.queue_limit_s, deadline_s=now_s + self.options.run_limit_s,
                       **more)

    def check_size(self, characters: int, param: str) -> None:
        """Refuse what can never fit before it is tokenised. Normalising may make a text up to four times shorter."""
        most = 4 * self.limit * self.tokenizer.longest_token_bytes
        if characters > most:
            raise RequestError(f"the prompt has {characters} characters, the context holds at most {most}", param)

    async def ids(self, prompt: str | list[int], add_special_tokens: bool = True, param: str = "prompt") -> list[int]:
        if isinstance(prompt, str):
            self.check_size(len(prompt), param)
            return await self.encode(prompt, add_special_tokens)
        self.check_ids(prompt, param)
        return prompt

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text holds half a surrogate pair", "prompt") from None
        return await run_in_threadpool(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def reading(self, body: ChatCompletion) -> Reading:
        """How a chat's answer is to be constrained and read; grammars are checked beside the event loop."""
        chat = self.chat_form
        made = await asyncio.to_thread(reading, body, chat.template, chat.tool_template, self.tokenizer)
        await asyncio.to_thread(made.check)
        return made

    async def structured(self, body: Completion) -> Reading:
        made = Reading(*structured(body))
        await asyncio.to_thread(made.check)
        return made

    def thinks(self, ids: list[int], marks: tuple[str, str] | None) -> bool:
        """Whether a prompt ends inside the reasoning: templates of some models open it."""
        return marks is not None and self.tokenizer.decode(ids[-16:], False).rstrip().endswith(marks[0])

    async def encode_chat(self, body: ChatCompletion | Tokenize, tools: Any = None) -> tuple[list[int], int]:
        """The prompt, and when it was rendered and not yet tokenised, as in Stamps."""
        if body.continue_final_message and body.add_generation_prompt:
            raise RequestError("continue_final_message and add_generation_prompt contradict each other",
                               "continue_final_message")
        if isinstance(body, ChatCompletion):
            texts = (m["content"] for m in body.messages if isinstance(m.get("content"), str))
            self.check_size(sum(map(len, texts)), "messages")
        how = {"tools": tools, "add_generation_prompt": body.add_generation_prompt is not False,
               "continue_final_message": body.continue_final_message} | template_variables(body.chat_template_kwargs)

        def encode() -> tuple[list[int], int]:
            text = self.chat_form.render(self.tokenizer, history(body.messages), **how)
            rendered_ns = time.monotonic_ns()
            return self.chat_form.tokens(self.tokenizer, text), rendered_ns

        return await run_in_threadpool(encode)

    def check_ids(self, ids: list[int], param: str) -> None:
        size = self.llm.ready.model.vocab_size
        if not all(type(t) is int and 0 <= t < size for t in ids):
            raise RequestError(f"token ids must be integers from 0 to {size - 1}", param)
