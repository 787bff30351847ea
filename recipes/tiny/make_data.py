"""Write the tiny task's data, tokenizer and model configuration; the same bytes at every run.

    python recipes/tiny/make_data.py [FOLDER]

FOLDER (default: the folder of this file) receives `data/` and `model/`. No (name, topic) pair of
a test prompt is asked for in a training prompt; a pretraining text may mention one in passing.
"""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from judge import CLOSINGS, FACTS, NAMES, REQUESTS, Request, score
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Row = dict[str, Any]

SEED = 20240229
TEST_SHARE = 0.2
"""Share of all (name, topic) pairs that only test files use."""

TRAIN_ROWS = {"pretrain": 900, "sft": 1000, "reward": 1200, "ppo": 400, "dpo": 480, "bco": 480}
TEST_ROWS = 100
VOCABULARY = 1024
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, END = 0, 1

LABEL_THRESHOLD = 5.0
"""Lowest score of a completion that bco's rows call desirable."""

REWARD_SHARES = (0.4, 0.4, 0.2)
"""Of a reward model's pairs: of two writers, with one sentence changed, with a mistake."""

# Habits of the people whose replies are imitated: good on content, a matter of luck on style.
THANKS, KEEPS_NAME, KNOWS, LIES, RAMBLES, KIND_CLOSING = 0.45, 0.9, 0.8, 0.1, 0.45, 0.4

THANKFUL = (
    "Thank you for asking{name}.",
    "Thanks for asking{name}.",
    "Thanks for your note{name}.",
)
PLAIN = ("Hello there{name}.", "Well now{name}.", "Good morning{name}.", "Here you go{name}.")
STATEMENTS = (
    "{topic} {fact}.",
    "I know that {topic} {fact}.",
    "They say that {topic} {fact}.",
    "You may like to hear that {topic} {fact}.",
)
EVASIONS = (
    "I do not know much about {topic}.",
    "There is a lot to say about {topic}.",
    "I would have to look that up.",
)
RAMBLING = (
    "I could say a lot more about this, but not today.",
    "My uncle used to talk about it all day long.",
    "This reminds me of an evening at home in the hills.",
)
COLD_CLOSINGS = ("That is all.", "No more questions.", "Do not ask again.", "You should know that.")

STORIES = (
    "{name} likes {topic}. {Topic} {fact}.",
    "{name} told {other} that {topic} {fact}.",
    "{other} wants to know about {topic}. {name} knows that {topic} {fact}.",
    "Everybody knows that {topic} {fact}, and {topic} {fact2}.",
    "They say that {topic} {fact}. {name} says that {topic} {fact2}.",
)
LETTERS = (
    "{name} asks about {topic}. {thanks} You may like to hear that {topic} {fact}.",
    "{name} wrote a letter about {topic}. Good morning, {name}. I know that {topic} {fact}.",
    "A note from {name} came. {thanks} {Topic} {fact}, and {topic} {fact2}.",
    "Here is {name}. Hello there, {name}. There is a lot to say about {topic}.",
)
REMARKS = (*CLOSINGS, *COLD_CLOSINGS, *RAMBLING)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "dtype": "float32",
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|end|>",
    "pad_token": "<|pad|>",
    "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": CONFIG["max_position_embeddings"],
}


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def opening(rng: random.Random, name: str) -> str:
    """First sentence of a reply, thankful or not, with the name or without."""
    forms = THANKFUL if rng.random() < THANKS else PLAIN
    address = f", {name}" if rng.random() < KEEPS_NAME else ""
    return rng.choice(forms).format(name=address)


def statement(rng: random.Random, topic: str) -> str:
    """What a reply says about the topic: mostly true, at times false or evasive."""
    luck = rng.random()
    if luck >= KNOWS + LIES:
        return rng.choice(EVASIONS).format(topic=topic)
    source = topic if luck < KNOWS else rng.choice([other for other in FACTS if other != topic])
    fact = rng.choice(FACTS[source])
    return capital(rng.choice(STATEMENTS).format(topic=topic, fact=fact))


def closing(rng: random.Random) -> str:
    """Last sentence of a reply: kind, cold or none."""
    if rng.random() < KIND_CLOSING:
        return rng.choice(CLOSINGS)
    return rng.choice(["", *COLD_CLOSINGS])


def sentences(rng: random.Random, request: Request) -> list[str]:
    """The sentences of a reply of mixed quality, in order; an empty one is left out."""
    aside = rng.choice(RAMBLING) if rng.random() < RAMBLES else ""
    return [opening(rng, request.name), statement(rng, request.topic), aside, closing(rng)]


def reply(rng: random.Random, request: Request) -> str:
    """A reply of mixed quality."""
    return joined(sentences(rng, request))


def joined(parts: Iterable[str]) -> str:
    """Sentences as a text."""
    return " ".join(part for part in parts if part)


def twins(rng: random.Random, request: Request) -> list[str]:
    """Two replies that differ in one sentence."""
    parts, others = sentences(rng, request), sentences(rng, request)
    index = rng.randrange(len(parts))
    return [joined(parts), joined([*parts[:index], others[index], *parts[index + 1 :]])]


def slip(rng: random.Random, text: str) -> str:
    """The text with a mistake of a writer who goes too fast."""
    spoken = text.split()
    at = rng.randrange(len(spoken))
    mistakes = (
        [*spoken[:at], *spoken[at + 1 :]],
        spoken[: at + 1],
        [*spoken[: at + 1], *spoken[at:]],
        [*spoken[:at], rng.choice(spoken), *spoken[at + 1 :]],
        [*spoken[:-1], spoken[-1] + spoken[-1][-1]],
        [*spoken, *spoken[-3:]],
    )
    return " ".join(rng.choice(mistakes))


def with_slip(rng: random.Random, request: Request) -> list[str]:
    """A reply, and the same with a mistake."""
    text = reply(rng, request)
    return [text, slip(rng, text)]


def prompt(rng: random.Random, request: Request) -> list[Row]:
    """The request as the one message of a user."""
    content = rng.choice(REQUESTS).format(name=request.name, topic=request.topic)
    return [{"role": "user", "content": content}]


def ranked_replies(rng: random.Random, messages: list[Row], request: Request, n: int) -> list[str]:
    """`n` replies from the best to the worst, the best strictly better than the worst."""
    return ranked(messages, lambda: [reply(rng, request) for _ in range(n)])


def ranked(messages: list[Row], make: Callable[[], list[str]]) -> list[str]:
    """Replies from the best to the worst, made anew until not all are equally good."""
    while True:
        replies = make()
        scores = score(prompts=[messages] * len(replies), responses=replies)
        if max(scores) > min(scores):
            order = sorted(range(len(replies)), key=lambda i: -scores[i])
            return [replies[i] for i in order]


def pretrain_row(rng: random.Random, request: Request) -> Row:
    """A story and a letter about a person and a topic, in plain text."""
    fact, fact2 = rng.sample(FACTS[request.topic], 2)
    words = {"name": request.name, "topic": request.topic, "Topic": capital(request.topic)}
    words |= {"fact": fact, "fact2": fact2, "other": rng.choice(NAMES)}
    words["thanks"] = rng.choice(THANKFUL).format(name=f", {request.name}")
    forms = [rng.choice(STORIES), rng.choice(LETTERS), rng.choice(REMARKS)]
    return {"text": " ".join(form.format(**words) for form in forms)}


def sft_row(rng: random.Random, request: Request) -> Row:
    """One exchange, as the imitated people would have it."""
    answer = {"role": "assistant", "content": reply(rng, request)}
    return {"messages": [*prompt(rng, request), answer]}


def reward_row(rng: random.Random, request: Request) -> Row:
    """The better and the worse of two replies: two writers', or one's with one thing changed.

    Where all pairs are of two writers, a reward model learns the one or two habits that differ most
    often, and a policy finds out which mistakes it has never seen.
    """
    messages = prompt(rng, request)
    makers = (lambda rng, request: [reply(rng, request) for _ in range(2)], twins, with_slip)
    maker = rng.choices(makers, REWARD_SHARES)[0]
    chosen, rejected = ranked(messages, lambda: maker(rng, request))
    return {"prompt": messages, "chosen": chosen, "rejected": rejected}


def dpo_row(rng: random.Random, request: Request) -> Row:
    """The best and the worst of four replies."""
    messages = prompt(rng, request)
    chosen, *_, rejected = ranked_replies(rng, messages, request, 4)
    return {"prompt": messages, "chosen": chosen, "rejected": rejected}


def bco_row(rng: random.Random, request: Request) -> Row:
    """The better or the worse of three replies, and whether it is a good one."""
    messages = prompt(rng, request)
    completion = ranked_replies(rng, messages, request, 3)[rng.choice([0, -1])]
    (points,) = score(prompts=[messages], responses=[completion])
    return {"prompt": messages, "completion": completion, "label": points >= LABEL_THRESHOLD}


def ppo_row(rng: random.Random, request: Request) -> Row:
    """A prompt alone."""
    return {"prompt": prompt(rng, request)}


ROWS: dict[str, Callable[[random.Random, Request], Row]] = {
    "pretrain": pretrain_row,
    "sft": sft_row,
    "reward": reward_row,
    "ppo": ppo_row,
    "dpo": dpo_row,
    "bco": bco_row,
}


def split_requests(seed: int) -> tuple[list[Request], list[Request]]:
    """All (name, topic) pairs in random order, as training and test requests."""
    requests = [Request(name, topic) for name in NAMES for topic in FACTS]
    random.Random(seed).shuffle(requests)
    held_out = round(TEST_SHARE * len(requests))
    return requests[held_out:], requests[:held_out]


def draw(rng: random.Random, pool: list[Request], count: int) -> list[Request]:
    """Requests in random order, each as seldom repeated as the count allows."""
    rounds = -(-count // len(pool))
    return rng.sample(pool * rounds, count)


def make_rows(seed: int) -> Iterator[tuple[str, list[Row]]]:
    """File name and rows of every data file."""
    train, test = split_requests(seed)
    for stage, make_row in ROWS.items():
        for split, pool, count in (("train", train, TRAIN_ROWS[stage]), ("test", test, TEST_ROWS)):
            rng = random.Random(f"{seed}/{stage}/{split}")
            yield f"{stage}_{split}", [make_row(rng, r) for r in draw(rng, pool, count)]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer: any text survives the way there and back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_text(path: Path, text: str) -> None:
    """UTF-8 with Unix line ends on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def write_model(folder: Path, tokenizer: Tokenizer) -> None:
    """Configuration and tokenizer, no weights."""
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "tokenizer.json", tokenizer.to_str() + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)


def main(folder: Path) -> None:
    """Write everything below `folder`."""
    files = dict(make_rows(SEED))
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(folder / "data" / f"{name}.jsonl", lines)
    texts = [row["text"] for row in files["pretrain_train"]]
    texts += [message["content"] for row in files["sft_train"] for message in row["messages"]]
    write_model(folder / "model", train_tokenizer(texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
