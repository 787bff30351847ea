import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.train.loop import TrainingLoop
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, without_machine
from tests.stages.conftest import FAST


def sft(out, *argv):
    words = ["model=tiny", "data=tiny", f"output_dir={out}", *FAST, *argv]
    return cli.main(["sft", *last_of_each(*words)])


def stop_after(monkeypatch, steps):
    """The process is interrupted at the beginning of the step after `steps`."""
    take = TrainingLoop.train_step

    def stopping(self):
        if self.step == steps:
            raise KeyboardInterrupt
        return take(self)

    monkeypatch.setattr(TrainingLoop, "train_step", stopping)


def test_the_run_folder_holds_what_it_promises(sft_run):
    names = {path.name for path in sft_run.iterdir()}
    expected = {"config.yaml", "manifest.json", "artifact.json", "metrics.jsonl", "checkpoints"}
    assert expected | {"model"} <= names
    manifest = json.loads((sft_run / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["steps"] == 3
    assert manifest["data"]["rows"] == 1000
    assert manifest["after"]["loss"] < manifest["before"]["loss"]
    artifact = json.loads((sft_run / "artifact.json").read_text())
    assert artifact["kind"] == "causal_lm"


def test_the_first_row_is_shown_with_its_trained_tokens(tmp_path, capsys):
    sft(tmp_path / "run", "max_steps=1")
    shown = capsys.readouterr().err
    assert "<|assistant|>[[" in shown
    assert "<|end|>]]" in shown


def test_the_result_is_plain_transformers_with_the_trained_weights(sft_run):
    model = AutoModelForCausalLM.from_pretrained(sft_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(sft_run / "model")
    assert tokenizer.chat_template
    saved = load_file(sft_run / "checkpoints" / "step-000003" / "weights.safetensors")
    for name, value in model.named_parameters():
        assert torch.equal(saved[f"model.{name}"], value), name
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.isfinite().all()


def test_a_run_stopped_within_an_epoch_continues_bitwise(tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("max_steps=9", "train.save_steps=2", "train.eval_steps=3")
    assert sft(whole, *settings) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert sft(broken, *settings) == 130
    assert sft(broken, *settings) == 0
    assert "continuing from step-000004" in capsys.readouterr().err
    for name in ("weights.safetensors", "optimizer.safetensors"):
        last = Path("checkpoints", "step-000009", name)
        assert (whole / last).read_bytes() == (broken / last).read_bytes()

    lines = [without_machine(read_metrics(out / "metrics.jsonl")) for out in (whole, broken)]
    assert lines[0] == lines[1]


def test_a_finished_run_returns_at_once(sft_run, capsys):
    argv = ["sft", "model=tiny", "data=tiny", "max_steps=3", f"output_dir={sft_run}", *FAST]
    assert cli.main(argv) == 0
    assert "already complete" in capsys.readouterr().out


def test_a_saved_configuration_repeats_the_run(sft_run, tmp_path):
    again = tmp_path / "again"
    assert cli.main(["sft", f"config={sft_run}/config.yaml", f"output_dir={again}"]) == 0
    name = Path("model", "model.safetensors")
    assert (again / name).read_bytes() == (sft_run / name).read_bytes()


def test_a_run_is_the_model_of_the_next_stage(sft_run, tmp_path, capsys):
    out = tmp_path / "next"
    argv = ["pretrain", f"model={sft_run}", "data=tiny", "max_steps=1", f"output_dir={out}"]
    assert cli.main([*argv, *FAST, "max_length=64"]) == 0
    first = read_metrics(out / "metrics.jsonl")[0]
    assert first["eval/loss"] < 6.9  # ln 1024 = 6.93: not random weights


def test_an_unfinished_run_is_no_model(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert sft(tmp_path / "half", "max_steps=3") == 130
    code = cli.main(["sft", f"model={tmp_path / 'half'}", "data=tiny"])
    assert code == 2
    assert "not finished" in capsys.readouterr().err


def test_it_learns_one_row_by_heart_and_stops_by_itself(rows, tmp_path, capsys):
    data = rows({"prompt": "How deep is the lake?", "completion": " Nine fathoms."})
    out = tmp_path / "run"
    argv = ["sft", "model=tiny", f"data={data}", "max_steps=60", f"output_dir={out}", *FAST]
    assert cli.main(argv) == 0
    assert read_metrics(out / "metrics.jsonl")[-1]["loss"] < 0.05
    capsys.readouterr()
    ask = ["generate", f"model={out}", "prompt=How deep is the lake?", "temperature=0"]
    assert cli.main(ask) == 0
    assert capsys.readouterr().out.strip() == "Nine fathoms."


def test_pretraining_from_nothing_trains_its_own_tokenizer(tmp_path):
    text = tmp_path / "plays.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 200)
    out = tmp_path / "run"
    argv = [
        "pretrain",
        "model.init=scratch",
        "model.tokenizer_vocab_size=300",
        "model.architecture={model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2}",
        f"data={text}",
        f"data.eval={text}",
        "max_length=64",
        "max_steps=15",
        f"output_dir={out}",
        *FAST,
    ]
    assert cli.main(argv) == 0
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer("ça va?")["input_ids"]) == "ça va?"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["after"]["loss"] < 0.5 * manifest["before"]["loss"]


def test_bf16_results_are_saved_as_computed_or_as_asked(tmp_path):
    for dtype, expected in (("auto", torch.bfloat16), ("fp32", torch.float32)):
        out = tmp_path / dtype
        settings = [f"model.dtype={dtype}", "max_steps=1", f"output_dir={out}", "batch_size=2"]
        if cli.main(["sft", "model=tiny", "data=tiny", "train.precision=bf16", *settings]) == 2:
            pytest.skip("no bf16 arithmetic on this machine")
        saved = load_file(out / "model" / "model.safetensors")
        assert {value.dtype for value in saved.values()} == {expected}


def test_micro_batch_size_does_not_change_the_result(tmp_path):
    logged = []
    for tokens in (60, 4096):
        out = tmp_path / str(tokens)
        assert sft(out, "max_steps=5", f"train.micro_batch_tokens={tokens}", "batch_size=8") == 0
        logged.append(
            [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "lr" in line]
        )
    assert logged[0] == pytest.approx(logged[1], abs=1e-5)


def test_recomputing_activations_does_not_change_the_result(tmp_path):
    logged = []
    for setting in ("false", "true"):
        out = tmp_path / setting
        assert sft(out, "max_steps=3", f"train.gradient_checkpointing={setting}") == 0
        logged.append(
            [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "lr" in line]
        )
    assert logged[0] == pytest.approx(logged[1], abs=1e-5)


def test_every_layout_trains_alike(tmp_path):
    logged = []
    for attention in ("per_row", "sdpa", "eager"):
        out = tmp_path / attention
        assert sft(out, "max_steps=3", f"model.attention={attention}") == 0
        logged.append(
            [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "lr" in line]
        )
    for losses in logged[1:]:
        assert losses == pytest.approx(logged[0], abs=1e-5)


def test_a_template_with_its_own_turn_end_is_stopped_at(tmp_path, rows, capsys):
    """ChatML's turn end is not the tokenizer's end of text; the result knows both."""
    template = tmp_path / "chatml.jinja"
    template.write_text(
        "{% for m in messages %}<|system|>{{ m.role }}:{{ m.content }}<|user|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|system|>assistant:{% endif %}"
    )
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    data, out = rows({"messages": turns}), tmp_path / "run"
    settings = [f"data={data}", f"model.chat_template={template}", "max_steps=40"]
    assert cli.main(["sft", "model=tiny", *settings, f"output_dir={out}", *FAST]) == 0
    saved = json.loads((out / "model" / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    assert saved["eos_token_id"] == ends
    capsys.readouterr()
    assert cli.main(["generate", f"model={out}", "prompt=Tea?", "temperature=0"]) == 0
    assert capsys.readouterr().out.strip() == "Yes."


def test_a_response_needs_room(sft_run, capsys):
    argv = ["generate", f"model={sft_run}", "prompt=Tea?", "max_new_tokens=511"]
    assert cli.main(argv) == 2
    assert "positions for 512. Try max_new_tokens=50" in capsys.readouterr().err
    assert cli.main([*argv[:-1], "max_new_tokens=600"]) == 2
    assert capsys.readouterr().err == (
        "error: sampling.max_new_tokens: got 600, but the model has 512 positions for prompt and "
        "response. Try sampling.max_new_tokens=256  (command line)\n"
    )


def test_prompts_of_a_file_are_answered_into_a_file(sft_run, rows, tmp_path, capsys):
    prompts = rows({"prompt": "Tea?"}, {"prompt": [{"role": "user", "content": "Salt?"}]})
    answers = tmp_path / "out" / "answers.jsonl"
    argv = ["generate", f"model={sft_run}", f"prompts={prompts}", f"output={answers}"]
    assert cli.main([*argv, "max_new_tokens=5", "batch_size=1"]) == 0
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [
        "Tea?",
        [{"role": "user", "content": "Salt?"}],
    ]
    assert "2 responses" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_answers(sft_run, capsys):
    said = []
    for seed in (1, 1, 2):
        argv = ["generate", f"model={sft_run}", "prompt=[Tea?,Salt?]", "max_new_tokens=8"]
        assert cli.main([*argv, f"sampling.seed={seed}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_a_stop_string_ends_a_response(sft_run, capsys):
    argv = ["generate", f"model={sft_run}", "prompt=Tea?", "temperature=0", "template=never"]
    assert cli.main([*argv, "max_new_tokens=12"]) == 0
    whole = capsys.readouterr().out.rstrip("\n")
    stop = whole[2]
    assert cli.main([*argv, "max_new_tokens=12", f'sampling.stop=["{stop}"]']) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) <= len(whole)


@pytest.mark.parametrize(("batch", "said"), [(4, True), (1, False)])
def test_a_run_of_few_steps_says_that_its_data_are_few(small_model, tmp_path, capsys, batch, said):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    argv = [f"model={small_model}", f"data={data}", f"output_dir={tmp_path / 'run'}", *FAST]
    assert cli.main(last_of_each("sft", *argv, f"batch_size={batch}", "epochs=1")) == 0
    log = capsys.readouterr().err
    assert ("steps: 3 only, from 12 examples at train.batch_size=4" in log) == said
    assert "rows.jsonl: 12 of 12 training rows (prompt_completion)" in log
