"""Checks of tokens and loss masks: end tokens, begin tokens, truncation, room for a response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.checks.content import CheckedData, Cut
from rlhf_cli.data.checks.finding import Finding, Tally, excerpt
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.tokens.chat_template import turn_end

CONTEXT = 8
"""Tokens that are shown at each side of a place."""

NOTE_TRUNCATED = 0.01
"""Share of rows whose prompt is cut, from which on that is a warning."""


@dataclass(frozen=True)
class Turns:
    """Runs of trained tokens: the responses of a row, each with its end token.

    Attributes:
        rows: [N], row of each run.
        starts: [N], index of the first token of each run in `Examples.tokens`.
        ends: [N], index after the last token.
        last: [N] bool, whether the run is the last of its row.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    last: NDArray[np.bool_]


def find_turns(examples: Examples) -> Turns:
    """Find the runs of trained tokens within each row."""
    mask, bounds = examples.loss_mask, examples.row_starts
    padded = np.concatenate([[False], mask, [False]])
    first = np.zeros(len(mask) + 1, bool)
    first[bounds] = True  # a run does not continue in the next row
    starts = np.flatnonzero(mask & (~padded[:-2] | first[:-1]))
    ends = np.flatnonzero(mask & (~padded[2:] | first[1:])) + 1
    rows = np.searchsorted(bounds, starts, "right") - 1
    last = np.ones(len(rows), bool)
    last[:-1] = rows[1:] != rows[:-1]
    return Turns(rows, starts, ends, last)


def trained_end_tokens(data: CheckedData) -> frozenset[int]:
    """Return the tokens that end a response of these rows: end of text, and the template's."""
    found = {int(data.tokenizer.eos_token_id)}
    if data.report.templated and (token := turn_end(data.tokenizer)) is not None:
        found.add(token)
    return frozenset(found)


def check_end_tokens(data: CheckedData) -> Iterator[Finding]:
    """Check that each response ends with a trained end token, and has none inside."""
    examples = data.examples
    if examples is None or not len(examples):
        return
    turns, ends = find_turns(examples), np.array(sorted(trained_end_tokens(data)))
    checked = np.ones(len(turns.rows), bool) if data.cfg.train_on == "response" else turns.last
    ended = np.isin(examples.tokens[turns.ends - 1], ends)
    yield from _report_unended(data, turns, checked & ~ended, int(checked.sum()))
    yield from _report_mismatch(data, examples.tokens[turns.ends[checked & ended] - 1])
    yield from _report_inside(data, turns, ends)


def _report_unended(
    data: CheckedData, turns: Turns, bad: NDArray[np.bool_], total: int
) -> Iterator[Finding]:
    examples = data.examples
    assert examples is not None
    tally = Tally()
    for index in np.flatnonzero(bad).tolist():
        tally.add(_location(examples, turns.rows[index]), _around(data, int(turns.ends[index]) - 1))
    rows = tally.report(
        "end-token-untrained",
        "error" if bad.sum() > total / 2 else "warning",
        f"rows with a response whose end token is not trained ({bad.sum()} of {total} responses), "
        "so that the model does not learn to stop there",
        data.total,
        advice="Give a template that ends the assistant's turns with model.chat_template=FILE"
        if data.report.templated
        else "Write the turns as messages, with the speaker of each",
    )
    yield from rows


def _report_mismatch(data: CheckedData, trained: NDArray[np.int32]) -> Iterator[Finding]:
    """Compare the trained end tokens with those at which the model as it is stops."""
    tokens = frozenset(np.unique(trained).tolist())
    if not tokens or not data.end_tokens or tokens & data.end_tokens:
        return
    yield Finding(
        code="end-token-new",
        severity="note",
        message=f"responses end with {_names(data, tokens)}, and the model's generation config "
        f"stops at {_names(data, data.end_tokens)}; the run adds the first to its result",
        advice="Other programs need to read the result's generation_config.json, not the base's",
    )


def _report_inside(data: CheckedData, turns: Turns, ends: NDArray[np.int64]) -> Iterator[Finding]:
    examples = data.examples
    assert examples is not None
    tally = Tally()
    inside = np.flatnonzero(np.isin(examples.tokens, ends) & examples.loss_mask)
    run = np.searchsorted(turns.starts, inside, "right") - 1
    early = inside < turns.ends[run] - 1
    if data.cfg.train_on == "all":  # prompts are trained too, with the ends of their turns
        early[:] = False
    for at in inside[early].tolist():
        row = int(np.searchsorted(examples.row_starts, at, "right")) - 1
        tally.add(_location(examples, row), _around(data, at))
    yield from tally.report(
        "end-token-inside",
        "warning",
        "rows with an end token before the end of a response, where generation would stop",
        data.total,
        advice="Remove it from the text, or write the turns as messages",
    )


def check_begin_tokens(data: CheckedData) -> Iterator[Finding]:
    """Check that the begin token stands once, and only at the begin of a row."""
    examples, bos = data.examples, data.tokenizer.bos_token_id
    if examples is None or bos is None:
        return
    tally = Tally()
    at = np.flatnonzero(examples.tokens == bos)
    twice = at[:-1][np.diff(at) == 1]
    if data.report.templated or bos == data.tokenizer.eos_token_id:
        at = np.zeros(0, np.int64)  # templates may begin each turn with it, and it may end texts
    inside = at[~np.isin(at, examples.row_starts)]
    for index in np.union1d(twice, inside).tolist():
        row = int(np.searchsorted(examples.row_starts, index, "right")) - 1
        if index + 1 < examples.row_starts[row + 1]:
            tally.add(_location(examples, row), _around(data, index))
    yield from tally.report(
        "double-bos",
        "error" if tally.count > data.total / 2 else "warning",
        f"rows with more than one begin token {data.tokenizer.bos_token}, or one inside",
        data.total,
        advice="Remove it from the rows or the chat template: it is added once already",
    )


def check_unknown_tokens(data: CheckedData) -> Iterator[Finding]:
    """Check for text that the tokenizer does not know."""
    examples, unknown = data.examples, data.tokenizer.unk_token_id
    named = (data.tokenizer.eos_token_id, data.tokenizer.bos_token_id, data.tokenizer.pad_token_id)
    if examples is None or unknown is None or unknown in named:
        return
    tally = Tally()
    for at in np.flatnonzero(examples.tokens == unknown).tolist():
        row = int(np.searchsorted(examples.row_starts, at, "right")) - 1
        tally.add(_location(examples, row), _around(data, at))
    yield from tally.report(
        "unknown-tokens",
        "warning",
        f"rows with characters that the tokenizer does not know; all of them are one token, "
        f"{data.tokenizer.unk_token}",
        data.total,
        advice="Replace these characters, or use a model with a tokenizer of bytes",
    )


def check_truncation(data: CheckedData) -> Iterator[Finding]:
    """Report what `data.truncation` cuts from rows longer than `data.max_length`."""
    limit = data.cfg.max_length
    advice = _longer(data, max((cut.longest for cut in data.cuts), default=0))
    ends = _tally(data.cuts, lambda cut: cut.loses_end, lambda cut: f"{cut.longest} tokens")
    yield from ends.report(
        "truncated-end-token",
        "warning",
        f"rows of more than data.max_length={limit} tokens that lose the end token of a response, "
        "so that the model learns to go on there",
        data.total,
        advice=f"{advice}, or leave the rows out with data.truncation=refuse",
    )
    responses = _tally(
        data.cuts,
        lambda cut: cut.response_end > 0 and not cut.loses_end,
        lambda cut: f"{cut.longest} tokens, loses {cut.response_end} at the end",
    )
    yield from responses.report(
        "truncated-responses",
        "warning",
        f"rows of more than data.max_length={limit} tokens that lose the end of a response",
        data.total,
        advice=advice,
    )
    prompts = _tally(
        data.cuts,
        lambda cut: cut.prompt_start > 0 and not cut.response_end,
        lambda cut: f"{cut.longest} tokens, loses {cut.prompt_start} at the start",
    )
    yield from prompts.report(
        "truncated-prompts",
        "warning" if prompts.count > NOTE_TRUNCATED * data.total else "note",
        f"rows of more than data.max_length={limit} tokens that lose the start of the prompt",
        data.total,
        advice=advice,
    )


def _tally(
    cuts: Sequence[Cut], wanted: Callable[[Cut], bool], describe: Callable[[Cut], str]
) -> Tally:
    tally = Tally()
    for cut in cuts:
        if wanted(cut):
            tally.add(cut.location, describe(cut))
    return tally


def _longer(data: CheckedData, longest: int) -> str:
    """Return advice on `data.max_length`, which the model's positions limit."""
    if data.positions and longest > data.positions:
        if data.cfg.max_length < data.positions:
            return f"Try data.max_length={data.positions}, all that the model takes"
        return f"Shorten the rows (the model takes {data.positions} tokens)"
    return f"Try data.max_length={longest}, the longest row"


def check_room(data: CheckedData) -> Iterator[Finding]:
    """Check that prompts leave room for a response of `max_new_tokens`."""
    response = data.options.get("max_new_tokens")
    if response is None or not data.prompt_lengths:
        return
    room = data.cfg.max_length - int(response)
    tally = Tally()
    for record, length in zip(data.records, data.prompt_lengths, strict=True):
        if length > room:
            tally.add(record.location, f"{length} tokens")
    loses = "are left out" if data.cfg.truncation == "refuse" else "lose their oldest tokens"
    needed = max(data.prompt_lengths) + int(response)
    yield from tally.report(
        "no-room",
        "error" if tally.count == len(data.prompt_lengths) else "warning",
        f"prompts of more than {room} tokens (data.max_length={data.cfg.max_length} less "
        f"sampling.max_new_tokens={response}), which {loses}",
        len(data.prompt_lengths),
        unit="prompt",
        advice=_longer(data, needed).replace(", the longest row", ""),
    )


def _location(examples: Examples, row: int) -> str:
    return examples.location(int(np.searchsorted(examples.example_starts, row, "right")) - 1)


def _around(data: CheckedData, at: int) -> str:
    """Return the text of the tokens around an index."""
    assert data.examples is not None
    ids = data.examples.tokens[max(0, at - CONTEXT) : at + CONTEXT // 2]
    return excerpt(data.tokenizer.decode(ids.tolist()))


def _names(data: CheckedData, tokens: frozenset[int]) -> str:
    return ", ".join(map(str, data.tokenizer.convert_ids_to_tokens(sorted(tokens))))
