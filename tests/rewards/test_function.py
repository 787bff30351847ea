import sys
from pathlib import Path

import pytest
import torch

from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.resources import shipped_folder
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import load_combined_reward
from tests.rewards.helpers import context, samples, user

HEAD = "def score(prompts, responses, **columns):\n    "
TWO = samples(("How are you, my friend?", "well"), ("And your mother?", "ill"), answer=["x", "y"])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Opens rewards by the function of a file with this text."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def opened(text, name="judge.py"):
        path = tmp_path / name
        path.write_text(text)
        return load_combined_reward(RewardsConfig(function=f"{path}:score"), None, context())

    yield opened
    for name in [name for name in sys.modules if name.startswith(f"rlhf_reward:{tmp_path}")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "returned",
    [
        "[1, 2.5]",
        "(True, 2.5)",
        "__import__('numpy').array([1, 2.5])",
        "[__import__('numpy').float32(1), __import__('torch').tensor(2.5)]",
        "__import__('torch').tensor([1, 2.5], requires_grad=True)",
    ],
)
def test_lists_arrays_and_tensors_of_numbers(write, returned):
    scores = write(f"{HEAD}return {returned}").score(TWO)
    assert scores.total.dtype == torch.float32
    assert scores.total.tolist() == scores.by_term["score"].tolist()
    assert scores.total.tolist() == [float("True" in returned) or 1, 2.5]


def test_it_is_given_texts_messages_and_columns(write):
    seen = write(
        f"{HEAD}assert prompts == ['a', [{{'role': 'user', 'content': 'b'}}]]\n"
        "    assert responses == ['c', 'd'] and columns == {'answer': [3, 4]}\n    return [0, 1]"
    )
    assert seen.score(samples(("a", "c"), (user("b"), "d"), answer=[3, 4])).total.tolist() == [0, 1]


ASYNC = """
import asyncio

async def points(text, loops=set()):
    loops.add(asyncio.get_running_loop())
    assert len(loops) == 1, "another event loop"
    await asyncio.sleep(0)
    return len(text)

"""


@pytest.mark.parametrize(
    "function",
    [
        "async def score(prompts, responses, **columns):\n"
        "    return await asyncio.gather(*map(points, responses))",
        "async def several(responses):\n    return [await points(text) for text in responses]\n"
        "def score(prompts, responses, **columns):\n    return several(responses)",
    ],
    ids=["coroutine function", "returns a coroutine"],
)
def test_an_asynchronous_function_is_awaited_in_one_loop(write, function):
    judge = write(ASYNC + function)
    assert judge.score(TWO).total.tolist() == [4, 3]
    assert judge.score(samples(("a", "b"))).total.tolist() == [1]


def test_calls_of_an_asynchronous_function_wait_at_once(write):
    judge = write(
        "import asyncio\n"
        "async def points(text, here=[]):\n"
        "    here.append(text)\n"
        "    while len(here) < 2:  # for ever, were they called one after the other\n"
        "        await asyncio.sleep(0)\n"
        "    return len(text)\n"
        "async def score(prompts, responses, **columns):\n"
        "    return await asyncio.wait_for(asyncio.gather(*map(points, responses)), 10)"
    )
    assert judge.score(TWO).total.tolist() == [4, 3]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ValueError('no')", "raised ValueError: no"),
        ("raise asyncio.CancelledError", "raised CancelledError"),
        ("await asyncio.wait_for(asyncio.sleep(9), 0.001)", "raised TimeoutError"),
    ],
)
def test_what_an_asynchronous_function_raises(write, body, told):
    judge = write(
        "import asyncio\nasync def score(prompts, responses, **columns):\n"
        f"    if 'ill' in responses:\n        {body}\n    return [0] * len(responses)"
    )
    with pytest.raises(DataError, match=told) as caught:
        judge.score(TWO)
    assert 'whose prompt begins "And your mother?"' in str(caught.value)


def test_what_it_does_to_its_arguments_changes_nothing(write):
    judge = write(f"{HEAD}responses.clear()\n    columns['answer'].clear()\n    return [1, 2]")
    judge.score(TWO)
    assert (TWO.responses, TWO.columns) == (["well", "ill"], {"answer": ["x", "y"]})


def test_modules_beside_the_file_can_be_imported(write, tmp_path):
    (tmp_path / "beside_the_judge.py").write_text("def points(text): return len(text)")
    judge = write(
        f"from beside_the_judge import points\n{HEAD}return [points(r) for r in responses]"
    )
    assert judge.score(TWO).total.tolist() == [4, 3]
    del sys.modules["beside_the_judge"]


def test_the_shipped_judge_is_such_a_function():
    path = shipped_folder("recipes") / "tiny" / "judge.py"
    judge = load_combined_reward(RewardsConfig(function=f"{path}:score"), None, context())
    reply = "Thank you, Ana, tea is brewed from leaves. Take care."
    asked = user("Reply to Ana, who asks about tea.")
    assert judge.score(samples((asked, reply), (asked, "x"))).total.tolist() == [6, 0]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return [1, float('nan')]", 'gave nan for responses[1], whose prompt begins "And your'),
        ("return [1, float('inf')]", "gave inf for responses[1]"),
        ("return [1, '2']", "gave '2' for responses[1]"),
        ("return [None, 2]", 'gave None for responses[0], whose prompt begins "How are you'),
        ("return [1, [2]]", "gave [2] for responses[1]"),
        ("return [1]", "gave 1 scores for 2 responses"),
        ("return 1.0", "gave 1.0; need a list of finite numbers"),
        ("return 'ab'", "gave 'ab'; need"),
        ("return {0: 1, 1: 2}", "gave {0: 1, 1: 2}; need"),
        ("return None", "gave None; need"),
        ("return (1 for _ in responses)", "gave a generator"),
        ("return [10**400, 1]", "for responses[0]"),
    ],
)
def test_what_is_no_score_is_told_with_its_sample(write, body, line):
    with pytest.raises(DataError) as caught:
        write(HEAD + body).score(TWO)
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert told.startswith("reward.function: ")
    assert "judge.py:score " in told
    assert line in told


def test_an_exception_names_the_sample_and_the_line(write):
    judge = write(f"import json\n{HEAD}return [len(r) / (r != 'ill') for r in responses]")
    with pytest.raises(DataError) as caught:
        judge.score(TWO)
    assert "raised ZeroDivisionError: division by zero (judge.py:3: return [len(r) /" in str(
        caught.value
    )
    assert 'for responses[1], whose prompt begins "And your mother?"' in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("assert len(responses) < 2\n    return [1]", "AssertionError (judge.py:2: assert"),
        ("import sys; sys.exit(3)", "SystemExit: 3 (judge.py:2"),
        ("return json.loads('{')", "JSONDecodeError: Expecting property name"),
    ],
)
def test_other_ways_to_fail(write, body, line):
    with pytest.raises(DataError) as caught:
        write(f"{HEAD}{body}" if "json" not in body else f"{HEAD}import json; {body}").score(TWO)
    assert line in str(caught.value)


def test_a_failure_of_the_whole_batch_is_not_blamed_on_one(write):
    with pytest.raises(DataError, match="for 2 responses together, for none of them alone"):
        write(f"{HEAD}assert len(responses) < 2\n    return [1]").score(TWO)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def score(prompts, responses): return [0, 0]", "unexpected keyword argument 'answer'"),
        ("def score(texts, **columns): ...", "missing a required argument: 'texts'"),
        ("def other(): ...", "is no function"),
        ("score = 3", "is no function"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (judge.py:1: 1 / 0)"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that"),
    ],
)
def test_a_function_that_cannot_be_called_is_a_matter_of_configuration(write, text, line):
    with pytest.raises(ConfigError) as caught:
        write(text).score(TWO)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_column_called_like_an_argument(write):
    with pytest.raises(ConfigError, match="another name for the column"):
        write(f"{HEAD}return [0]").score(samples(("a", "b"), responses=["c"]))


def test_a_file_is_run_once_for_all_of_its_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "counted.py"
    path.write_text(f"import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n{HEAD}return [0]\n")
    cfg = RewardsConfig(function=f"{path}:score")
    load_combined_reward(cfg, None, context())
    load_combined_reward(cfg, None, context())
    assert sys.counted == 1
    del sys.counted, sys.modules[f"rlhf_reward:{path}"]


def test_no_memory_is_not_the_functions_error(write):
    judge = write(f"{HEAD}raise MemoryError")
    with pytest.raises(MemoryError):
        judge.score(TWO)


def test_an_interrupt_passes(write):
    with pytest.raises(KeyboardInterrupt):
        write(f"{HEAD}raise KeyboardInterrupt").score(TWO)


def test_a_file_that_is_no_python(tmp_path):
    (tmp_path / "judge.txt").write_text("x")
    with pytest.raises(RlhfError, match=r"judge.txt is no .py file"):
        load_combined_reward(
            RewardsConfig(function=f"{Path(tmp_path)}/judge.txt:score"), None, context()
        )
