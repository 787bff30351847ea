"""ChatML, the chat template of a tokenizer that has none of its own."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from rlhf_cli.console import logger

START, END = "<|im_start|>", "<|im_end|>"
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
    added = [token for token in (START, END) if token not in known]
    # special also where the vocabulary has them already: text is never to be cut through them
    tokens = [AddedToken(token, special=True, normalized=False) for token in (START, END)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = CHATML
    new = f", adding {' and '.join(added)}" if added else ""
    logger.info(
        f"chat template: ChatML, as the tokenizer has none{new}; another: model.chat_template=FILE"
    )
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in added]
