"""What can be written below `reward`, and what is said of what cannot."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf_cli.config.help import page
from rlhf_cli.errors import ConfigError
from rlhf_cli.rewards.config import RewardsConfig
from tests.rewards.helpers import COMMAND, compose, rewards

BERT = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "BAD", "1": "GOOD"}}
ONE = {**BERT, "id2label": {"0": "LABEL_0"}}


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(
        "import math\nif math:\n    def score(prompts, responses, **columns): ...\nlength = len\n"
    )
    Path("broken.py").write_text("x = 1\ndef score(:\n")
    for name, settings in (
        ("bert", BERT),
        ("one", ONE),
        ("lm", {"architectures": ["LlamaForCausalLM"]}),
    ):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(settings))


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        rewards(*words)
    return str(caught.value)


def test_nothing_is_given_by_default_and_a_command_can_ask_for_something():
    assert not rewards().is_given
    assert "Try reward.model=runs/reward" in rewards().missing()[0]
    assert rewards("reward.function=judge.py:score").missing() == []


def test_a_function_is_found_from_the_working_folder_and_from_a_recipe(monkeypatch):
    here = str(Path("judge.py").absolute())
    assert rewards("reward.function=judge.py:score").function == f"{here}:score"
    assert rewards("reward.function=judge.py:length").function == f"{here}:length"
    for written in ("judge.py:score", "./judge.py:score"):
        Path("a.yaml").write_text(
            f"reward:\n  terms:\n  - function: {written}\n  - model: ./one\n    weight: 0.5\n"
        )
        Path("b.yaml").write_text(f"reward.function: {written}\n")
        Path("elsewhere").mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.chdir("elsewhere")
            terms = rewards("config=../a.yaml").terms
            assert terms[0].function == f"{here}:score"
            assert terms[1].model == str(Path("../one").resolve())
            assert rewards("config=../b.yaml").function == f"{here}:score"


def test_an_asynchronous_function_is_one_too():
    Path("slow.py").write_text("limit = 8\nasync def score(prompts, responses): ...\n")
    assert rewards("reward.function=slow.py:score").is_given
    assert "Try reward.function=slow.py:score" in refused("reward.function=slow.py")


def test_terms_on_the_command_line_and_again_from_the_saved_configuration():
    text = "[{function: judge.py:score}, {url: 'http://localhost:8000/s', weight: .5, name: far}]"
    first = compose(f"reward.terms={text}")
    reward = first.config.reward
    assert [term.weight for term in reward.terms] == [1.0, 0.5]
    assert reward.names == ["score", "far"]
    assert reward.keys == ["reward.terms[0]", "reward.terms[1]"]
    Path("saved.yaml").write_text(json.dumps(first.tree))
    assert compose("config=saved.yaml").tree == first.tree


def test_terms_without_a_name_are_called_by_what_scores():
    function, model = "{function: judge.py:score}", "{model: one}"
    terms = f"[{function}, {model}, {function}, {{length_penalty: 1, name: one}}]"
    assert rewards(f"reward.terms={terms}").names == ["score", "one_2", "score_2", "one"]
    single = rewards("reward.pattern=^yes", "reward.clip=2")
    assert (single.names, single.keys) == (["pattern"], ["reward"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["reward.function=judge.py"], "need FILE.py:FUNCTION. Try reward.function=judge.py:score"),
        (["reward.function=juge.py:score"], "need a file that exists. Try reward.function=judge"),
        (["reward.function=judge.py:scor"], "defines no scor, it has score, math, length. Try"),
        (["reward.function=broken.py:score"], "broken.py:2 is not valid Python"),
        (["reward.function=tiny"], "need FILE.py:FUNCTION"),
        (["reward.model=runs/none/x"], "reward.model: got runs/none/x; need a model folder"),
        (["reward.model=lm"], "writes text and gives no scores; need a reward model"),
        (["reward.model=tiny"], "random weights"),
        (["reward.model=bert"], "with 2 labels (BAD, GOOD); need one with a single label"),
        (["reward.classifier=lm"], "no classification head"),
        (["reward.classifier=bert"], "label: none given; need one of BAD, GOOD, or an index"),
        (["reward.classifier=bert", "reward.label=Godo"], "got Godo; need one of BAD, GOOD"),
        (["reward.classifier=bert", "reward.label=2"], "label: got 2; need one of BAD, GOOD"),
        (["reward.model=one", "reward.label=1"], "given without reward.classifier"),
        (["reward.model=one", "reward.timeout=1"], "given without reward.url"),
        (["reward.url=localhost:8000"], "need an address as http://localhost:8000/score"),
        (["reward.url=http://"], "need an address"),
        (["reward.pattern=(a"], "need a regular expression of Python (missing )"),
        (["reward.model=one", "reward.pattern=a"], "Several go in a list: reward.terms=[{model: "),
        (["reward.pattern=a", "reward.terms=[{model: one}]"], "given beside reward.terms"),
        (["reward.terms=[{weight: 2}]"], "reward.terms[0]: got no scorer; need one of model"),
        (["reward.terms=[{modell: one}]"], "reward.terms[0].modell: no such key"),
        (["reward.terms=[{model: lm}]"], "reward.terms[0].model: got"),
        (["reward.terms=[{model: one, name: a}, {pattern: x, name: a}]"], "2 of them are called a"),
        (["reward.model=one", "reward.clip=-1"], "need a number >= 0"),
        (["reward.model=one", "reward.combine=llama2"], "need two terms with the names safety"),
        (["reward.model=one", "reward.safety_threshold=.2"], "without reward.combine=llama2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused(words, line):
    said = refused(*words)
    assert len(said.splitlines()) == 1
    assert line in said


def test_llama2_needs_probabilities_and_no_weights():
    terms = "[{name: safety, model: one}, {name: helpfulness, pattern: x, weight: 2}]"
    lines = refused("reward.combine=llama2", f"reward.terms={terms}").splitlines()
    assert len(lines) == 2
    assert "reward.terms[0].output: got logit" in lines[0]
    assert "reward.terms[1].weight" in lines[1]


def test_the_help_says_what_every_key_means():
    text = page(COMMAND)
    assert "FILE.py:FUNCTION" in text
    for key in asdict(RewardsConfig()):
        [entry] = [line for line in text.splitlines() if line.strip().startswith(f"reward.{key}=")]
        assert entry
