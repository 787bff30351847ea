"""PPO with a padded vocabulary: ids without a token have no probability."""

import pytest
from transformers import AutoTokenizer

from rlhf_cli.resources import shipped_model
from tests.helpers import tiny_llama


@pytest.mark.parametrize("value", ["shared", "adapter"])
def test_first_ratio_kl_and_entropy_with_a_padded_vocabulary(value, ppo, files, capsys):
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    size = len(tokenizer)
    shape = {"initializer_range": 1e-4, "tie_word_embeddings": False}  # all are as likely
    tiny_llama(vocab_size=4 * size, **shape).save_pretrained(files / "wide")
    tokenizer.save_pretrained(files / "wide")
    adapter = ["adapter=lora"] if value == "adapter" else []
    words = ["model=wide", f"value={value}", *adapter, "max_steps=1", "ppo_epochs=1"]
    [line] = ppo(*words, "minibatches=1")
    assert line["policy/ratio"] == 1
    assert line["objective/kl"] == 0
    from math import log

    assert line["policy/entropy"] == pytest.approx(log(size), abs=1e-2)
    assert f"{3 * size} of {4 * size} ids have no token" in capsys.readouterr().err
    [line] = ppo(*words, "minibatches=1", "rollout_logprobs=reuse", out="reuse")
    assert line["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert line["rollout/mismatch"] == pytest.approx(0, abs=1e-5)
