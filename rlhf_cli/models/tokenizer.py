"""Load a tokenizer, or train one on the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_cli.cache import tokenizer_state
from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.loading import loading, require_config
from rlhf_cli.models.source import DEFAULT_VOCAB_SIZE, locate
from rlhf_cli.models.tokenization import from_pretrained, require_same_cuts

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
    logger.info(f"tokenizer: {tokenizer.eos_token} ends a text")


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
    logger.info(f"tokenizer: trained byte-level BPE, {len(tokenizer)} tokens")
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """Changes whenever the tokenizer would give other tokens or ends."""
    return hashlib.sha256("\n".join(tokenizer_state(tokenizer)).encode()).hexdigest()[:16]


def template_hash(tokenizer: Any) -> str:
    """Changes with the chat template; empty without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else ""
