"""Load a tokenizer, or train one on the corpus.

ChatML, the chat template of a tokenizer that has none of its own.

How a tokenizer cuts text: by its file, and in the same way in every stage of a chain.

Some classes of transformers (GPT-2's, Qwen2's, Llama's) take the vocabulary from `tokenizer.json`
and bring rules of their own for cutting text into pieces. Other programs read the rules in the
file, and so did the training of most models, so the file is followed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from rlhf_cli.context import say
from rlhf_cli.data.cache import tokenizer_state
from rlhf_cli.errors import ModelError
from rlhf_cli.models.checks import loading, require_config
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.resolve import DEFAULT_VOCAB_SIZE, locate
from rlhf_cli.runs import artifact

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def load_tokenizer(cfg: ModelConfig, corpus: Callable[[], Iterable[str]] | None = None) -> Any:
    """The tokenizer of a model, or a new one.

    Args:
        cfg: `tokenizer`, `tokenizer_vocab_size`, `path` and `chat_template` decide.
        corpus: yields the training text, for a new tokenizer.

    Raises:
        ModelError: none is there, or it cannot be read.
    """
    if not trains_tokenizer(cfg):
        tokenizer = _from_pretrained(cfg)
        name_ends(tokenizer)
    elif corpus is not None:
        tokenizer = train_tokenizer(corpus(), cfg.tokenizer_vocab_size or DEFAULT_VOCAB_SIZE)
    else:
        raise ModelError("model.tokenizer_vocab_size: this command trains no tokenizer")
    if cfg.chat_template:
        tokenizer.chat_template = _read_template(Path(cfg.chat_template))
    return tokenizer


def trains_tokenizer(cfg: ModelConfig) -> bool:
    """Whether a new one is trained, rather than one loaded."""
    return bool(cfg.tokenizer_vocab_size) or not (cfg.tokenizer or cfg.path)


def _from_pretrained(cfg: ModelConfig) -> Any:
    if cfg.tokenizer:
        key, source, revision = "model.tokenizer", cfg.tokenizer, cfg.tokenizer_revision
    else:
        key, source, revision = "model.path", cfg.path, cfg.revision
    place = locate(key, source, revision)
    if not cfg.tokenizer:
        require_config(place)
    require_tokenizer(key, source, revision, "Try model.tokenizer=FOLDER_OR_HUB_ID")
    with loading(key, source):
        found = from_pretrained(place, trust_remote_code=cfg.trust_remote_code)
    require_same_cuts(key, source, place, found)
    return found


def require_tokenizer(key: str, source: str, revision: str, advice: str) -> None:
    """Refuse a model without a tokenizer.

    Args:
        key: what the user set.
        source: what it was set to.
        revision: of a hub id.
        advice: what to do, a sentence.

    Raises:
        ModelError: it has none.
    """
    place = Path(locate(key, source, revision))
    if not any((place / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{key}: {source} has no tokenizer ({TOKENIZER_FILES[0]}). {advice}")


def name_ends(tokenizer: Any) -> None:
    """Let an encoder's tokens around a text (BERT's [CLS] and [SEP]) be its begin and end too."""
    if tokenizer.eos_token is not None or tokenizer.sep_token is None:
        return
    ids = tokenizer("a")["input_ids"]
    if ids[-1] != tokenizer.sep_token_id:
        return
    tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.bos_token is None and ids[0] == tokenizer.cls_token_id:
        tokenizer.bos_token = tokenizer.cls_token
    say(f"tokenizer: {tokenizer.eos_token} ends a text")


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template: cannot read {path}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with end, pad and chat-role tokens; every text can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    say(f"tokenizer: trained byte-level BPE, {len(tokenizer)} tokens")
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """Changes whenever the tokenizer would give other tokens or ends."""
    return hashlib.sha256("\n".join(tokenizer_state(tokenizer)).encode()).hexdigest()[:16]


def template_hash(tokenizer: Any) -> str:
    """Changes with the chat template; empty without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else ""


IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def give_chatml(tokenizer: Any) -> list[int]:
    """Set the template, and add its two tokens where they are missing.

    `<|im_end|>` ends what is trained, so that a run's result stops at it; the tokenizer's own
    end-of-sequence token stays what it is.

    Args:
        tokenizer: without a chat template; changed in place.

    Returns:
        The ids of the added tokens, for which the model has no trained embedding.
    """
    known = tokenizer.get_vocab()
    added = [token for token in (IM_START, IM_END) if token not in known]
    # special also where the vocabulary has them already: text is never to be cut through them
    tokens = [AddedToken(token, special=True, normalized=False) for token in (IM_START, IM_END)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = CHATML
    new = f", adding {' and '.join(added)}" if added else ""
    say(f"chat template: ChatML, as the tokenizer has none{new}; another: model.chat_template=FILE")
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in added]


FILE = "tokenizer.json"
RECORD = "tokenization_sha256"
"""Key of `artifact.json`: how the run's tokenizer cut text."""

PROBE = (
    "The quick brown fox doesn't jump; it's 12345 o'clock, isn't it? I'LL SAY: \"NO\" (twice)!",
    "  two spaces,\tone tab\nline\r\n\n\n   three ends   \n",
    "def add(a, b):\n    return {'sum': a+b, 'x[0]': xs[-1]}  # (a)\n\nprint(add(2, 3.14e-10))\n",
    '<html lang="en"><!-- a/b_c --></html> https://example.org/a?b=c&d=%20 user@mail.com $10,000',
    "Ünïcödé naïve café Straße Ω≈ç√ ½ ﬁ e\u0301 \u00a0\u200b\u2028 … “quoted” — dash",
    "Русский текст 日本語のテキスト 中文文本 한국어 العربية עברית हिन्दी ไทย Ελληνικά",
    "👍🏽 👩‍👩‍👧 ☕ 🇦🇹",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa 00000000000 ------- ........ ,,,, (((( ))))",
    "<s>[INST] Hi [/INST] Hello</s> <|im_start|>user\nHi<|im_end|>\n<|user|> <|end|>",
)
"""Scripts, digits, spaces, line ends, code, marks and what some templates write."""


def from_pretrained(place: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """A tokenizer of transformers that cuts text as its file says.

    Args:
        place: folder or hub id.
        revision: of the hub id.
        trust_remote_code: run the Python code that comes with it.
    """
    settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    found = AutoTokenizer.from_pretrained(place, **settings)
    file = cached_file(place, FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None or not getattr(found, "is_fast", False):
        return found
    rules = Tokenizer.from_file(file)
    if not _differs(found, rules):
        return found
    followed = PreTrainedTokenizerFast.from_pretrained(place, **settings)
    _adopt(followed, found)
    name = type(found).__name__
    if _differs(followed, rules):
        raise ModelError(
            f"{place} cuts text in transformers ({name}) otherwise than by its {FILE}, and "
            "transformers cannot be told to follow the file. Repair that or tokenizer_config.json"
        )
    say(f"tokenizer: text is cut as {FILE} says; {name} of transformers would cut it otherwise")
    return followed


def tokenization_hash(tokenizer: Any) -> str:
    """Changes when some text gets other ids; beginning and end tokens apart."""
    ids = _ids(tokenizer.backend_tokenizer, PROBE)
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def require_same_cuts(key: str, source: str, place: str, tokenizer: Any) -> None:
    """Refuse the tokenizer of a run that cuts text otherwise than the run did.

    Args:
        key: what the user set.
        source: what it was set to.
        place: the folder of the run's model, or another place, of which nothing is known.
        tokenizer: loaded from there.

    Raises:
        ModelError: names the versions to look at.
    """
    recorded = artifact.read(Path(place)).get(RECORD)
    if recorded and recorded != tokenization_hash(tokenizer):
        raise ModelError(
            f"{key}: the tokenizer of {source} cuts text otherwise than when the model was trained "
            f"(here with transformers {transformers.__version__} and tokenizers "
            f"{tokenizers.__version__}; the run's manifest.json has its versions). Install those, "
            f"or restore {FILE} and tokenizer_config.json as the run wrote them"
        )


def _differs(tokenizer: Any, rules: Tokenizer) -> bool:
    """Whether a tokenizer gives some text other ids, or other pieces, than the rules of a file."""
    own = tokenizer.backend_tokenizer
    known = {str(token) for token in rules.get_added_tokens_decoder().values()}
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    texts = [*PROBE, *(f"a{token}b {token} c" for token in added if token in known)]
    return _ids(own, texts) != _ids(rules, texts) or _cut_otherwise(own, rules)


def _ids(rules: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    rules.no_truncation()  # set anew by each call of transformers; not a part of the rules
    rules.no_padding()
    # without beginning and end: where those are put is for the class and its configuration to say
    return [rules.encode(text, add_special_tokens=False).ids for text in texts]


def _cut_otherwise(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether texts fall into other pieces, of which a small vocabulary may make the same ids."""
    if one.pre_tokenizer is None or other.pre_tokenizer is None:
        return False  # all is left to the model of the vocabulary
    return any(_pieces(one, text) != _pieces(other, text) for text in PROBE)


def _pieces(rules: Tokenizer, text: str) -> list[str]:
    assert rules.pre_tokenizer is not None
    plain = text if rules.normalizer is None else rules.normalizer.normalize_str(text)
    return [piece for piece, _ in rules.pre_tokenizer.pre_tokenize_str(plain)]


def _adopt(tokenizer: Any, other: Any) -> None:
    """Take over the special tokens that a class names by itself, where the vocabulary has them."""
    known = tokenizer.get_vocab()
    for name, token in other.special_tokens_map.items():
        if name not in tokenizer.special_tokens_map and str(token) in known:
            setattr(tokenizer, name, token)
