import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.records.types import PreferenceRecord
from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.models.tokenizer import train_tokenizer
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.reward_model import (
    RewardInputFormatter,
    micro_batches,
    response_row,
    truncate_rows,
)
from rlhf_cli.rewards.rewards import load_combined_reward
from rlhf_cli.rewards.samples import Samples
from tests.data.toy import (
    ASSISTANT,
    BOS,
    EOS,
    NEWLINE,
    SPACE,
    TURN,
    USER,
    A,
    B,
    C,
    D,
    E,
    toy_tokenizer,
    turns,
    write_jsonl,
)
from tests.rewards.helpers import context, samples, user
from tests.stages.conftest import FAST

ASKED = user("Reply to Ana, who asks about tea.")
REPLIES = ("Thank you, Ana.", "Tea is brewed from leaves. Take care.", "x", "")


def policy_samples(tokenizer, prompts=None, replies=REPLIES):
    """As a rollout of a policy with this tokenizer gives them."""
    prompts = prompts or [ASKED] * len(replies)
    encoder = PromptEncoder(tokenizer, as_message=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in replies]
    ended = [[*reply, tokenizer.eos_token_id] for reply in ids]
    return Samples(prompts, list(replies), [encoder.encode(p) for p in prompts], ended)


def plain_scores(run, rows):
    """By transformers alone, a row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(
        run / "model", num_labels=1, dtype=torch.float32
    )
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[0] for row in rows])


@pytest.fixture(scope="module")
def own_tokenizer(reward_run):
    return AutoTokenizer.from_pretrained(reward_run / "model")


def test_the_policys_tokens_are_scored_as_they_are(reward_run, sft_run, capsys):
    policy = AutoTokenizer.from_pretrained(sft_run / "model")
    given = policy_samples(policy)
    rewards = load_combined_reward(RewardsConfig(model=str(reward_run)), policy, context())
    line = capsys.readouterr().err
    assert line.startswith(f"reward reward: {reward_run} (fp32, flat rows, the policy's tokens), ")
    size = sum(file.stat().st_size for file in (reward_run / "model").glob("*.safetensors"))
    assert 0.4 < rewards.nbytes / size < 2.1  # saved in bf16 on some machines, in fp32 on others
    rows = [p + r for p, r in zip(given.prompt_tokens, given.response_tokens, strict=True)]
    assert_close(rewards.score(given).total, plain_scores(reward_run, rows), atol=1e-5, rtol=1e-4)


def test_the_micro_batches_do_not_matter(reward_run, own_tokenizer):
    given = policy_samples(own_tokenizer)
    cfg = RewardsConfig(model=str(reward_run))
    whole = load_combined_reward(cfg, own_tokenizer, context()).score(given).total
    single = load_combined_reward(cfg, own_tokenizer, context(), max_tokens=1).score(given).total
    assert_close(single, whole, atol=1e-6, rtol=1e-5)


def test_a_policy_with_another_tokenizer_gets_the_same_scores(reward_run, own_tokenizer, capsys):
    other = train_tokenizer(["Reply to Ana, who asks about tea."] * 3, 300)
    cfg = RewardsConfig(model=str(reward_run))
    given = policy_samples(other)
    found = load_combined_reward(cfg, other, context()).score(given).total
    assert "its own tokenizer" in capsys.readouterr().err
    expected = load_combined_reward(cfg, own_tokenizer, context()).score(
        policy_samples(own_tokenizer)
    )
    assert_close(found, expected.total, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_rows_are_written_as_the_reward_stage_trains_on_them(tmp_path, own_tokenizer, chat):
    prompt, said = (turns("Tea?"), turns("", "Yes.")[1:]) if chat else ("Tea?", " Yes.")
    row = {"prompt": prompt, "chosen": said, "rejected": turns("", "No.")[1:] if chat else "No."}
    path = write_jsonl(tmp_path / "pairs.jsonl", row)
    cfg = DataConfig(path=str(path))
    examples, _ = load_examples(cfg, "reward", own_tokenizer, (PreferenceRecord,), 0)
    trained = examples.tokens[: examples.row_starts[1]].tolist()
    writer = RewardInputFormatter(own_tokenizer, as_message=False, origin="reward.model: x")
    given = samples((user("Tea?"), "Yes.") if chat else ("Tea?", " Yes."))
    [written] = writer(given)
    assert written.tokens.tolist() == trained
    assert trained[-1] == own_tokenizer.eos_token_id


def written(*pairs, **settings):
    tokenizer = toy_tokenizer(**settings)
    rows = RewardInputFormatter(tokenizer, as_message=False, origin="reward.model: x")(
        samples(*pairs)
    )
    return [row.tokens.tolist() for row in rows]


def test_text_is_joined_as_it_stands_and_ends_with_the_end_token():
    assert written(("ab", " c"), ("", "d"), ("e", "")) == [
        [A, B, SPACE, C, EOS],
        [BOS, D, EOS],  # begins as a document does
        [E, EOS],
    ]
    assert written(("ab", "c"), ("", ""), adds_bos=True) == [[BOS, A, B, C, EOS], [BOS, EOS]]


def test_a_text_prompt_is_a_message_for_a_model_trained_on_chats():
    [row] = RewardInputFormatter(toy_tokenizer(), as_message=True, origin="x")(samples(("ab", "c")))
    assert row.tokens.tolist() == [USER, A, B, TURN, NEWLINE, ASSISTANT, C, TURN]


def test_chats_for_a_model_without_a_template():
    with pytest.raises(DataError, match=r"reward.model: x has no chat template"):
        written((user("ab"), "c"), template=None)


def test_a_chat_that_the_template_does_not_take_is_named():
    strict = "{{ raise_exception('no such role') }}"
    with pytest.raises(DataError, match=r"no such role, for responses\[0\], whose prompt beg.*ab"):
        written((user("ab"), "c"), template=strict)


def test_rows_that_are_too_long_lose_the_start_of_the_prompt():
    rows = [
        response_row([1, 5, 6, 7], [8, 2]),
        response_row([1, 5], [8, 2]),
        response_row([5] * 9, []),
    ]
    assert truncate_rows(rows, 4, bos=1) == [[1, 7, 8, 2], [1, 5, 8, 2], [5] * 4]
    assert truncate_rows([response_row([5], [6, 7, 8, 9])], 3, bos=None) == [[5, 6, 7]]


def test_batches_hold_all_rows_once_and_no_more_tokens_than_allowed():
    rows = [[1] * n for n in (3, 9, 1, 4, 4)]
    found = list(micro_batches(rows, 8))
    assert [chosen for chosen, _ in found] == [[1], [3, 4], [0, 2]]
    assert [part.lengths.tolist() for _, part in found] == [[9], [4, 4], [3, 1]]


def test_too_long_rows_are_told_once(reward_run, own_tokenizer, capsys):
    rewards = load_combined_reward(RewardsConfig(model=str(reward_run)), own_tokenizer, context())
    rewards.terms[0].scorer.limit = 8
    given = policy_samples(own_tokenizer)
    capsys.readouterr()
    assert len(rewards.score(given).total) == 4
    rewards.score(given)
    assert capsys.readouterr().err.count("of 4 rows are longer than its 8 positions") == 1


def test_probabilities_are_sigmoids_of_the_scores(reward_run, own_tokenizer):
    given = policy_samples(own_tokenizer)
    raw = load_combined_reward(RewardsConfig(model=str(reward_run)), own_tokenizer, context())
    cfg = RewardsConfig(model=str(reward_run), output="probability")
    likely = load_combined_reward(cfg, own_tokenizer, context())
    assert_close(likely.score(given).total, raw.score(given).total.sigmoid())


def test_nothing_of_a_reward_model_is_trained(reward_run, own_tokenizer):
    rewards = load_combined_reward(RewardsConfig(model=str(reward_run)), own_tokenizer, context())
    model = rewards.terms[0].scorer.model
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert not rewards.score(policy_samples(own_tokenizer)).total.requires_grad


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory, sft_run):
    base = tmp_path_factory.mktemp("base") / "sft"
    shutil.copytree(sft_run, base)
    out = tmp_path_factory.mktemp("runs") / "lora"
    words = [f"model={base}", "data=tiny", "adapter=lora", "max_steps=2", f"output_dir={out}"]
    assert cli.main(["reward", *words, *FAST]) == 0
    return base, out


def test_an_adapter_run_is_loaded_on_its_base(adapter_run):
    base, out = adapter_run
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    given = policy_samples(tokenizer)
    rewards = load_combined_reward(RewardsConfig(model=str(out)), tokenizer, context())
    from peft import AutoPeftModelForSequenceClassification

    plain = AutoPeftModelForSequenceClassification.from_pretrained(out / "model", num_labels=1)
    rows = [p + r for p, r in zip(given.prompt_tokens, given.response_tokens, strict=True)]
    with torch.no_grad():
        expected = torch.cat([plain(input_ids=torch.tensor([row])).logits[0] for row in rows])
    assert_close(rewards.score(given).total, expected.float(), atol=1e-3, rtol=1e-3)


def test_an_adapter_whose_base_is_elsewhere_or_another(adapter_run, sft_run, tmp_path):
    base, out = adapter_run
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    moved = base.with_name("moved")
    base.rename(moved)
    try:
        with pytest.raises(ModelError, match=r"^reward.model: .* is not there.*reward.base=FOLDER"):
            load_combined_reward(RewardsConfig(model=str(out)), tokenizer, context())
        cfg = RewardsConfig(model=str(out), base=str(moved))
        assert (
            len(
                load_combined_reward(cfg, tokenizer, context())
                .score(policy_samples(tokenizer))
                .total
            )
            == 4
        )
        other = tmp_path / "other"
        words = ["sft", "model=tiny", "data=tiny", "max_steps=1", "seed=9", f"output_dir={other}"]
        assert cli.main([*words, *FAST]) == 0
        cfg = RewardsConfig(model=str(out), base=str(other))
        with pytest.raises(ModelError, match=r"^reward.model: .* of another base"):
            load_combined_reward(cfg, tokenizer, context())
    finally:
        moved.rename(base)


def test_a_model_that_writes_is_refused_when_it_is_opened(sft_run, own_tokenizer):
    with pytest.raises(ModelError) as caught:
        load_combined_reward(RewardsConfig(model=str(sft_run)), own_tokenizer, context())
    line = str(caught.value)
    assert line.startswith(
        f"reward.model: {sft_run} gives no scores (LlamaForCausalLM); need a run"
    )


def test_a_folder_without_weights_or_tokenizer(reward_run, own_tokenizer, tmp_path):
    for missing, said in (("model.safetensors", "no weights"), ("tokenizer.json", "tokenizer")):
        copy = tmp_path / missing / "model"
        shutil.copytree(reward_run / "model", copy)
        (copy / missing).unlink()
        (copy / "tokenizer_config.json").unlink(missing_ok=True)
        with pytest.raises(ModelError) as caught:
            load_combined_reward(RewardsConfig(model=str(copy)), own_tokenizer, context())
        line = str(caught.value)
        assert line.startswith("reward.model: ")
        assert said in line or "tokenizer" in line
        assert "Try model" not in line


def test_a_classifier_with_several_labels_is_refused(reward_run, own_tokenizer, tmp_path):
    copy = Path(shutil.copytree(reward_run / "model", tmp_path / "model"))
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"^reward.model: .* classifier with 2 labels"):
        load_combined_reward(RewardsConfig(model=str(copy)), own_tokenizer, context())
