import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import load_combined_reward
from tests.data.toy import toy_tokenizer
from tests.rewards.helpers import context, samples, user

LABELS = {"id2label": {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}}
THREE = samples(("a b", " c"), ("d", " e a b c d"), ("c", ""))
TEXTS = ["a b c", "d e a b c d", "c"]
ENDS = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}


def word_tokenizer(**changes):
    """A token a word; [CLS] and [SEP] around a text, as BERT has them."""
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcde"])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="[UNK]", **{**special, **changes}
    )


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=9, intermediate_size=32, max_position_embeddings=8, initializer_range=0.5,
        **shape, **LABELS,
    )  # fmt: skip
    return save(tmp_path / "bert", BertForSequenceClassification(config), word_tokenizer())


@pytest.fixture
def gpt2(tmp_path):
    """Its end token is the only one to pad with."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5,
        **ENDS, **LABELS,
    )  # fmt: skip
    return save(tmp_path / "gpt2", GPT2ForSequenceClassification(config), toy_tokenizer())


def logits_alone(folder, ids):
    """[texts, labels], by transformers alone, each text by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits for row in ids])


def score(folder, given=THREE, **settings):
    rewards = load_combined_reward(RewardsConfig(classifier=folder, **settings), None, context())
    return rewards.score(given).total


def bert_ids(texts):
    return [word_tokenizer()(text)["input_ids"] for text in texts]


def test_the_logit_of_a_label_by_name_and_index(bert):
    logits = logits_alone(bert, bert_ids(TEXTS))
    for label in ("POSITIVE", "positive", 2):
        assert_close(score(bert, label=label), logits[:, 2], atol=1e-5, rtol=1e-4)
    assert_close(score(bert, label=0), logits[:, 0], atol=1e-5, rtol=1e-4)


def test_its_probability(bert):
    expected = logits_alone(bert, bert_ids(TEXTS)).softmax(1)[:, 2]
    assert_close(
        score(bert, label="POSITIVE", output="probability"), expected, atol=1e-5, rtol=1e-4
    )


def test_batches_do_not_matter(bert):
    whole = score(bert, label=2)
    assert_close(score(bert, label=2, batch_size=1), whole, atol=1e-6, rtol=1e-5)


def test_a_decoder_is_read_at_the_last_token_of_each_text(gpt2):
    ids = [toy_tokenizer()(text)["input_ids"] for text in TEXTS]
    expected = logits_alone(gpt2, ids)[:, 1]
    assert_close(score(gpt2, label=1), expected, atol=1e-5, rtol=1e-4)


def test_a_decoder_whose_texts_end_with_the_pad_token(gpt2):
    given = samples(("a", "b<eos>"), ("c", "d"))
    ids = [toy_tokenizer()(text)["input_ids"] for text in ("ab<eos>", "cd")]
    assert_close(score(gpt2, given, label=1), logits_alone(gpt2, ids)[:, 1], atol=1e-5, rtol=1e-4)


def test_the_response_alone(bert):
    given = samples((user("a b"), "c"), ("d", "e a"))
    expected = logits_alone(bert, bert_ids(["c", "e a"]))[:, 2]
    assert_close(score(bert, given, label=2, reads="response"), expected, atol=1e-5, rtol=1e-4)


def test_chats_go_through_the_template_which_writes_the_special_tokens(gpt2):
    tokenizer = toy_tokenizer()
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer("abc")["input_ids"]]
    given = samples((user("ab"), "c"), ("ab", "c"))
    assert_close(score(gpt2, given, label=1), logits_alone(gpt2, ids)[:, 1], atol=1e-5, rtol=1e-4)


def test_chats_for_a_classifier_without_a_template(bert):
    with pytest.raises(DataError, match=r"reward.classifier: .* or reads=response"):
        score(bert, samples((user("a"), "b")), label=2)


def test_texts_that_are_too_long_lose_their_start(bert, capsys):
    long = samples(("a b c d e", " d c b"), ("a", " b"))
    expected = logits_alone(bert, bert_ids(["c d e d c b", "a b"]))[:, 2]
    assert_close(score(bert, long, label=2), expected, atol=1e-5, rtol=1e-4)
    assert capsys.readouterr().err.count("texts fill its 8 positions") == 1


def test_a_single_label_need_not_be_named(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, num_labels=1, **ENDS)
    folder = save(tmp_path / "one", GPT2ForSequenceClassification(config), toy_tokenizer())
    raw = score(folder)
    assert_close(score(folder, output="probability"), raw.sigmoid())


def test_the_line_of_what_was_loaded(bert, capsys):
    rewards = load_combined_reward(RewardsConfig(classifier=bert, label=2), None, context())
    line = capsys.readouterr().err
    assert line == f"reward bert: {bert}, logit of POSITIVE (fp32), {rewards.nbytes / 1e6:.1f} MB\n"


def test_a_classifier_without_a_longest_text(tmp_path):
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=1)
    tokenizer = toy_tokenizer(pad_token="<unk>", padding_side="left")
    folder = save(tmp_path / "xlnet", XLNetForSequenceClassification(config), tokenizer)
    whole = score(folder)
    assert_close(score(folder, batch_size=1), whole, atol=1e-5, rtol=1e-4)


def test_a_classifier_that_needs_another_tokenizer(tmp_path):
    width = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=40, encoder_layers=1, decoder_layers=1, num_labels=1, **width, **heads
    )
    model, tokenizer = BartForSequenceClassification(config), toy_tokenizer(pad_token="<unk>")
    with pytest.raises(ModelError, match=r"^reward.classifier: .* cannot score texts: Each.*eos"):
        score(save(tmp_path / "bart", model, tokenizer))


def test_tokens_that_a_classifier_does_not_embed(gpt2):
    """Padding with one has no effect; a text that holds one is refused."""
    expected, tokenizer = score(gpt2, label=1), toy_tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(6)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 40
    tokenizer.save_pretrained(gpt2)
    assert_close(score(gpt2, label=1), expected)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(gpt2)
    with pytest.raises(DataError, match=r"token id 41 has no embedding in the reward.classifier: "):
        score(gpt2, samples(("a", "b<more>")), label=1)


@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("", "reward.label: none given; need one of NEGATIVE, NEUTRAL, POSITIVE"),
        ("postive", "got postive; need one of NEGATIVE, NEUTRAL, POSITIVE, or an index. Try"),
        (3, "got 3; need"),
    ],
)
def test_a_label_that_is_not_there(bert, label, line):
    with pytest.raises(ModelError) as caught:
        score(bert, label=label)
    assert line in str(caught.value)


def test_a_language_model_has_no_head_to_read(tmp_path):
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, **ENDS)
    folder = save(tmp_path / "lm", GPT2LMHeadModel(config), toy_tokenizer())
    with pytest.raises(ModelError, match=r"^reward.classifier: .* has no weights for score.weight"):
        score(folder, label=0)


def test_a_classifier_that_is_nowhere():
    with pytest.raises(ModelError, match=r"^reward.classifier: cannot load org/no-such-model"):
        score("org/no-such-model", label=0)
