"""A conversation to token ids: the template's control strings become control tokens, a message's never do."""
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gramme.request import RequestError
from gramme.text.source import TextSource
from gramme.text.template import TemplateRenderer, find_template
from gramme.text.tokenizer import Tokenizer

MARK = "\ufdd0"  # a code point that is no character: it breaks control strings inside contents until they are encoded
END = "\ufdd1"  # another one: it marks where the last message's content ends
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_MESSAGES = 4096


class Chat:
    def __init__(self, template: str | None, renderer: TemplateRenderer | None, tool_template: str | None = None):
        self.template, self._renderer, self.tool_template = template, renderer, tool_template or template

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **how: Any) -> list[int]:
        """Render and tokenise."""
        return self.tokens(tokenizer, self.render(tokenizer, messages, **how))

    def render(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *,
               tools: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = True,
               continue_final_message: bool = False, **variables: Any) -> str:
        """The text for `tokens`, with marks. Raises RequestError naming the message that is not as it should be.

        `continue_final_message` leaves the last message open: the prompt ends with its content.
        """
        template = self.tool_template if tools else self.template
        if template is None or self._renderer is None:
            raise RequestError("the model has no chat template; give one with --chat-template", "messages")
        checked = [_message(m, i) for i, m in enumerate(_listed(messages))]
        if continue_final_message:
            add_generation_prompt = False
            checked[-1]["content"] = (checked[-1]["content"] or "") + END
        try:
            marked = _mark(variables | {"messages": checked, "tools": _tools(tools)}, _control(tokenizer))
        except RecursionError:
            raise RequestError("messages or tools are nested too deeply", "messages") from None
        special = {name: tokenizer.token_str(i) for name, i in
                   (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)) if i is not None}
        text = self._renderer.render(
            template, special | marked | {"add_generation_prompt": add_generation_prompt})
        if continue_final_message:
            text = _cut(text)
        if not text.isprintable() and SURROGATE.search(text):
            raise RequestError("messages hold half a surrogate pair, which is no text", "messages")
        return text

    def tokens(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Of what `render` made."""
        if MARK not in text:
            return tokenizer.encode(text, add_special_tokens=False)
        return _encode_marked(tokenizer, text, _control(tokenizer))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()


def open_chat(source: TextSource, override: str | None = None) -> Chat:
    """The model's template, and a process that renders it, started now."""
    template = find_template(source, override)
    tool_template = find_template(source, override, "tool_use")
    return Chat(template, TemplateRenderer() if template is not None else None, tool_template)


def _listed(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, list | tuple) or not 0 < len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages must be a list of 1 to {MAX_MESSAGES} messages", "messages")
    return messages


def _tools(tools: Any) -> list[Any] | None:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
        raise RequestError("tools must be a list of objects", "tools")
    return list(tools) or None


def _message(m: Any, i: int) -> dict[str, Any]:
    if not isinstance(m, Mapping) or not isinstance(m.get("role"), str):
        raise RequestError(f"messages[{i}] needs a role", "messages")
    content = m.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_part(p, i) for p in content)
    if content is not None and not isinstance(content, str):
        raise RequestError(f"messages[{i}].content must be text or a list of text parts", "messages")
    return {**m, "content": content}


def _part(part: Any, i: int) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f"messages[{i}].content holds a part that is not text; only text is supported", "messages")
    return str(part["text"])


def _control(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches the control strings, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokenizer.added, key=len, reverse=True))) or r"(?!)")


def _mark(value: Any, control: re.Pattern[str]) -> Any:
    """The same nested value with a mark after the first character of every control string."""
    if isinstance(value, str):
        return control.sub(lambda m: m[0][0] + MARK + m[0][1:], value.replace(MARK, ""))
    if isinstance(value, Mapping):
        return {_mark(k, control): _mark(v, control) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(v, control) for v in value]
    return value


def _encode_marked(tokenizer: Tokenizer, text: str, control: re.Pattern[str]) -> list[int]:
    """Between the template's own control strings, everything is ordinary text."""
    ids: list[int] = []
    at = 0
    for match in control.finditer(text):
        ids += _plain(tokenizer, text[at : match.start()], at == 0)
        ids.append(tokenizer.added[match[0]])
        at = match.end()
    return ids + _plain(tokenizer, text[at:], at == 0)


def _plain(tokenizer: Tokenizer, text: str, first: bool) -> list[int]:
    return tokenizer.encode_plain(text.replace(MARK, ""), first) if text else []


def _cut(text: str) -> str:
    """The text up to the end of the last message's content, even where the template trims the content."""
    head, found, _ = text.rpartition(END)
    if not found:
        raise RequestError("the chat template does not show the last message; it cannot be continued", "messages")
    return head.replace(END, "")
