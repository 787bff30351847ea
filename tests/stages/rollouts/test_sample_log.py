"""The log of samples, also when a run resumes."""

import json

import pytest

from rlhf_cli.stages.rollouts.sample_log import LoggedSample, SampleLog


@pytest.mark.parametrize("letter", ["\r", "\x0b", "\x1e", "\x85", "\u2028", "\u2029"], ids=ascii)
def test_samples_with_any_character_are_truncated_to_a_step(tmp_path, letter):
    file = SampleLog(tmp_path, written=True)
    for step in (1, 2, 3):
        file.add(step, [LoggedSample(f"a{letter}b", f"{letter}c", 0.5, 0.0, 3)])
    with file.path.open("a", encoding="utf-8") as handle:
        handle.write('{"step": 2, "half')  # killed while it wrote
    file.truncate(2)
    rows = [json.loads(line) for line in file.path.read_bytes().split(b"\n")[:-1]]
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, f"a{letter}b") for s in (1, 2)]


@pytest.mark.parametrize("full", [True, False])
def test_samples_are_printed_in_full_with_full(tmp_path, capsys, full):
    texts = ["a prompt " * 20, "a response\nof two lines " * 20]
    SampleLog(tmp_path, written=True, full=full).add(1, [LoggedSample(*texts, 0.5, 0.0, 3)])
    shown = capsys.readouterr().err
    assert all((text in shown) == full for text in texts)
