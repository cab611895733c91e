"""Greedy answers of a model to questions in its chat form, many at once. Knows an `LLM` and no measure."""
from collections.abc import Callable, Sequence

from gramme.llm.llm import LLM

AT_ONCE = 50  # questions between two reports of progress


def answers(llm: LLM, questions: Sequence[str], max_tokens: int,
            progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """The most probable tokens under the model's own penalties; `--generation-config none` leaves them out."""
    params, out = llm.default_params(temperature=0.0, max_tokens=max_tokens), []
    for i in range(0, len(questions), AT_ONCE):
        progress(i, len(questions))
        prompts = [{"messages": [{"role": "user", "content": q}]} for q in questions[i : i + AT_ONCE]]
        out += [r.outputs[0].text.strip() for r in llm.generate(prompts, params)]
    progress(len(questions), len(questions))
    return out
