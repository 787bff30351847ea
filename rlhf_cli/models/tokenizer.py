"""Load a tokenizer or train one; add ChatML; keep tokenization the same in all stages of a chain.

Some classes of transformers (GPT-2's, Qwen2's, Llama's) take the vocabulary from `tokenizer.json`
but pre-tokenize by rules of their own. Other programs use the rules in the file, and so did the
training of most models, so the file is followed here.
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

from rlhf_cli.cache import tokenizer_state
from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import DEFAULT_VOCAB_SIZE, ModelConfig
from rlhf_cli.models.load_errors import convert_load_errors, require_model_folder
from rlhf_cli.models.resolve import resolve_folder
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

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TOKENIZER_FILE = "tokenizer.json"
TOKENIZATION_KEY = "tokenization_sha256"
"""Key in artifact.json of the run's `tokenization_hash`."""

PROBE_TEXTS = (
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
"""Texts that tokenizers split differently: scripts, digits, spaces, line ends, code, templates."""


def load_tokenizer(cfg: ModelConfig, corpus: Callable[[], Iterable[str]] | None = None) -> Any:
    """Load the tokenizer of a model, or train a new one.

    Args:
        cfg: its `tokenizer`, `tokenizer_vocab_size`, `path` and `chat_template` decide.
        corpus: yields the training text for a new tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if not trains_tokenizer(cfg):
        tokenizer = _from_pretrained(cfg)
        set_encoder_ends(tokenizer)
    elif corpus is not None:
        tokenizer = train_tokenizer(corpus(), cfg.tokenizer_vocab_size or DEFAULT_VOCAB_SIZE)
    else:
        raise ModelError("model.tokenizer_vocab_size: this command trains no tokenizer")
    if cfg.chat_template:
        tokenizer.chat_template = _read_template(Path(cfg.chat_template))
    return tokenizer


def trains_tokenizer(cfg: ModelConfig) -> bool:
    """Return whether a new tokenizer is trained, not a saved one loaded."""
    return bool(cfg.tokenizer_vocab_size) or not (cfg.tokenizer or cfg.path)


def _from_pretrained(cfg: ModelConfig) -> Any:
    if cfg.tokenizer:
        key, source, revision = "model.tokenizer", cfg.tokenizer, cfg.tokenizer_revision
    else:
        key, source, revision = "model.path", cfg.path, cfg.revision
    folder = resolve_folder(key, source, revision)
    if not cfg.tokenizer:
        require_model_folder(folder)
    require_tokenizer(key, source, revision, "Try model.tokenizer=FOLDER_OR_HUB_ID")
    with convert_load_errors(key, source):
        found = load_pretrained_tokenizer(folder, trust_remote_code=cfg.trust_remote_code)
    require_same_tokenization(key, source, folder, found)
    return found


def require_tokenizer(key: str, source: str, revision: str, advice: str) -> None:
    """Refuse a model without a tokenizer.

    Args:
        key: config key, for the message.
        source: its value, a folder or hub id.
        revision: of a hub id.
        advice: last sentence of the message.

    Raises:
        ModelError: it has none.
    """
    folder = Path(resolve_folder(key, source, revision))
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{key}: {source} has no tokenizer ({TOKENIZER_FILES[0]}). {advice}")


def set_encoder_ends(tokenizer: Any) -> None:
    """Use an encoder's tokens around a text (BERT's [CLS] and [SEP]) as its BOS and EOS tokens."""
    if tokenizer.eos_token is not None or tokenizer.sep_token is None:
        return
    ids = tokenizer("a")["input_ids"]
    if ids[-1] != tokenizer.sep_token_id:
        return
    tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.bos_token is None and ids[0] == tokenizer.cls_token_id:
        tokenizer.bos_token = tokenizer.cls_token
    logger.info(f"tokenizer: {tokenizer.eos_token} ends a text")


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template: cannot read {path}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which encodes any text, with end, pad and chat-role tokens."""
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
    logger.info(f"tokenizer: trained byte-level BPE, {len(tokenizer)} tokens")
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash everything that decides which tokens and ends the tokenizer gives."""
    return hashlib.sha256("\n".join(tokenizer_state(tokenizer)).encode()).hexdigest()[:16]


def template_hash(tokenizer: Any) -> str:
    """Hash the chat template; empty without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else ""


def add_chatml(tokenizer: Any) -> list[int]:
    """Set ChatML as the chat template, and add its two tokens where they are missing.

    `<|im_end|>` ends each trained response, so that the trained model stops at it. The tokenizer's
    own end-of-sequence token is not changed.

    Args:
        tokenizer: without a chat template; changed in place.

    Returns:
        Ids of the added tokens, whose embeddings are not trained yet.
    """
    known = tokenizer.get_vocab()
    added = [token for token in (IM_START, IM_END) if token not in known]
    # special also where the vocabulary has them already: no text may be split inside them
    tokens = [AddedToken(token, special=True, normalized=False) for token in (IM_START, IM_END)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = CHATML
    new = f", adding {' and '.join(added)}" if added else ""
    logger.info(
        f"chat template: ChatML, as the tokenizer has none{new}; another: model.chat_template=FILE"
    )
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in added]


def load_pretrained_tokenizer(
    folder: str, *, revision: str = "main", trust_remote_code: bool = False
) -> Any:
    """Load a tokenizer that splits text by the rules of its file.

    Args:
        folder: of the tokenizer, or a hub id.
        revision: of the hub id.
        trust_remote_code: run Python code that comes with it.
    """
    settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    found = AutoTokenizer.from_pretrained(folder, **settings)
    file = cached_file(
        folder, TOKENIZER_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if file is None or not getattr(found, "is_fast", False):
        return found
    rules = Tokenizer.from_file(file)
    if not _differs(found, rules):
        return found
    followed = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
    _copy_special_tokens(followed, found)
    name = type(found).__name__
    if _differs(followed, rules):
        raise ModelError(
            f"{folder} splits text in transformers ({name}) otherwise than by its "
            f"{TOKENIZER_FILE}, and transformers offers no way to follow the file. Repair that or "
            "tokenizer_config.json"
        )
    logger.info(
        f"tokenizer: text is split by {TOKENIZER_FILE}; {name} of transformers would differ"
    )
    return followed


def tokenization_hash(tokenizer: Any) -> str:
    """Hash the ids of the probe texts, without begin and end tokens."""
    ids = _ids(tokenizer.backend_tokenizer, PROBE_TEXTS)
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def require_same_tokenization(key: str, source: str, folder: str, tokenizer: Any) -> None:
    """Refuse the tokenizer of a run where it splits text otherwise than during training.

    Args:
        key: config key, for the message.
        source: its value, a folder or hub id.
        folder: of the model; only that of a run has a recorded hash.
        tokenizer: loaded from there.

    Raises:
        ModelError: names the versions to compare.
    """
    recorded = artifact.read(Path(folder)).get(TOKENIZATION_KEY)
    if recorded and recorded != tokenization_hash(tokenizer):
        raise ModelError(
            f"{key}: the tokenizer of {source} splits text otherwise than when the model was "
            f"trained (here with transformers {transformers.__version__} and tokenizers "
            f"{tokenizers.__version__}; the run's manifest.json has its versions). Install those, "
            f"or restore {TOKENIZER_FILE} and tokenizer_config.json as the run wrote them"
        )


def _differs(tokenizer: Any, rules: Tokenizer) -> bool:
    """Return whether a tokenizer gives other ids, or other pieces, than the rules of a file."""
    own = tokenizer.backend_tokenizer
    known = {str(token) for token in rules.get_added_tokens_decoder().values()}
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    texts = [*PROBE_TEXTS, *(f"a{token}b {token} c" for token in added if token in known)]
    return _ids(own, texts) != _ids(rules, texts) or _split_differs(own, rules)


def _ids(rules: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    rules.no_truncation()  # transformers sets it anew for each call; it is not part of the rules
    rules.no_padding()
    # without begin and end tokens: the class and its config decide about those
    return [rules.encode(text, add_special_tokens=False).ids for text in texts]


def _split_differs(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether texts split into other pieces; a small vocabulary can hide that in the ids."""
    if one.pre_tokenizer is None or other.pre_tokenizer is None:
        return False  # the BPE or unigram model alone splits the text
    return any(_pieces(one, text) != _pieces(other, text) for text in PROBE_TEXTS)


def _pieces(rules: Tokenizer, text: str) -> list[str]:
    assert rules.pre_tokenizer is not None
    plain = text if rules.normalizer is None else rules.normalizer.normalize_str(text)
    return [piece for piece, _ in rules.pre_tokenizer.pre_tokenize_str(plain)]


def _copy_special_tokens(tokenizer: Any, other: Any) -> None:
    """Copy the special tokens that a class defines by itself, where the vocabulary has them."""
    known = tokenizer.get_vocab()
    for name, token in other.special_tokens_map.items():
        if name not in tokenizer.special_tokens_map and str(token) in known:
            setattr(tokenizer, name, token)
