"""Throughput and latency of the engine with many requests at once: 1,024 tokens in, 512 out, as many as fit."""
import statistics
import time
from itertools import pairwise

import engine as engine_part
from common import DRY, called, random_tokens, save, time_left

REQUESTS, PROMPT, ANSWER = (3, 8, 3) if DRY else (192, 1024, 512)


def main() -> None:
    engine, _ = engine_part.load()
    engine_part.first_token_s(engine, random_tokens(PROMPT, engine_part.R))
    engine_part.capture(engine)  # as a server does in its first idle moment
    began, arrived = time.monotonic(), {}
    for _ in range(REQUESTS):
        r = engine_part.request(random_tokens(PROMPT, engine_part.R), ANSWER)
        arrived[r.id] = [time.monotonic()]
        engine.add(r)
    generated = steps = 0
    while engine.busy and time_left() > 5:
        for update in engine.step():
            generated += len(update.token_ids)
            arrived[update.id] += [time.monotonic()] * len(update.token_ids)
        steps += 1
    took = time.monotonic() - began
    gaps = [b - a for times in arrived.values() for a, b in pairwise(times[1:])]
    save("serve", {
        "requests": REQUESTS, "prompt_tokens": PROMPT, "answer_tokens": ANSWER, "all_answered": not engine.busy,
        "generated_tokens": generated, "seconds": took, "tokens_s": generated / took, "steps": steps,
        "token_gap_median_s": statistics.median(gaps), "token_gap_p99_s": statistics.quantiles(gaps, n=100)[98],
        "preemptions": engine.stats().preemptions, "halved_steps": engine.runner.halved,
    }, finished=True)
    called("add_norm_kernel", "place_kernel", "attend_kernel", "matmul_kernel", "choose_kernel")


if __name__ == "__main__":
    main()
