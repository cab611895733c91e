"""transformers is the oracle: equal ids, equal rendered text, for templates of the forms in use."""
import pytest
from tiny import KINDS, SAMPLES

transformers = pytest.importorskip("transformers")

from gramme.text.chat import Chat  # noqa: E402
from gramme.text.tokenizer import load_tokenizer  # noqa: E402

TEMPLATES = {
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + "
        "' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"),
    "llama3": (
        "{{- bos_token }}\n{%- if not date is defined %}{%- set date = '1 Jan' %}{%- endif %}\n"
        "{%- for m in messages %}\n"
        "{{- '<|begin|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '</s>' }}\n{%- endfor %}\n"
        "{%- if tools is not none %}{%- for t in tools %}\n{{- t | tojson(indent=4) }}\n{{- '\n\n' }}{%- endfor %}"
        "{%- endif %}"
        "{%- if add_generation_prompt %}\n    {{- '<|begin|>assistant<|end|>\n\n' }}\n{%- endif %}"),
    "qwen": (
        "{%- if tools %}\n{{- '<|im_start|>system\n' }}<tools>{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}"
        "{%- endfor %}{{- '</tools><|im_end|>\n' }}{%- endif %}{%- set ns = namespace(last=messages|length - 1) %}"
        "{%- for m in messages[::-1] %}{%- set ns.last = loop.index0 %}{%- endfor %}{%- for m in messages %}"
        "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"),
    "hermes": (
        "{% macro kind(x) %}{{ {'string': 'str'}.get(x.type, x.type) }}{% endmacro %}\n{% if tools %}\n"
        "    <|im_start|>system\n"
        "    {% for t in tools %}\n{{ t.function.name }}: {% for n, p in t.function.parameters.properties.items() %}"
        "{{ n }}={{ kind(p) }}{% if not loop.last %}, {% endif %}{% endfor %}\n    {% endfor %}\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"),
}
MESSAGES = [{"role": "user", "content": " Quel temps à Zürich ?\n"},
            {"role": "assistant", "content": "Beau <b>&</b> 🙂"}, {"role": "user", "content": "  Merci !"}]
TOOLS = [{"type": "function", "function": {"name": "météo", "parameters": {
    "type": "object", "properties": {"ville": {"type": "string"}, "jours": {"type": "integer"}}}}}]


def oracle(directory):
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("kind", KINDS)
def test_ids(directories, kind):
    mine, theirs = load_tokenizer(directories[kind]), oracle(directories[kind])
    assert (mine.bos_id, mine.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in SAMPLES:
        assert mine.encode(text) == theirs.encode(text)
        ids = mine.encode(text + "<s>")
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("kind", ["llama3", "llama2", "metaspace"])
def test_chat(directories, renderer, form, tools, kind):
    mine, theirs = load_tokenizer(directories[kind]), oracle(directories[kind])
    for last in (True, False):
        expected = theirs.apply_chat_template(
            MESSAGES, tools=tools, chat_template=TEMPLATES[form], add_generation_prompt=last, return_dict=False)
        chat = Chat(TEMPLATES[form], renderer)
        assert chat.encode(mine, MESSAGES, tools=tools, add_generation_prompt=last) == expected


@pytest.mark.parametrize("form", TEMPLATES)
def test_marked_text_splits_as_whole_text(directories, renderer, form):
    """With a harmless control string at the very end, all ids before it are those of the unmarked conversation."""
    mine = load_tokenizer(directories["metaspace"])
    chat = Chat(TEMPLATES[form], renderer)
    plain = chat.encode(mine, MESSAGES, add_generation_prompt=False)
    evil = [*MESSAGES[:-1], {"role": "user", "content": "  Merci ! <s>"}]
    marked = chat.encode(mine, evil, add_generation_prompt=False)
    same = next(i for i, (a, b) in enumerate(zip(plain, marked)) if a != b)
    assert same > len(plain) - 12
