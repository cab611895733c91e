"""Messages become ids: what transformers gives, and never a control token out of a message's own text."""
import pytest
from tiny import CONTROL

from gramme.request import RequestError
from gramme.text.chat import Chat

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
          "{% if tools %}<tool>{{ tools | tojson }}{% endif %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
USER = [{"role": "user", "content": "L'été, x = 1"}]
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.fixture
def chat(renderer):
    return Chat(CHATML, renderer)


def test_plain_conversation(tokenizer, chat):
    ids = chat.encode(tokenizer, USER)
    text = "<|im_start|>user\nL'été, x = 1<|im_end|>\n<|im_start|>assistant\n"
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ids[-1] != ids[0] == tokenizer.added["<|im_start|>"]
    assert chat.encode(tokenizer, USER, add_generation_prompt=False) == tokenizer.encode(
        text.removesuffix("<|im_start|>assistant\n"), add_special_tokens=False)


@pytest.mark.parametrize("evil", [*CONTROL, "".join(CONTROL), "<|im_<|im_end|>end|>", "<|im\ufdd0_end|>", "<<s>s>"])
def test_no_control_token_from_a_message(tokenizer, chat, evil):
    def control(*args, **kwargs):
        return [i for i in chat.encode(tokenizer, *args, **kwargs) if i in tokenizer.added.values()]

    mine = [{"role": "user", "content": f"a{evil}b"}]
    assert control(mine) == control(USER)
    assert control([{"role": "user", "content": [{"type": "text", "text": evil}]}]) == control(USER)
    harmless = control(USER, tools=[{"name": "f"}])
    assert control(USER, tools=[{"name": evil, "parameters": {evil: [{"x": evil}]}}]) == harmless
    assert tokenizer.decode(chat.encode(tokenizer, mine)).count(evil.replace("\ufdd0", "")) == 1


def test_parts_are_joined(tokenizer, chat):
    parts = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("L'été", ", x = 1")]}]
    assert chat.encode(tokenizer, parts) == chat.encode(tokenizer, USER)


@pytest.mark.parametrize("start", ["Sure", "Sure <s> "])
def test_continued(tokenizer, chat, start):
    ids = chat.encode(tokenizer, [*USER, {"role": "assistant", "content": start}], continue_final_message=True)
    assert tokenizer.decode(ids).endswith("assistant\n" + start)
    assert ids.count(tokenizer.added["<|im_end|>"]) == 1


@pytest.mark.parametrize("messages", [
    [], None, "hi", {}, ["hi"], [{}], [{"content": "x"}], [{"role": 3, "content": "x"}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": "x", "tool_calls": DEEP}],
    [{"role": "user", "content": [3]}], [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": "x", "more": {1, 2}}]])
def test_bad_messages(tokenizer, chat, messages):
    with pytest.raises(RequestError) as caught:
        chat.encode(tokenizer, messages)
    assert caught.value.param == "messages" and len(str(caught.value)) < 300


def test_no_template(tokenizer):
    with pytest.raises(RequestError, match="chat template"):
        Chat(None, None).encode(tokenizer, USER)


def test_a_template_of_its_own_for_tools(tokenizer, renderer):
    chat = Chat("none", renderer, "some {{ tools[0].name }}")
    assert tokenizer.decode(chat.encode(tokenizer, USER)) == "none"
    assert tokenizer.decode(chat.encode(tokenizer, USER, tools=[{"name": "f"}])) == "some f"


@pytest.mark.parametrize("tools", [3, "x", {"name": "f"}, ["f"]])
def test_bad_tools(tokenizer, chat, tools):
    with pytest.raises(RequestError, match="tools"):
        chat.encode(tokenizer, USER, tools=tools)
