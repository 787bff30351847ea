"""Every stage with sharded weights is that of one process: loss, gradient norm and parameters."""

import json
import random
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_cli import cli
from rlhf_cli.context import forked_rng
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, tiny_llama
from tests.rank_pool import RankPool

WORDS = [
    "tea",
    "rain",
    "gold",
    "jazz",
    "snow",
    "iron",
    "silk",
    "fog",
    "the",
    "old",
    "new",
    "red",
    "blue",
    "deep",
    "sea",
    "sky",
]
FULL = "launch.shard=full"
GRAD_OP = "launch.shard=grad_op"
HYBRID = ("launch.shard=hybrid", "launch.replicas=2")


def sentences(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count)]


def write_rows(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of very different lengths; 5 a step leave one rank with fewer tokens or none."""
    folder = tmp_path_factory.mktemp("rows")
    text, more = sentences(14, 1), sentences(14, 2)
    write_rows(folder, "text", [{"text": line} for line in text])
    pairs = list(zip(text, more, strict=True))
    write_rows(folder, "sft", [{"prompt": a, "completion": b} for a, b in pairs])
    write_rows(
        folder,
        "pairs",
        [{"prompt": f"Say {a}", "chosen": b, "rejected": a[::-1]} for a, b in pairs],
    )
    write_rows(
        folder,
        "labels",
        [{"prompt": a, "completion": b, "label": i % 3 > 0} for i, (a, b) in enumerate(pairs)],
    )
    write_rows(folder, "prompts", [{"prompt": f"Say {line}"} for line in text])
    write_rows(folder, "one", [{"prompt": "Say it"}])
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    tiny_llama(5, vocab_size=len(tokenizer)).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    (folder / "judge.py").write_text(
        "def length(prompts, responses, **columns):\n"
        "    return [len(text) / 10 for text in responses]\n"
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Number of processes -> these processes, which stay for the whole module."""
    found = {}

    def pool(size):
        if size not in found:
            found[size] = RankPool(size, tmp_path_factory.mktemp(f"ranks-{size}"))
        return found[size]

    yield pool
    for one in found.values():
        one.close()


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, files, small_model):
    """A trained reward model of the small model."""
    out = tmp_path_factory.mktemp("reward") / "run"
    assert cli.main(words_of("reward", files, small_model, out, "max_steps=3")) == 0
    return out / "model"


ROWS = {"pretrain": "text", "sft": "sft", "reward": "pairs", "dpo": "pairs", "bco": "labels"}
ROWS["distill"] = "sft"
DISTILL = ("teacher=ROWS/teacher", "template=never", "max_new_tokens=6", "lr=1e-3")
PPO = (
    "template=never", "max_new_tokens=6", "minibatches=2", "ppo_epochs=2", "lr=1e-3",
    "log.sample_prompts=0",
)  # fmt: skip
ONLINE = (
    "online=true", "data=ROWS/prompts.jsonl", "template=never", "max_new_tokens=6", "lr=1e-3",
    "reward.function=ROWS/judge.py:length", "samples_per_prompt=3", "log.sample_prompts=0",
)  # fmt: skip


def words_of(stage, files, model, out, *changes):
    """Arguments of a run; `ROWS/` in a word is the folder of the rows."""
    rows = f"{files}/{ROWS.get(stage, 'prompts')}.jsonl"
    common = [
        stage, f"model={model}", f"data={rows}", "data.eval=none", "train.precision=fp32",
        "lr=1e-2", "batch_size=5", "max_steps=4", "train.warmup_steps=0",
        "train.micro_batch_tokens=60", f"output_dir={out}",
    ]  # fmt: skip
    if stage == "ppo":
        own = "reward.function=judge.py:length"
        given = any(word.startswith(("reward.model", "reward.terms")) for word in changes)
        common += [*PPO, *([] if given else [own.replace("judge", f"{files}/judge")])]
        common = [word.replace("batch_size=5", "batch_size=4") for word in common]
    if stage == "distill":
        common += [*DISTILL, "log.sample_prompts=0", "batch_size=4"]
        if "on_policy_fraction=0" in changes:
            common.remove("max_new_tokens=6")
        common = [word.replace("ROWS/", f"{files}/") for word in common]
    return last_of_each(*common, *(word.replace("ROWS/", f"{files}/") for word in changes))


@pytest.fixture(scope="module")
def compare(tmp_path_factory, files, small_model, pools):
    """Runs a stage in one process and sharded over several, and compares the runs."""
    alone = {}

    def run(stage, *changes, shard=(FULL,), size=2, model=small_model, tolerance=1.0):
        folder = tmp_path_factory.mktemp("runs")
        key = (stage, changes, str(model))
        if key not in alone:
            alone[key] = folder / "one"
            assert cli.main(words_of(stage, files, model, alone[key], *changes)) == 0
        several = folder / "several"
        pools(size).run(words_of(stage, files, model, several, *changes, *shard))
        require_equal(alone[key], several, tolerance)
        return alone[key], several

    return run


def require_equal(one, several, tolerance):
    """Loss to 1e-5 and gradient norm to 1e-4, relative, at each step; also held-out values.

    A loss below 0.2 is compared with 0.2: that of ppo is a difference of terms of about 1.
    """
    expected, got = (read_metrics(run / "metrics.jsonl") for run in (one, several))
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    for a, b in zip(expected, got, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if a["step"] == 0 and name.endswith("rewards/accuracies"):
                continue  # rewards are 0 up to rounding, and so is their order
            if name in ("loss", "grad_norm"):
                most = tolerance * (1e-5 if name == "loss" else 1e-4)
                assert b[name] == pytest.approx(a[name], rel=most, abs=most / 5), name
            elif name.startswith(("eval/", "policy/", "objective/")):
                # rewards and KL are differences of sums of log-probs, which have 7 digits
                most = tolerance * 1e-4
                assert b[name] == pytest.approx(a[name], rel=most, abs=most), name
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, several)]
    assert weights[0].keys() == weights[1].keys()
    off = torch.cat([(weights[0][n] - weights[1][n]).float().abs().flatten() for n in weights[0]])
    # Adam divides rounding by a small second moment, so not to the last bit
    assert off.max() < 1e-3 * tolerance
    assert off.mean() < 1e-6 * tolerance


# stage, changes
CASES = {
    "pretrain": ("pretrain", "data.packing=true"),
    "sft": ("sft", "data.eval=ROWS/sft.jsonl"),
    "sft, recomputed": ("sft", "train.gradient_checkpointing=true"),
    "sft, padded": ("sft", "model.attention=sdpa"),
    "sft, frozen in part": ("sft", "model.freeze=[layers.0,embed_tokens]"),
    "sft, frozen layers": ("sft", "model.freeze=[layers]"),
    "reward": ("reward", "data.eval=ROWS/pairs.jsonl"),
    "reward, centered": ("reward", "center_coefficient=0.1"),
    "dpo, stored": ("dpo", "data.eval=ROWS/pairs.jsonl"),
    "dpo, copy": ("dpo", "model.reference=copy"),
    "tr-dpo": ("dpo", "model.reference=copy", "sync_steps=2", "data.eval=ROWS/pairs.jsonl"),
    "dpo, full batch": ("dpo", "loss_type=aot"),
    "kto": ("dpo", "loss_type=kto", "data=ROWS/labels.jsonl"),
    "online dpo": ("dpo", *ONLINE, "model.reference=copy", "sync_steps=2"),
    "online dpo, held out": ("dpo", *ONLINE, "data.eval=ROWS/one.jsonl"),
    "online dpo, one prompt": ("dpo", *ONLINE, "batch_size=1", "loss_type=aot"),
    "bco": ("bco", "data.eval=ROWS/labels.jsonl"),
    "bco, udm": ("bco", "udm.embedding_model=reference"),
    "distill": ("distill", "data.eval=ROWS/sft.jsonl", "on_policy_fraction=0.5"),
    "distill, prompts": ("distill", "data=ROWS/prompts.jsonl", "data.eval=ROWS/one.jsonl"),
    "distill, rows": ("distill", "on_policy_fraction=0", "divergence=jsd", "sft_coef=0.5"),
    "ppo": ("ppo",),
    "ppo, held out": ("ppo", "data.eval=ROWS/one.jsonl", "log.sample_prompts=2"),
    "ppo, copy": ("ppo", "model.reference=copy"),
    "ppo, one prompt": ("ppo", "batch_size=1", "minibatches=1"),
    "ppo, value warmup": ("ppo", "value_warmup_steps=2"),
    "ppo, ptx": ("ppo", "ptx_coef=0.5", "ptx_data=ROWS/sft.jsonl", "ptx_batch_size=3"),
    "ppo, reuse": ("ppo", "rollout_logprobs=reuse"),
    "ppo, early stop": ("ppo", "early_stop_kl=1e-6"),
    "grpo": ("ppo", "advantage=grpo", "samples_per_prompt=2", "kl_coef=0"),
    "rloo": ("ppo", "advantage=rloo", "samples_per_prompt=2", "kl_in=loss", "kl_estimator=k3"),
    "ppo, terms": (
        "ppo",
        "reward.terms=[{function: 'ROWS/judge.py:length'}, {length_penalty: 0.1}]",
        "reward.scale=running",
    ),
}
CORE = ("sft", "reward", "tr-dpo", "bco", "ppo, ptx")


@pytest.mark.parametrize("name", CORE)
def test_two_processes_are_one(compare, name):
    stage, *changes = CASES[name]
    compare(stage, *changes)


def test_ppo_with_every_role_sharded(compare, reward_model, pools):
    """The policy, its reference, a separate value model and a reward model; one rank is idle."""
    roles = ("value=model", f"reward.model={reward_model}", "batch_size=1", "minibatches=1")
    compare("ppo", *roles, "max_steps=2")
    assert "while it generates, each process holds all weights of the policy" in pools(2).log(0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_rows_of_random_lengths(compare, files, seed):
    """Ranks have other numbers of micro-batches at each step, and often none in the last."""
    draw = random.Random(seed)
    lines = sentences(draw.randint(5, 9), seed + 10)
    rows = [
        {"prompt": line[:9], "completion": " " + line * draw.choice((1, 1, 4))} for line in lines
    ]
    write_rows(files, f"random-{seed}", rows)
    compare(
        "sft",
        f"data=ROWS/random-{seed}.jsonl",
        f"data.eval=ROWS/random-{seed}.jsonl",
        f"train.micro_batch_tokens={draw.choice((1, 40, 100))}",
        f"batch_size={draw.randint(1, 4)}",
        "max_steps=6",
    )


def test_a_loss_that_is_not_finite_names_rows_of_all_ranks(files, small_model, pools, tmp_path):
    """Ranks have two rows and three; all examine equally many, so that none waits for another."""
    words = words_of("sft", files, small_model, tmp_path / "run", "lr=1e38", FULL)
    with pytest.raises(AssertionError, match="exit code 1"):
        pools(2).run(words)
    assert "stopped before the optimizer step" in pools(2).log(0)
    assert len(re.findall(r"sft.jsonl:\d+: loss is not finite", pools(2).log(0))) >= 4


@pytest.mark.slow
def test_a_spike_records_the_rows_of_all_ranks(files, small_model, pools, tmp_path):
    """The rows of step 25 are of another kind: the loss jumps, with 3 rows on one rank."""
    calm = [{"prompt": "Say", "completion": " tea tea"}] * 125
    jump = [{"prompt": line, "completion": line[::-1]} for line in sentences(5, 7)]
    write_rows(files, "spike", [*calm[:120], *jump, *calm[:5]])
    out = tmp_path / "run"
    words = ("data=ROWS/spike.jsonl", "data.shuffle=false", "max_steps=26", FULL)
    pools(2).run(words_of("sft", files, small_model, out, *words))
    [line] = (out / "spikes.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 25
    assert len(record["rows"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("shard", [FULL, GRAD_OP])
def test_bf16_follows_one_process(compare, stage, shard):
    """Micro-batches are other ones, and bf16 keeps 8 bits: the bound is a few roundings."""
    steps = 1 if stage == "ppo" else 6  # later rollouts draw other tokens where one rounds over
    words = ("train.precision=bf16", "lr=1e-3", f"max_steps={steps}")
    compare(stage, *words, shard=(shard,), tolerance=500)


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.parametrize("name", ["sft", "tr-dpo", "ppo"])
def test_offloaded_shards_train_alike(compare, name, offload):
    stage, *changes = CASES[name]
    compare(stage, *changes, shard=(FULL, f"launch.offload={offload}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["untied", "experts", "gpt2", "gemma3 with images"])
@pytest.mark.parametrize("stage", ["sft", "tr-dpo"])
def test_other_architectures(compare, tmp_path, name, stage):
    stage, *changes = CASES[stage]
    compare(stage, *changes, model=save_model(name, tmp_path / "model"))


def save_model(name, folder):
    """A folder with random weights of an architecture, and the shipped tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    size = len(tokenizer)
    shape = {
        "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64,
        "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    with forked_rng():
        torch.manual_seed(0)
        if name == "untied":
            model = tiny_llama(vocab_size=size, tie_word_embeddings=False)
        elif name == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256)
            )
        elif name == "experts":
            experts = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
            router = {"output_router_logits": True, "router_aux_loss_coef": 0.1}
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts, **router))
        else:
            model = Gemma3ForConditionalGeneration(_gemma(shape, size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _gemma(shape, size):
    text = {**shape, "vocab_size": size + 3, "query_pre_attn_scalar": 8, "sliding_window": 16}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    images = {f"{name}_token_index": size + i for i, name in enumerate(("boi", "eoi", "image"))}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **images)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("size", "shard"),
    [(2, (FULL,)), (2, (GRAD_OP,)), (4, (FULL,)), (4, HYBRID)],
    ids=["2 full", "2 grad_op", "4 full", "4 hybrid"],
)
def test_twenty_steps_are_those_of_one_process(compare, name, size, shard):
    stage, *changes = CASES[name]
    rate = (
        "lr=1e-4" if stage in ("ppo", "distill") else "lr=1e-3"
    )  # with more, rounding grows at each step
    compare(stage, *changes, "max_steps=20", rate, size=size, shard=shard)
