"""The table of benchmarks/grpo_options.py."""

import pytest

from benchmarks.grpo_options import COLUMNS, OPTIONS, interval, split_names, table
from rlhf_cli.config.args import parse
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve


def run(success):
    ends = {"value": success, "low": success - 0.1, "high": success + 0.1}
    return {"success": ends, **dict.fromkeys(COLUMNS, 0.5)}


def test_the_interval_is_over_seeds_or_of_one_over_prompts():
    assert interval([run(0.6)]) == "60.0 [50.0, 70.0]"
    assert interval([run(0.5), run(0.6), run(0.7)]) == "60.0 [35.2, 84.8]"  # 4.30 * 10 / sqrt(3)


def test_the_table_has_a_row_for_each_option():
    lines = table({"plain": [run(0.6)], "dual clip": [run(0.6)]}).splitlines()
    assert lines[2:] == [
        "| plain |  | 1 | 60.0 [50.0, 70.0] | 0.500 | 0.500 | 0.500 | 0.500 |",
        "| dual clip | `dual_clip=3` | 1 | 60.0 [50.0, 70.0] | 0.500 | 0.500 | 0.500 | 0.500 |",
    ]


def test_names_with_a_comma_are_found():
    assert split_names(",".join(OPTIONS)) == list(OPTIONS)
    assert split_names("two epochs, shuffled") == ["two epochs, shuffled"]
    assert split_names("plain,two epochs") == ["plain", "two epochs"]
    with pytest.raises(SystemExit, match="plane"):
        split_names("plane")


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_composes(name):
    words = ["config=arithmetic_grpo/grpo", "model=tiny", *OPTIONS[name]]
    assert resolve(COMMANDS["grpo"], parse(COMMANDS["grpo"], words)).config
