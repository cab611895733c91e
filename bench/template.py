"""Rendering and encoding conversations of 20 messages that were not seen before, times in ms: median and worst of 200.

    python bench/template.py
"""
import json
import random
import time
from statistics import median

from gramme.models.open import EMBEDDED
from gramme.text.chat import Chat
from gramme.text.template import TemplateRenderer
from gramme.text.tokenizer import load_tokenizer

TEMPLATE = (  # the form of Qwen and Hermes
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
WORDS = ["le", "train", "maison", "hier", "pluie", "soleil", "the", "of", "house", "rain", "tomorrow", "why", "because"]


def conversation(r: random.Random) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": " ".join(r.choices(WORDS, k=40))} for i in range(20)]


def main() -> None:
    tokenizer, renderer, r = load_tokenizer(EMBEDDED), TemplateRenderer(), random.Random(0)
    chat = Chat(TEMPLATE, renderer)
    render_ms, encode_ms = [], []
    for i in range(201):
        messages = conversation(r)
        began = time.perf_counter()
        renderer.render(TEMPLATE, {"messages": messages, "tools": None, "add_generation_prompt": True})
        rendered = time.perf_counter()
        chat.encode(tokenizer, messages)
        if i:  # the first waits for the child and compiles the template
            render_ms.append((rendered - began) * 1e3)
            encode_ms.append((time.perf_counter() - rendered) * 1e3)
    renderer.close()
    print(json.dumps({"bench": "template", "messages": 20, "render_ms": round(median(render_ms), 3),
                      "render_worst_ms": round(max(render_ms), 3), "render_and_encode_ms": round(median(encode_ms), 3),
                      "render_and_encode_worst_ms": round(max(encode_ms), 3)}))


if __name__ == "__main__":
    main()
