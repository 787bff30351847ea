"""Vocabularies that differ from the model's rows, through whole runs."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_cli.resources import shipped_model
from tests.helpers import tiny_llama
from tests.stages.conftest import FAST

PAIR = {"prompt": "Tea?", "chosen": " Yes.", "rejected": " No."}
TEXT = {"prompt": "Tea?", "completion": " Yes."}


def shipped_tokenizer():
    return AutoTokenizer.from_pretrained(shipped_model("tiny"))


@pytest.fixture
def padded_token(tmp_path):
    """A `[PAD]` was added to the tokenizer, and neither embedded nor trained."""
    tokenizer = shipped_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "padded")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "padded")
    return tmp_path / "padded"


def test_a_pad_token_without_an_embedding_goes_through_every_stage(
    padded_token, rows, told, tmp_path
):
    texts, pairs = rows(TEXT, name="texts.jsonl"), rows(PAIR, name="pairs.jsonl")
    prompts = rows({"prompt": "Tea?"}, {"prompt": "And salt, is it there?"}, name="prompts.jsonl")
    few = ["max_steps=1", *FAST]
    start, reward = f"model={padded_token}", f"reward.model={tmp_path / 'reward'}"
    assert told("sft", start, f"data={texts}", "output_dir=sft", *few) == (0, "")
    padded_rows = "model.attention=sdpa"
    assert told("dpo", start, f"data={pairs}", "output_dir=dpo", padded_rows, *few) == (0, "")
    assert told("reward", start, f"data={pairs}", "output_dir=reward", padded_rows, *few) == (0, "")
    ppo = ["data.eval=none", "max_new_tokens=4", reward, "output_dir=ppo"]
    assert told("ppo", "model=sft", f"data={prompts}", *ppo, *few) == (0, "")
    best = [f"prompts={prompts}", reward, "keep=best", "output=best.jsonl", "samples_per_prompt=2"]
    assert told("generate", "model=ppo", "max_new_tokens=4", *best) == (0, "")


def test_a_template_that_writes_a_token_without_an_embedding_is_refused(padded_token, rows, told):
    tokenizer = AutoTokenizer.from_pretrained(padded_token)
    tokenizer.chat_template = (
        "{% for m in messages %}[PAD]{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}[PAD]{% endif %}"
    )
    tokenizer.save_pretrained(padded_token)
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    data, prompts = rows({"messages": turns}), rows({"prompt": turns[:1]}, name="prompts.jsonl")
    code, error = told("sft", f"model={padded_token}", f"data={data}", "output_dir=sft", *FAST)
    assert (code, "rows.jsonl:1: token id 1024 has no embedding in the model" in error) == (3, True)
    ppo = ["reward.length_penalty=1", "max_new_tokens=4", "output_dir=ppo", "data.eval=none"]
    code, error = told("ppo", f"model={padded_token}", f"data={prompts}", *ppo, *FAST)
    assert (code, "prompts.jsonl:1: token id 1024 has no" in error) == (3, True), error
    code, error = told("generate", f"model={padded_token}", f"prompts={prompts}")
    assert (code, "token id 1024 has no embedding" in error) == (3, True), error


def test_a_run_that_learns_new_tokens_goes_on_as_the_unbroken_one(rows, told, tmp_path):
    tokenizer = shipped_tokenizer()
    tokenizer.chat_template = None
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    data = rows({"messages": turns}, {"messages": [*turns, *turns]})
    words = ["sft", "model=base", f"data={data}", "adapter=lora", "max_steps=4", *FAST]
    words += ["train.save_steps=2"]
    assert told(*words, "output_dir=unbroken") == (0, "")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "broken")
    for gone in ("model", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "broken" / gone)
    manifest = tmp_path / "broken" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    assert told(*words, "output_dir=broken") == (0, "")
    file = "model/adapter_model.safetensors"
    first, second = (load_file(tmp_path / out / file) for out in ("unbroken", "broken"))
    assert any("trainable_tokens_delta" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_adapter_saved_with_resized_embeddings_goes_through_every_start(rows, told, tmp_path):
    tokenizer = shipped_tokenizer()
    base = tiny_llama(vocab_size=len(tokenizer), tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<note>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    lora = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    wrapped = get_peft_model(base, lora)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    settings = tmp_path / "adapter" / "adapter_config.json"
    moved = {"base_model_name_or_path": str(tmp_path / "base")}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **moved}))
    texts, pairs = rows(TEXT, {"prompt": "<note>", "completion": "a"}), rows(PAIR, name="p.jsonl")
    for start in ("continue", "stack", "merge"):
        words = [f"adapter.start={start}", f"output_dir={start}", "max_steps=1", *FAST]
        kind = ["adapter=lora"] if start == "stack" else []
        assert told("sft", "model=adapter", f"data={texts}", *kind, *words) == (0, "")
        assert told("generate", f"model={start}", "prompt=<note>", "max_new_tokens=2") == (0, "")
    dpo = ["model=continue", f"data={pairs}", "output_dir=dpo", "max_steps=1"]
    assert told("dpo", *dpo, *FAST) == (0, "")
    assert told("merge", "model=dpo", "output_dir=whole", "dtype=fp32") == (0, "")
    assert told("evaluate", "continue", "whole", f"data={texts}", "precision=fp32") == (0, "")
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    expected = base.get_output_embeddings().weight  # trained nowhere: as the adapter brought it
    assert torch.equal(whole.lm_head.weight, expected)
