"""Many streaming clients at once in too few pages, against the same requests one by one: the tokens must be the same.

    python bench/clients.py [--clients 32] [--longest 1500] [--answer 120] [--backend auto]

Half of the clients sample with seeds. The pages hold half of what all need together, so sequences are preempted.
Prints counts and one line of JSON, and writes it to bench/results/clients.json.
"""
import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from serve_process import Served

RESULTS = Path(__file__).parent / "results"


def requests(clients, longest, answer):
    """Prompts of 1 to `longest` tokens, all different; every other one sampled with a seed of its own."""
    rng = random.Random(1)
    for i in range(clients):
        length = 1 + (longest - 1) * i // max(1, clients - 1)
        prompt = [rng.randrange(3, 4000) for _ in range(length)]
        yield {"prompt": prompt, "max_tokens": answer, "temperature": float(i % 2), "seed": i}


def tokens(client, body):
    """The token ids of a streamed answer."""
    chunks = client.completions.create(model="dummy:tiny", stream=True, **body,
                                       extra_body={"ignore_eos": True, "return_token_ids": True})
    return [t for c in chunks for choice in c.choices for t in choice.model_extra.get("token_ids", ())]


def trial(clients=32, longest=1500, answer=120, backend="auto"):
    bodies = list(requests(clients, longest, answer))
    needed = sum(len(b["prompt"]) + answer for b in bodies)
    held = max(needed // 2, longest + answer)
    common = ("dummy:tiny", "--backend", backend, "--max-num-seqs", str(clients), "--max-model-len",
              str(longest + answer + 16))
    with Served(*common, "--kv-tokens", str(2 * needed)) as roomy, openai.OpenAI(
            base_url=roomy.url + "/v1", api_key="-", max_retries=0) as client:
        alone = [tokens(client, b) for b in bodies]
    with Served(*common, "--kv-tokens", str(held)) as tight, openai.OpenAI(
            base_url=tight.url + "/v1", api_key="-", max_retries=0) as client, ThreadPoolExecutor(clients) as pool:
        began_s = time.monotonic()
        together = list(pool.map(lambda b: tokens(client, b), bodies))
        took_s = time.monotonic() - began_s
        preemptions = tight.metric("num_preemptions_total")
        left = tight.metric("num_requests_running") + tight.metric("num_requests_waiting")
    return {"clients": clients, "prompt_tokens": needed - clients * answer, "answer_tokens": clients * answer,
            "kv_tokens_needed": needed, "kv_tokens": held, "backend": backend, "seconds": round(took_s, 2),
            "equal_to_separate_runs": sum(a == b for a, b in zip(alone, together)),
            "complete": sum(len(a) == answer for a in together), "preemptions": int(preemptions),
            "left_behind": int(left)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--longest", type=int, default=1500)
    p.add_argument("--answer", type=int, default=120)
    p.add_argument("--backend", default="auto")
    result = trial(**vars(p.parse_args()))
    print(f"{result['equal_to_separate_runs']} of {result['clients']} streams brought the tokens of separate runs, "
          f"{result['preemptions']} preemptions, {result['seconds']} s")
    print(json.dumps(result))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "clients.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
