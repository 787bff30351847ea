"""Patterns of credentials and of personal data in text."""

from __future__ import annotations

import re
from collections.abc import Iterator

MIN_DIFFERENT = 8
"""Different characters of a credential; placeholders such as `sk-xxxxxxxx` have fewer."""

SECRETS = {
    "an AWS access key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{50,}\b",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "an API key (sk-...)": r"\bsk-(?:[A-Za-z]+-)*[A-Za-z0-9_-]{20,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{16,}\b",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]{1,64}:[^\s/:@]{6,64}@[\w.-]+",
}
"""Kind of credential -> regular expression; each follows the format that its issuer documents."""

_SECRET = re.compile("|".join(f"(?P<kind{i}>{p})" for i, p in enumerate(SECRETS.values())))
_KINDS = tuple(SECRETS)

_MARKS = re.compile(
    r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|hf_|sk-|AIza|xox|k_live_|PRIVATE KEY|eyJ|://"
)
"""What every credential contains; most texts have none of it, which is faster to see."""

_PRIVATE_KEY = "PRIVATE KEY"
_PLACEHOLDER = re.compile(
    r"example|placeholder|your[-_ ]?(?:api|key|token|password)|x{6,}|\*{3,}|[<{$]"
    r"|:(?:password|passwd|pass|pwd|secret|token|changeme|postgres|root|admin|mypass\w*)@"
)

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_EXAMPLE_ADDRESS = re.compile(
    r"@(?:[\w-]+\.)*(?:example(?:\.\w+)?|domain\.com|email\.com|localhost|test)$"
    r"|^(?:e-?mail|user(?:name)?|name|you|your[\w.-]*|someone|git|foo|bar)@",
    re.IGNORECASE,
)
"""Addresses that stand for any address (domains of RFC 2606, and names that texts use so)."""

PHONE = re.compile(
    r"(?<![\w.,/+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4})(?![\w/-]|[.,]\d)"
)
"""International numbers with `+`, and US numbers with separators; bare digits are anything."""

_FICTIONAL_PHONE = re.compile(r"555[ .-]?\d{4}$")


def find_secrets(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the kind, start and end of each credential in a text."""
    if not _MARKS.search(text):
        return
    for found in _SECRET.finditer(text):
        kind = _KINDS[int(str(found.lastgroup).removeprefix("kind"))]
        if _PRIVATE_KEY in found[0] or not _is_placeholder(found[0]):
            yield kind, found.start(), found.end()


def _is_placeholder(secret: str) -> bool:
    """Whether a text only shows the form of a credential."""
    return len({*secret}) < MIN_DIFFERENT or bool(_PLACEHOLDER.search(secret.lower()))


def mask_secrets(text: str) -> str:
    """Replace credentials in a text by what they are."""
    parts, at = [], 0
    for kind, start, end in find_secrets(text):
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]])


def find_personal_data(text: str) -> str:
    """Name the first personal data in a text; empty for none."""
    if "@" in text and any(not _EXAMPLE_ADDRESS.search(found[0]) for found in EMAIL.finditer(text)):
        return "an e-mail address"
    if any(not _FICTIONAL_PHONE.search(found[0]) for found in PHONE.finditer(text)):
        return "a phone number"
    return ""
