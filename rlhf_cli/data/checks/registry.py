"""All checks of a data file, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from rlhf_cli.data.checks import (
    chats,
    columns,
    duplicates,
    labels,
    personal,
    preferences,
    refusals,
    responses,
    template,
    texts,
    tokens,
)
from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import SEVERITIES, Finding

Check = Callable[[CheckedData], Iterator[Finding]]

CHECKS: dict[Check, tuple[str, ...]] = {
    refusals.check_malformed: ("malformed-rows",),
    refusals.check_refused: (*dict.fromkeys(code for _, code in refusals.CODES), "refused-rows"),
    refusals.check_changed: ("changed-rows", "several-turns"),
    tokens.check_end_tokens: ("end-token-untrained", "end-token-new", "end-token-inside"),
    tokens.check_begin_tokens: ("double-bos",),
    tokens.check_unknown_tokens: ("unknown-tokens",),
    tokens.check_truncation: ("truncated-end-token", "truncated-responses", "truncated-prompts"),
    tokens.check_room: ("no-room",),
    template.check_unused_template: ("chat-template-unused",),
    template.check_rewritten_turns: ("template-rewrites-turns",),
    template.check_thoughts: ("thoughts", "thoughts-dropped"),
    template.check_open_thoughts: ("open-thoughts",),
    template.check_padding: ("pad-is-eos",),
    template.check_begin_token_of_template: ("bos-in-template",),
    duplicates.check_duplicates: ("duplicate-rows", "near-duplicates"),
    duplicates.check_contradictions: ("contradictory-pairs", "contradictory-labels"),
    duplicates.check_overlap: ("eval-rows-in-training", "eval-prompts-in-training"),
    preferences.check_length_bias: ("length-bias",),
    preferences.check_similar_responses: ("nearly-equal-pairs",),
    preferences.check_margins: ("negative-margins", "zero-margins", "constant-margins"),
    preferences.check_ties: ("tied-scores",),
    labels.check_label_balance: ("label-imbalance", "one-label"),
    labels.check_label_length: ("length-bias",),
    labels.check_constant_scores: ("constant-scores",),
    chats.check_roles: (
        "repeated-roles",
        "roles-out-of-order",
        "last-not-assistant",
        "prompt-ends-with-assistant",
    ),
    chats.check_empty_messages: ("empty-messages",),
    chats.check_system_prompts: ("some-system-prompts",),
    texts.check_characters: tuple(check.code for check in texts.CHARACTER_CHECKS),
    texts.check_special_tokens: ("special-tokens", "special-tokens-as-text"),
    personal.check_secrets: ("secrets",),
    personal.check_personal_data: ("personal-data",),
    columns.check_empty_prompts: ("empty-prompts",),
    columns.check_separators: ("no-separator", "prompt-ends-with-space"),
    columns.check_constant_columns: ("constant-columns",),
    columns.check_scripts: ("other-scripts",),
    columns.check_symbols: ("unusual-characters",),
    columns.check_long_responses: ("unusually-long-responses",),
    responses.check_role_marks: ("role-marks-in-responses",),
    responses.check_unfinished: ("unfinished-responses",),
    columns.check_bare_addresses: ("address-as-response",),
}
"""Check -> the codes that its findings can have."""

CODES = tuple(dict.fromkeys(code for codes in CHECKS.values() for code in codes))


def checks_to_run(ignore: Collection[str]) -> list[Check]:
    """Return the checks that have a code which is not ignored."""
    return [check for check, codes in CHECKS.items() if not {*codes} <= {*ignore}]


def find_all(
    data: CheckedData, checks: Iterable[Check] = tuple(CHECKS), ignore: Collection[str] = ()
) -> list[Finding]:
    """Run checks, and return what they find, the gravest first.

    Args:
        data: the rows.
        checks: the checks.
        ignore: codes to leave out.
    """
    found = [one for check in checks for one in check(data) if one.code not in ignore]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
