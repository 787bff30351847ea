"""Commands that start inference servers for a result, by their documented options.

The options are those of transformers 5.23, vLLM 0.32, SGLang 0.5.23 and of llama.cpp's
`convert_hf_to_gguf.py` and `llama-server` in September 2026.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_cli.commands.serve.facts import Served
from rlhf_cli.rollout.server.config import VLLM_RANKS

PORT = 8000

SGLANG_SCORES = tuple(
    f"{family}ForSequenceClassification" for family in ("Llama", "Qwen2", "Qwen3", "Gemma2")
)
"""Reward models that SGLang loads."""

GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Recipe:
    """How one server serves a result.

    Attributes:
        server: its name.
        version: whose options these are.
        commands: to type one after the other; empty if it cannot serve the result.
        request: a command that tries it; empty if it cannot serve the result.
        notes: what to know.
    """

    server: str
    version: str
    commands: tuple[str, ...] = ()
    request: str = ""
    notes: tuple[str, ...] = ()


def recipes(served: Served) -> list[Recipe]:
    """One recipe for each server."""
    makers: tuple[Callable[[Served], Recipe], ...] = (transformers, vllm, sglang, llama_cpp)
    return [make(served) for make in makers]


def line(*words: str | int) -> str:
    """A command with quoted arguments."""
    return shlex.join(str(word) for word in words)


def merge_first(served: Served) -> tuple[str, ...]:
    """The command that merges an adapter; nothing for whole weights."""
    merged = f"{served.given}-merged"
    return (line("rlhf", "merge", served.given, f"output_dir={merged}"),)


def weights_of(served: Served, *, merged: bool) -> str:
    """Folder or hub id of whole weights."""
    return f"{served.given}-merged" if merged else served.base or served.folder


def transformers(served: Served) -> Recipe:
    """`transformers serve`: one model, OpenAI's API."""
    name, version = "transformers", "5.23, pip install 'transformers[serving]'"
    if served.scores:
        return Recipe(name, version, notes=("It has no endpoint for scores of a reward model.",))
    merged = served.is_adapter
    folder = weights_of(served, merged=merged)
    quant = {"nf4": "bnb-4bit", "int8": "bnb-8bit"}.get(served.quant, "")
    command = line(
        *("transformers", "serve", folder, "--dtype", served.dtype or "auto"),
        *(("--quantization", quant) if quant and not merged else ()),
        *("--port", PORT),
    )
    notes = ("It takes no adapter, so it is merged first.",) if merged else ()
    commands = (*(merge_first(served) if merged else ()), command)
    return Recipe(name, version, commands, generation_request(served, folder), notes)


def vllm(served: Served) -> Recipe:
    """`vllm serve`: generation, adapters, or scores by its pooling runner."""
    merged = bool(served.needs_merge) or served.rank > VLLM_RANKS[-1]
    folder = weights_of(served, merged=merged)
    length = ("--max-model-len", served.positions) if served.positions else ()
    words = ["vllm", "serve", folder, "--dtype", served.dtype or "auto", *length]
    if served.scores:
        words += ["--runner", "pooling", "--convert", "classify"]
    elif served.is_adapter and not merged:
        rank = next(rank for rank in VLLM_RANKS if rank >= served.rank)
        words += ["--enable-lora", "--lora-modules", f"{served.name}={served.folder}"]
        words += ["--max-lora-rank", rank]
        words += ["--tokenizer", served.folder]
    if not (served.is_adapter and not merged):
        words += ["--served-model-name", served.name]
    words += ["--port", PORT]
    commands = (*(merge_first(served) if merged else ()), line(*words))
    request = score_request(served, "/classify", "input") if served.scores else ""
    return Recipe(
        "vLLM",
        "0.32",
        commands,
        request or generation_request(served, served.name),
        (*adapter_notes(served, merged=merged), *score_notes(served, vllm=True)),
    )


def sglang(served: Served) -> Recipe:
    """`sglang serve`: generation, adapters, or scores of a few classes."""
    if served.scores and served.architecture not in SGLANG_SCORES:
        what = served.architecture or "This class"
        note = f"{what} is none of the reward models that it loads: {', '.join(SGLANG_SCORES)}."
        return Recipe("SGLang", "0.5.23", notes=(note,))
    merged = bool(served.needs_merge)
    folder = weights_of(served, merged=merged)
    words = ["sglang", "serve", "--model-path", folder, "--dtype", served.dtype or "auto"]
    if served.positions:
        words += ["--context-length", str(served.positions)]
    if served.scores:
        words += ["--is-embedding"]
    elif served.is_adapter and not merged:
        words += ["--tokenizer-path", served.folder, "--lora-paths"]
        words += [f"{served.name}={served.folder}"]
    words += ["--served-model-name", served.name, "--port", str(PORT)]
    name = f"{served.name}:{served.name}" if served.is_adapter and not merged else served.name
    request = score_request(served, "/classify", "text") if served.scores else ""
    return Recipe(
        "SGLang",
        "0.5.23",
        (*(merge_first(served) if merged else ()), line(*words)),
        request or generation_request(served, name),
        (*adapter_notes(served, merged=merged), *score_notes(served, vllm=False)),
    )


def llama_cpp(served: Served) -> Recipe:
    """llama.cpp: convert whole weights to GGUF, then `llama-server`."""
    version = "September 2026, in its folder"
    if served.scores:
        return Recipe("llama.cpp", version, notes=("It reads no head of such a reward model.",))
    merged = served.is_adapter
    folder, gguf = weights_of(served, merged=merged), f"{served.name}.gguf"
    out = GGUF_TYPES.get(served.dtype, "auto")
    context = ("-c", served.positions) if served.positions else ()
    commands = (
        *(merge_first(served) if merged else ()),
        line("python", "convert_hf_to_gguf.py", folder, "--outfile", gguf, "--outtype", out),
        line("llama-server", "-m", gguf, *context, "-a", served.name, "--port", PORT),
    )
    request = generation_request(served, served.name, stop=served.ends)
    notes = ("A tokenizer that its converter does not know is refused by it.",)
    return Recipe("llama.cpp", version, commands, request, notes)


def adapter_notes(served: Served, *, merged: bool) -> tuple[str, ...]:
    """Why an adapter is merged, or on which base it is served."""
    if merged:
        why = served.needs_merge or f"its rank {served.rank} is larger than {VLLM_RANKS[-1]}"
        return (f"The adapter is merged first: {why}.",)
    if served.is_adapter and served.quant != "none":
        return (f"It was trained on a base in {served.quant}; here the base is not quantized.",)
    return ()


def score_notes(served: Served, *, vllm: bool) -> tuple[str, ...]:
    """Where a reward model's score is read."""
    if not served.scores:
        return ()
    end = f" ({served.ends[0]})" if served.ends else ""
    first = (
        f"The score is read at the last token, so texts must end with the end token{end}; rlhf "
        "score does that by itself."
    )
    return (first, "use_activation=false gives the logit.") if vllm else (first,)


def generation_request(served: Served, name: str, stop: tuple[str, ...] = ()) -> str:
    """A request of OpenAI's API: a chat, or a text to continue."""
    body: dict[str, object] = {"model": name, "max_tokens": 64, "temperature": 0.7}
    if served.chats:
        body["messages"] = [{"role": "user", "content": "Hello, you"}]
    else:
        body["prompt"] = "Hello, you"
    if stop:
        body["stop"] = list(stop)
    return curl("/v1/chat/completions" if served.chats else "/v1/completions", body)


def score_request(served: Served, path: str, key: str) -> str:
    """A request for the score of a text."""
    end = served.ends[0] if served.ends else ""
    body: dict[str, object] = {"model": served.name, key: f"PROMPT RESPONSE{end}"}
    if key == "input":
        body |= {"use_activation": False, "add_special_tokens": False}
    return curl(path, body)


def curl(path: str, body: dict[str, object]) -> str:
    """A POST request with a JSON body."""
    content = json.dumps(body, ensure_ascii=False)
    header = "Content-Type: application/json"
    return line("curl", f"http://localhost:{PORT}{path}", "-H", header, "-d", content)
