"""Adapters and quantized weights from the command line, and their results without this package."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.context import RunContext
from rlhf_cli.models import weight_files
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_generator
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each
from tests.stages.conftest import FAST
from tests.stages.test_stages import stop_after

TOKENS = torch.arange(3, 40)[None]


def run(command, out, *argv):
    return cli.main(last_of_each(command, "data=tiny", f"output_dir={out}", *FAST, *argv))


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, sft_run):
    out = tmp_path_factory.mktemp("adapters") / "lora"
    assert run("sft", out, f"model={sft_run}", "adapter=lora", "max_steps=3") == 0
    return out


def plain_logits(folder: Path) -> torch.Tensor:
    """What the result says, loaded by transformers and PEFT alone."""
    with torch.no_grad():
        return plain_model(folder)(input_ids=TOKENS, use_cache=False).logits


def plain_model(folder: Path):
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = json.loads(settings.read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder)


def our_logits(path: Path) -> torch.Tensor:
    """What the result says, loaded as `model=PATH`."""
    cfg, ctx = ModelConfig(path=str(path)), RunContext(torch.device("cpu"), torch.float32, 0, path)
    with torch.no_grad():
        model = load_generator(cfg, QuantConfig(), LoadInputs(load_tokenizer(cfg), ctx))
        return model(input_ids=TOKENS, use_cache=False).logits


def losses(out):
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_the_result_is_a_plain_peft_adapter(sft_run, tmp_path, kind):
    out = tmp_path / kind
    assert run("sft", out, f"model={sft_run}", f"adapter={kind}", "max_steps=3", "lr=1e-3") == 0
    config = json.loads((out / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(sft_run / "model")
    assert (config["use_dora"], config["use_rslora"]) == (kind == "dora", kind == "rslora")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["after"]["loss"] < manifest["before"]["loss"]
    AutoTokenizer.from_pretrained(out / "model")
    base = plain_logits(sft_run / "model")
    assert not torch.allclose(plain_logits(out / "model"), base, atol=1e-3)


def test_layers_trained_whole_go_through_every_stage(sft_run, tmp_path, capsys):
    whole = [f"model={sft_run}", "adapter=lora", "adapter.modules_to_save=[norm]", "lr=1e-2"]
    sft, reward, ppo = (tmp_path / name for name in ("sft", "reward", "ppo"))
    assert run("sft", sft, *whole, "max_steps=2") == 0
    norm = "base_model.model.model.norm.weight"
    trained = load_file(sft / "model" / "adapter_model.safetensors")[norm]
    assert not torch.equal(
        trained, load_file(sft_run / "model/model.safetensors")["model.norm.weight"]
    )
    assert run("reward", reward, f"model={sft}", "max_steps=1", "lr=1e-9") == 0
    assert_close(load_file(reward / "model" / "adapter_model.safetensors")[norm], trained)
    one = ["max_steps=1", "value=adapter", f"reward.model={reward}", "max_new_tokens=4"]
    assert run("ppo", ppo, f"model={sft}", "data.eval=none", *one) == 0
    assert cli.main(["merge", f"{ppo}", f"output_dir={tmp_path / 'merged'}"]) == 0


def test_what_was_trained_is_what_plain_peft_loads(lora_run):
    """The held-out loss of the last step, from the saved files alone: fp32 rounding."""
    adapter = load_file(lora_run / "model" / "adapter_model.safetensors")
    trained = load_file(lora_run / "checkpoints" / "step-000003" / "weights.safetensors")
    for name, value in trained.items():
        key = name.removeprefix("model.").replace(".default", "")
        assert torch.equal(adapter[key], value), name
    assert len(adapter) == len(trained)


def test_full_and_adapter_results_say_the_same_without_this_package(sft_run, lora_run):
    """The same operations in the same order: equal to the last bit."""
    for run_folder in (sft_run, lora_run):
        assert torch.equal(our_logits(run_folder), plain_logits(run_folder / "model"))


@pytest.mark.parametrize(
    "setting",
    [
        "quant=nf4",
        "adapter.dropout=0.2",
        *(pytest.param(f"quant={kind}", marks=pytest.mark.slow) for kind in ("none", "int8")),
    ],
)
def test_a_stopped_adapter_run_continues_bitwise(tmp_path, monkeypatch, sft_run, setting):
    argv = [f"model={sft_run}", "adapter=lora", setting, "max_steps=6"]
    argv += ["train.save_steps=2", "train.eval_steps=3"]
    assert run("sft", tmp_path / "whole", *argv) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run("sft", tmp_path / "parts", *argv) == 130
    assert run("sft", tmp_path / "parts", *argv) == 0
    whole, parts = (tmp_path / name / "model" / "adapter_model.safetensors" for name in NAMES)
    assert whole.read_bytes() == parts.read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


NAMES = ("whole", "parts")


def test_dropout_is_for_training_alone(tmp_path, sft_run):
    found = []
    for rate in ("0", "0.5"):
        argv = [f"model={sft_run}", "adapter=lora", f"adapter.dropout={rate}", "max_steps=3"]
        assert run("sft", tmp_path / rate, *argv, "train.eval_steps=1") == 0
        found.append(read_metrics(tmp_path / rate / "metrics.jsonl"))
    plain, dropped = found
    assert plain[0]["eval/loss"] == dropped[0]["eval/loss"]
    assert plain[-1]["eval/loss"] != dropped[-1]["eval/loss"]


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_packed_weights_train_almost_like_whole_ones(tmp_path, sft_run, kind, capsys):
    """The loss of the adapter on a 4 or 8 bit base stays within 2 % of that on the whole one."""
    found = []
    for quant in ("none", kind):
        argv = (f"model={sft_run}", "adapter=lora", f"quant={quant}", "max_steps=3")
        assert run("sft", tmp_path / quant, *argv) == 0
        found.append(losses(tmp_path / quant)[-1])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert "MB frozen (quantized)" in capsys.readouterr().err


def test_a_chain_of_qlora_runs_needs_no_note_on_how(tmp_path, capsys):
    """sft on quantized weights, dpo on it, merge: the same quantization throughout."""
    sft, dpo, merged = (tmp_path / name for name in ("sft", "dpo", "merged"))
    assert run("sft", sft, "model=tiny", "adapter=lora", "quant=nf4", "max_steps=3") == 0
    capsys.readouterr()
    assert run("dpo", dpo, f"model={sft}", "max_steps=3", "lr=1e-3") == 0
    log = capsys.readouterr().err
    start = f"{sft / 'base'} + {sft / 'model'}"
    assert re.search(rf"policy: {re.escape(start)}, .* MB frozen \(quantized\)", log)
    assert f"reference: {start}" in log
    facts = json.loads((dpo / "artifact.json").read_text())
    assert (facts["quant"], facts["base"]) == ("nf4", str(sft / "base"))
    assert cli.main(["merge", str(dpo), f"output_dir={merged}"]) == 0
    assert "unquantized base against the nf4 base it was trained on" in capsys.readouterr().err
    assert torch.isfinite(plain_logits(merged)).all()


def test_packed_weights_of_an_odd_width_are_read_too(tmp_path, capsys):
    """288 is 4.5 blocks of 64, which bitsandbytes fails to repack in eval mode on some CPUs."""
    out = tmp_path / "run"
    shape = "model_type: llama, hidden_size: 288, num_hidden_layers: 1, intermediate_size: 64"
    shape += ", num_attention_heads: 4, num_key_value_heads: 4"
    own = ["model.init=scratch", "model.tokenizer=tiny", f"model.architecture={{{shape}}}"]
    assert run("sft", out, *own, "adapter=lora", "quant=nf4", "max_steps=1") == 0
    assert cli.main(["generate", str(out), "prompt=Hi", "max_new_tokens=3"]) == 0
    assert cli.main(["merge", str(out), f"output_dir={tmp_path / 'merged'}"]) == 0


def test_a_run_from_random_weights_keeps_its_base(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("sft", out, "model=tiny", "adapter=lora", "quant=nf4", "max_steps=2") == 0
    assert (out / "base" / "model.safetensors").is_file()
    moved = out.rename(tmp_path / "moved")
    capsys.readouterr()
    assert cli.main(["generate", f"model={moved}", "prompt=Hi", "max_new_tokens=4"]) == 0
    assert f"{moved}/base + {moved}/model" in capsys.readouterr().err


def test_an_adapter_is_trained_on_where_none_is_asked_for(lora_run, tmp_path):
    assert run("sft", tmp_path / "on", f"model={lora_run}", "max_steps=2") == 0
    artifact = json.loads((tmp_path / "on" / "artifact.json").read_text())
    assert artifact["base"] == json.loads((lora_run / "artifact.json").read_text())["base"]
    assert losses(tmp_path / "on")[0] == pytest.approx(losses(lora_run)[-1], abs=0.5)


def test_a_stacked_run_has_both_adapters(lora_run, tmp_path):
    argv = [f"model={lora_run}", "adapter=lora", "adapter.start=stack", "max_steps=2"]
    assert run("sft", tmp_path / "two", *argv) == 0
    artifact = json.loads((tmp_path / "two" / "artifact.json").read_text())
    assert artifact["adapters"] == ["model/stacked_0", "model"]
    below = load_file(tmp_path / "two" / "model" / "stacked_0" / "adapter_model.safetensors")
    before = load_file(lora_run / "model" / "adapter_model.safetensors")
    assert all(torch.equal(below[name], before[name]) for name in before)
    assert cli.main(["generate", f"model={tmp_path / 'two'}", "prompt=Hi", "max_new_tokens=4"]) == 0


@pytest.mark.parametrize("then", ["adapter=none", "adapter=lora"])
def test_a_merged_start_trains_from_what_the_adapter_said(lora_run, tmp_path, then):
    argv = [f"model={lora_run}", then, "adapter.start=merge", "max_steps=1", "lr=1e-9"]
    assert run("sft", tmp_path / "merged", *argv) == 0
    got = plain_logits(tmp_path / "merged" / "model")
    assert (got - plain_logits(lora_run / "model")).abs().max() < 1e-4


def bf16_base(model: Path, target: Path) -> Path:
    """The same model with weights in bf16, as most bases are published."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def share_lost(merged: Path, adapted: Path, base: Path) -> float:
    """Error of a merged model, as a share of what the adapter changes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(model, adapted)(TOKENS).logits.log_softmax(-1)
    got, bare = (plain_logits(folder).log_softmax(-1) for folder in (merged, base))
    return float((got - expected).abs().mean() / (bare - expected).abs().mean())


def scaled_adapter(model: Path, target: Path, factor: float) -> Path:
    """The same adapter with its effect made smaller."""
    shutil.copytree(model, target)
    weights = load_file(target / "adapter_model.safetensors")
    scaled = {key: w * factor if ".lora_B." in key else w for key, w in weights.items()}
    save_file(scaled, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_merge_keeps_what_an_adapter_of_small_effect_learned(sft_run, lora_run, tmp_path, capsys):
    """Rounded to bf16 like its base, the model would lose far more than 5 % of it."""
    base = bf16_base(sft_run / "model", tmp_path / "base")
    out = scaled_adapter(lora_run / "model", tmp_path / "adapter", 0.01)
    words = ["merge", str(out), f"model.base={base}"]
    auto, rounded = tmp_path / "auto", tmp_path / "bf16"
    assert cli.main([*words, f"output_dir={auto}"]) == 0
    log = capsys.readouterr().err
    assert re.search(r"warning: dtype: weights in bf16 lose \d+% of what the adapter changes", log)
    assert "dtype: fp32 is written instead of bf16, the type of the base" in log
    assert json.loads((auto / "config.json").read_text())["dtype"] == "float32"
    assert share_lost(auto, out, base) < 0.01
    assert cli.main([*words, f"output_dir={rounded}", "dtype=bf16"]) == 0
    said = re.search(r"warning: dtype: weights in bf16 lose (\d+)%", capsys.readouterr().err)
    assert share_lost(rounded, out, base) == pytest.approx(int(said[1]) / 100, rel=0.5)
    assert share_lost(rounded, out, base) > 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_merge_keeps_the_type_of_the_base_where_that_costs_little(
    sft_run, lora_run, tmp_path, capsys, dtype
):
    """The adapter of `lora_run` changes log-probs a hundred times as much as bf16 does."""
    base = bf16_base(sft_run / "model", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    words = [f"model.base={base}", f"output_dir={tmp_path / 'whole'}"]
    shutil.copytree(lora_run / "model", tmp_path / "adapter")
    assert cli.main(["merge", str(tmp_path / "adapter"), *words]) == 0
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {getattr(torch, dtype)}
    assert "warning: " not in capsys.readouterr().err


def test_a_merge_that_leaves_the_adapter_out_is_refused(lora_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "rlhf_cli.models.local_base.merge_adapters", lambda unmerged: unmerged.unload()
    )
    assert cli.main(["merge", str(lora_run), f"output_dir={tmp_path / 'whole'}"]) == 1
    assert "merged, " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merge_gives_a_plain_model_that_says_the_same(lora_run, tmp_path, capsys, dtype):
    out = tmp_path / "whole"
    assert cli.main(["merge", f"model={lora_run}", f"output_dir={out}", f"dtype={dtype}"]) == 0
    assert "adapter against base: log-probs differ by" in capsys.readouterr().err
    assert not (out / "adapter_config.json").exists()
    if dtype == "fp32":
        assert torch.equal(our_logits(out), plain_logits(out))
    difference = (plain_logits(out) - plain_logits(lora_run / "model")).abs()
    assert difference.max() < (1e-4 if dtype == "fp32" else 0.2)
    assert cli.main(["generate", f"model={out}", "prompt=Hi", "max_new_tokens=4"]) == 0


class Hub:
    """Stands for the hub; keeps what is uploaded."""

    def __init__(self, token=True):
        self.token, self.made, self.files = token, {}, []

    def create_repo(self, name, **options):
        if not self.token:
            raise ConnectionError("401 Unauthorized\nmore")
        self.made[name] = options

    def upload_folder(self, repo_id, folder_path):
        self.files = sorted(file.name for file in folder_path.iterdir())


def test_a_merged_model_is_uploaded_whole_and_private(lora_run, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    words = [f"output_dir={tmp_path / 'm'}", "push_to_hub=me/model"]
    assert cli.main(["merge", str(lora_run), *words]) == 0
    assert hub.made == {"me/model": {"private": True, "exist_ok": True}}
    needed = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert needed <= set(hub.files)
    assert "uploaded: https://huggingface.co/me/model" in capsys.readouterr().err


def test_an_upload_that_fails_leaves_the_merged_model(lora_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(token=False))
    words = [f"output_dir={tmp_path / 'm'}", "push_to_hub=me/model"]
    assert cli.main(["merge", str(lora_run), *words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: push_to_hub: me/model could not be uploaded (401 Unauthorized)")
    assert torch.isfinite(plain_logits(tmp_path / "m")).all()


def test_a_hub_id_without_its_owner_is_refused(lora_run, tmp_path, capsys):
    words = [f"output_dir={tmp_path / 'm'}", "push_to_hub=model"]
    assert cli.main(["merge", str(lora_run), *words]) == 2
    assert "push_to_hub: got model; need a hub id with its owner" in capsys.readouterr().err


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(28, "no space left on device")])
def test_a_merge_that_ends_early_leaves_nothing(lora_run, tmp_path, monkeypatch, raised):
    write, done = weight_files._values, []

    def fail(origin):
        if len(done) == 3:
            raise raised
        done.append(origin)
        return write(origin)

    monkeypatch.setattr("rlhf_cli.models.weight_files._values", fail)
    code = cli.main(["merge", str(lora_run), f"output_dir={tmp_path / 'whole'}"])
    assert code == (130 if isinstance(raised, KeyboardInterrupt) else 1)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert cli.main(["merge", str(lora_run), f"output_dir={tmp_path / 'whole'}"]) == 0


def test_merge_refuses_what_is_no_adapter_and_what_changes_nothing(sft_run, tmp_path, capsys):
    assert cli.main(["merge", f"model={sft_run}", f"output_dir={tmp_path / 'm'}"]) == 1
    assert "is no adapter run" in capsys.readouterr().err
    out = tmp_path / "idle"
    assert run("sft", out, f"model={sft_run}", "adapter=lora", "max_steps=1", "lr=1e-30") == 0
    capsys.readouterr()
    assert cli.main(["merge", f"model={out}", f"output_dir={tmp_path / 'm'}"]) == 1
    assert "changes nothing" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quant=nf4"], "quant.kind: got nf4 with full training"),
        (["adapter.rank=8"], "adapter.rank: given with adapter.kind=none"),
        (["adapter=lora", "adapter.start=stack"], "adapter.start"),
        (["adapter=lora", "adapter.targets=[q_prj]"], "Try adapter.targets=[q_proj]"),
    ],
)
def test_what_does_not_go_together_is_refused(sft_run, tmp_path, capsys, argv, message):
    assert run("sft", tmp_path / "no", f"model={sft_run}", *argv) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
