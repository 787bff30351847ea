"""A chat learned by heart in every family's template: its loss goes to zero, the answer comes back
and stops by itself."""

import json

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics
from tests.data.test_templates import SPECIAL, family
from tests.helpers import tiny_llama
from tests.stages.conftest import FAST

CHAT = [
    {"role": "user", "content": "Hi there."},
    {"role": "assistant", "content": "Hello, what now?"},
    {"role": "user", "content": "Nothing."},
    {"role": "assistant", "content": "Good bye"},
]


def base_model(folder, tokenizer):
    """Random weights and a tokenizer, as a base model comes."""
    model = tiny_llama(vocab_size=len(tokenizer), hidden_size=64, max_position_embeddings=256)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(model, rows, tmp_path, capsys):
    """What a run says after each of the user's turns, and how many answers ended by themselves."""
    asked = rows(*({"prompt": CHAT[: turn + 1]} for turn in (0, 2)), name="asked.jsonl")
    output = tmp_path / "answers.jsonl"
    argv = [f"model={model}", f"prompts={asked}", "temperature=0", f"output={output}"]
    assert cli.main(["generate", *argv, "max_new_tokens=40", "precision=fp32"]) == 0
    said = [json.loads(line)["response"] for line in output.read_text().splitlines()]
    return said, capsys.readouterr().err


@pytest.mark.parametrize("name", SPECIAL)
def test_a_chat_learned_by_heart_comes_back_and_stops(name, rows, tmp_path, capsys):
    model = base_model(tmp_path / "base", family(name))
    out, data = tmp_path / "run", rows({"messages": CHAT})
    argv = [f"model={model}", f"data={data}", "max_steps=80", f"output_dir={out}", *FAST]
    assert cli.main(["sft", *argv]) == 0
    assert read_metrics(out / "metrics.jsonl")[-1]["loss"] < 0.01
    said, told = answers(out, rows, tmp_path, capsys)
    assert [text.strip() for text in said] == ["Hello, what now?", "Good bye"]
    assert "2 ended by themselves" in told


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_base_model_without_a_template_learns_chatml(rows, tmp_path, capsys, adapter):
    """Its two tokens are added, learned and saved; with an adapter the new embeddings are too."""
    tokenizer = family("mistral")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        model = base_model(tmp_path / "base", tokenizer)
    finally:
        tokenizer.chat_template = template
    out, data = tmp_path / "run", rows({"messages": CHAT})
    argv = [f"model={model}", f"data={data}", f"output_dir={out}", f"adapter={adapter}", *FAST]
    assert cli.main(["sft", *argv, "max_steps=100"]) == 0
    assert "chat template: ChatML" in capsys.readouterr().err
    assert read_metrics(out / "metrics.jsonl")[-1]["loss"] < 0.05
    saved = AutoTokenizer.from_pretrained(out / "model")
    assert len(saved) == len(tokenizer) + 2
    said, told = answers(out, rows, tmp_path, capsys)
    assert said == ["Hello, what now?", "Good bye"]
    assert "2 ended by themselves" in told
    if adapter == "lora":
        with safe_open(out / "model" / "adapter_model.safetensors", "pt") as file:
            [embedded] = [file.get_tensor(key) for key in file.keys() if "embed" in key]  # noqa: SIM118
        assert len(embedded) == 2  # of the new tokens alone
        assert cli.main(["merge", f"model={out}", f"output_dir={tmp_path / 'whole'}"]) == 0
        assert answers(tmp_path / "whole", rows, tmp_path, capsys)[0] == said


def ends_of(folder):
    """The tokens at which a model folder says that responses end."""
    listed = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return {*listed} if isinstance(listed, list) else {listed}


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_result_ends_where_its_start_did_and_at_the_templates_end_of_turn(
    rows, tmp_path, adapter
):
    """Also where the first row is cut off before its end."""
    tokenizer = family("chatml")  # whose own end token is not that of the template
    model = base_model(tmp_path / "base", tokenizer)
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0, 7]}))
    long = {"messages": [CHAT[0], {"role": "assistant", "content": "Hello. " * 40}]}
    data = rows(long, {"messages": CHAT})
    argv = [f"model={model}", f"data={data}", "data.max_length=48", "data.shuffle=false", *FAST]
    first = tmp_path / "first"
    words = ["max_steps=1", f"adapter={adapter}"]
    assert cli.main(["sft", *argv, *words, f"output_dir={first}"]) == 0
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = {tokenizer.eos_token_id, 0, 7, end}
    assert ends_of(first / "model") == expected
    # the next stage starts from that, on text
    argv[:2] = [f"model={first}", f"data={rows({'prompt': 'Hi', 'completion': ' you'})}"]
    second = tmp_path / "second"
    assert cli.main(["sft", *argv, "max_steps=1", f"output_dir={second}"]) == 0
    assert ends_of(second / "model") == expected


TEXT_ROWS = {
    "sft": ({"prompt": "Hi", "completion": "Good bye"},),
    "dpo": ({"prompt": "Hi", "chosen": "Good bye", "rejected": "No"},),
    "reward": ({"prompt": "Hi", "chosen": "Good bye", "rejected": "No"},),
    "bco": (
        {"prompt": "Hi", "completion": "Good bye", "label": True},
        {"prompt": "Hi", "completion": "No", "label": False},
    ),
}


@pytest.mark.parametrize("stage", TEXT_ROWS)
def test_text_rows_are_trained_as_template_says(small_model, stage, rows, tmp_path, capsys):
    """`auto` joins them as they stand and says so; `always` gives the loss of the same messages."""
    text = TEXT_ROWS[stage]
    asked = [{"role": "user", "content": "Hi"}]
    as_messages = rows(*({**row, "prompt": asked} for row in text), name="messages.jsonl")

    def run(name, data, *words):
        argv = [f"model={small_model}", f"data={data}", f"data.eval={data}", "max_steps=1"]
        argv += ["batch_size=2", "train.precision=fp32", f"output_dir={tmp_path / name}"]
        assert cli.main([stage, *argv, *words]) == 0
        [artifact] = (tmp_path / name).glob("artifact.json")
        after = read_metrics(tmp_path / name / "metrics.jsonl")[-1]["eval/loss"]
        return after, json.loads(artifact.read_text())["trained_on"], capsys.readouterr().err

    data = rows(*text)
    auto, always, never, chat = (
        run("auto", data),
        run("always", data, "template=always"),
        run("never", data, "template=never"),
        run("chat", as_messages),
    )
    assert always[:2] == chat[:2]
    assert auto[:2] == never[:2] != chat[:2]
    assert [found[1] for found in (auto, chat)] == ["text", "chat"]
    hint = f"template: {small_model} has a chat template, and the rows are text"
    assert [found[2].count(hint) for found in (auto, always, never, chat)] == [1, 0, 0, 0]
