"""Engines on stub servers."""

import threading

from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.connect import connect
from rlhf_cli.rollout.server.connection import Connection
from rlhf_cli.rollout.server.engine import ServerEngine
from tests.helpers import tiny_llama, tokenizer_of

MODEL = tiny_llama()
TOKENIZER = tokenizer_of(range(97))
TOKENIZER.decode = lambda tokens: "".join(f"<{token}>" for token in tokens)
PROMPTS = [[5, 6, 7], [8, 9], [11], [12, 13, 14, 15]]


class Clock:
    """Time that passes only while something waits."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def engine_of(
    *stubs, sampling=None, sync=None, clock=None, model=MODEL, tokenizer=TOKENIZER, **cfg
):
    """An engine whose servers are stubs, and that waits without time passing."""
    clock = clock or Clock()
    settings = ServerConfig(server=[stub.url for stub in stubs], **{"timeout": 5, **cfg})
    slots = threading.BoundedSemaphore(settings.concurrency)
    connections = [
        Connection(api, settings.deadline, slots, None, clock.sleep, clock)
        for api in connect(settings)
    ]
    names = ["tiny" if stub.kind == "vllm" else "" for stub in stubs]
    sampling = sampling or SamplingConfig(max_new_tokens=6)
    return ServerEngine(
        connections,
        names,
        model,
        tokenizer,
        sampling,
        concurrency=settings.concurrency,
        sync=sync,
    )


def respond(engine, prompts=PROMPTS, samples=2, numbers=None):
    """Responses to prompts, which have their positions as numbers."""
    chosen = list(range(len(prompts))) if numbers is None else numbers
    return engine.generate(prompts, samples=samples, prompt_numbers=chosen)


def ids(responses):
    return [response.token_ids for response in responses]
