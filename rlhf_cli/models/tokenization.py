"""How a tokenizer cuts text: by its file, and in the same way in every stage of a chain.

Some classes of transformers (GPT-2's, Qwen2's, Llama's) take the vocabulary from `tokenizer.json`
and bring rules of their own for cutting text into pieces. Other programs read the rules in the
file, and so did the training of most models, so the file is followed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.runs import artifact

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
    logger.info(
        f"tokenizer: text is cut as {FILE} says; {name} of transformers would cut it otherwise"
    )
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
