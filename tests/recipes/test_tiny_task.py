import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "recipes" / "tiny"
STAGES = ("pretrain", "sft", "reward", "ppo", "dpo", "bco")
PROMPT = [{"role": "user", "content": "Reply to Ana, who asks about tea."}]
BEST = "Thank you for asking, Ana. They say that tea is brewed from leaves. Take care."
EVERY_RULE = {"name", "topic", "fact", "thanks", "closing", "brief"}


def load_judge():
    spec = importlib.util.spec_from_file_location("tiny_judge", TINY / "judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


judge = load_judge()


def rows(name):
    return [json.loads(line) for line in (TINY / "data" / f"{name}.jsonl").read_text().splitlines()]


def kept(response, prompt=PROMPT):
    return {rule for rule, earned in judge.points(prompt, response).items() if earned}


def scores(prompts, responses):
    return judge.score(prompts=prompts, responses=responses)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(TINY / "model")


def test_the_best_reply_keeps_every_rule():
    assert scores([PROMPT], [BEST]) == [judge.MAXIMUM] == [6.0]


@pytest.mark.parametrize(
    ("lost", "response"),
    [
        ("name", "Thank you for asking. They say that tea is brewed from leaves. Take care."),
        ("name", "Thank you for asking, Ben. They say that tea is brewed from leaves. Take care."),
        ("name", "Thank you for asking, Ana. Ben says that tea is brewed from leaves. Take care."),
        ("name", "Thank you, Ana. I know, Ana, that tea is brewed from leaves. Take care."),
        ("fact", "Thank you for asking, Ana. They say that tea is made by bees. Take care."),
        ("fact", "Thank you, Ana. Tea is brewed from leaves, and tea is made by bees. Take care."),
        ("fact", "Thank you for asking, Ana. I do not know much about tea. Take care."),
        ("thanks", "Good morning, Ana. They say that tea is brewed from leaves. Take care."),
        ("thanks", "Tea is brewed from leaves. Thank you for asking, Ana. Take care."),
        ("closing", "Thank you for asking, Ana. They say that tea is brewed from leaves."),
        ("closing", "Thank you for asking, Ana. Take care. Tea is brewed from leaves."),
        ("closing", "Thank you for asking, Ana. Tea is brewed from leaves. That is all."),
        ("brief", "Thank you for asking, Ana. They say that tea is brewed from leaves. "
                  "My uncle used to talk about it all day long. Take care."),
    ],
)  # fmt: skip
def test_each_rule_can_be_lost_alone(lost, response):
    assert kept(response) == EVERY_RULE - {lost}


def test_without_the_topic_there_is_no_fact():
    response = "Thank you for asking, Ana. It is brewed from leaves. Take care."
    assert kept(response) == EVERY_RULE - {"topic", "fact"}


def test_a_topic_named_three_times_is_too_much():
    response = "Thanks, Ana. I mean tea, the tea. Tea is brewed from leaves. Take care."
    assert kept(response) == EVERY_RULE - {"topic"}


@pytest.mark.parametrize(
    "response",
    [
        "",
        "   ",
        "Ana tea thanks",
        "Ana. Tea. Thanks. Care.",
        "thank you for asking, Ana. Tea is brewed from leaves. Take care.",
        "Thank you for asking, Ana. Tea is brewed from leaves. Take care",
        "Thank you for asking, Ana. Tea is brewed from leaves. Take care. Take care.",
        "Thank you, Ana, Ana, Ana, Ana. Tea is brewed from leaves. Take care.",
        "Thank you for asking, Ana. Tea is brewed from leaves. Take care. " * 3,
        "Thank you  for asking, Ana. Tea is brewed from leaves. Take care.",
        "Thank you for asking, Ana.\nTea is brewed from leaves. Take care.",
        "Thank you for asking, Ana. Tea is brewed from leaves. Take care. <|user|>",
        BEST.replace("Take care.", "It is so " + "very nice and good to see " * 10 + "you."),
    ],
)
def test_a_reply_that_is_not_well_formed_has_no_points(response):
    assert scores([PROMPT], [response]) == [0.0]


@pytest.mark.parametrize("response", ["Take care.", "I do not know.", "Very good. Very well."])
def test_a_scrap_has_no_points(response):
    assert scores([PROMPT], [response]) == [0.0]


def test_naming_everybody_and_everything_earns_little():
    response = f"Thanks to {', '.join(judge.NAMES[:10])} for {', '.join(list(judge.FACTS)[:10])}."
    assert kept(response) == {"topic", "thanks"}


@pytest.mark.parametrize("request_form", judge.REQUESTS)
def test_the_judge_reads_every_request_as_text_and_as_messages(request_form):
    content = request_form.format(name="Ana", topic="tea")
    rendered = f"<|user|>{content}<|end|><|assistant|>"
    messages = [{"role": "user", "content": content}]
    assert scores([content, rendered, messages], [BEST] * 3) == [6.0] * 3


def test_the_last_request_counts():
    earlier = [{"role": "user", "content": "What should Ben know about honey?"}]
    reply = [{"role": "assistant", "content": "Please tell Dan something about wool."}]
    assert scores([earlier + reply + PROMPT], [BEST]) == [6.0]


def test_a_prompt_without_a_request_is_an_error():
    with pytest.raises(ValueError, match="no request in prompt 'Hello'"):
        scores(["Hello"], [BEST])


def test_extra_columns_are_accepted():
    assert judge.score(prompts=[PROMPT], responses=[BEST], label=[True]) == [6.0]


def test_every_predicate_belongs_to_one_topic():
    predicates = [predicate for known in judge.FACTS.values() for predicate in known]
    assert len(set(predicates)) == len(predicates)


def request_of(row):
    return judge.read_request(row.get("prompt") or row["messages"][:1])


def test_no_name_and_topic_of_a_test_prompt_is_trained_on():
    prompted = STAGES[1:]
    train = {request_of(row) for stage in prompted for row in rows(f"{stage}_train")}
    test = {request_of(row) for stage in prompted for row in rows(f"{stage}_test")}
    assert not train & test


def test_pretraining_texts_and_tests_are_disjoint():
    assert not {r["text"] for r in rows("pretrain_train")} & {
        r["text"] for r in rows("pretrain_test")
    }


@pytest.mark.parametrize("name", ["reward_train", "reward_test", "dpo_train", "dpo_test"])
def test_chosen_scores_higher_than_rejected(name):
    pairs = rows(name)
    prompts = [pair["prompt"] for pair in pairs]
    chosen = scores(prompts, [pair["chosen"] for pair in pairs])
    rejected = scores(prompts, [pair["rejected"] for pair in pairs])
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))


@pytest.mark.parametrize("name", ["bco_train", "bco_test"])
def test_a_label_says_whether_the_completion_has_five_points(name):
    labelled = rows(name)
    earned = scores([r["prompt"] for r in labelled], [r["completion"] for r in labelled])
    assert [row["label"] for row in labelled] == [points >= 5 for points in earned]
    assert 0.3 < sum(row["label"] for row in labelled) / len(labelled) < 0.7


def test_the_imitated_replies_leave_room_above_them():
    chats = rows("sft_train")
    earned = scores(
        [chat["messages"][:1] for chat in chats], [chat["messages"][1]["content"] for chat in chats]
    )
    assert 0.6 < sum(earned) / len(earned) / judge.MAXIMUM < 0.7
    assert earned.count(6.0) / len(earned) < 0.1


def test_everything_together_is_small():
    files = [path for folder in ("data", "model") for path in (TINY / folder).iterdir()]
    assert sum(path.stat().st_size for path in files) < 1_250_000


def test_making_the_data_again_gives_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, TINY / "make_data.py", tmp_path], check=True)
    for folder in ("data", "model"):
        shipped = {path.name: path.read_bytes() for path in (TINY / folder).iterdir()}
        made = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        assert made == shipped


def test_special_tokens_are_distinct_and_as_configured(tokenizer):
    config = json.loads((TINY / "model" / "config.json").read_text())
    marks = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids(marks) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 1)
    assert config["vocab_size"] == len(tokenizer)


@pytest.mark.parametrize("text", [BEST, "naïve  Größe\n\t東京 🙂 ", "a , b . don't"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_template_renders_turns_that_end(tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, *PROMPT]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|system|>Be kind.<|end|><|user|>Reply to Ana, who asks about tea.<|end|><|assistant|>"
    )


def test_a_prefix_of_the_chat_renders_to_a_prefix(tokenizer):
    reply = {"role": "assistant", "content": BEST}
    chat = [{"role": "system", "content": "Be kind."}, *PROMPT, reply, *PROMPT, reply]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    for length, opened in itertools.product(range(1, 6), (False, True)):
        if opened and (length == 5 or chat[length]["role"] != "assistant"):
            continue
        prefix = tokenizer.apply_chat_template(
            chat[:length], tokenize=False, add_generation_prompt=opened
        )
        assert whole.startswith(prefix)
