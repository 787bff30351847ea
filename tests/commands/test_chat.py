"""The state of a chat, its commands, and ratings that training reads."""

import io
import json
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from rlhf_cli import cli
from rlhf_cli.commands.chat.chat import Chat
from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.chat.feedback import Feedback
from rlhf_cli.commands.chat.model import Answer
from rlhf_cli.commands.chat.run import Conversation
from rlhf_cli.data.records.fields import prompt_to_json
from tests.commands.conftest import FAST


class ScriptedModel:
    """Answers with its name and the sample's number; `text` replaces the next answers."""

    megabytes = 1.0

    def __init__(self, name: str, reads_messages: bool = True) -> None:
        self.name, self.reads_messages, self.identity = name, reads_messages, {"path": name}
        self.asked: list = []
        self.text: list[str] = []
        self.finished, self.stopped = True, False

    def answer(self, prompt, sampling, sample, sink, is_stopped) -> Answer:
        self.asked.append(prompt_to_json(prompt))
        text = self.text.pop(0) if self.text else f"{self.name} {sample}"
        sink(text)
        keys = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
        return Answer(prompt, text, self.identity, keys, self.finished, self.stopped)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(*models: ScriptedModel, **keys) -> Conversation:
    cfg = ChatConfig(**keys)
    cfg.model.path, cfg.beside = models[0].name, [one.name for one in models[1:]]
    chat = Chat(cfg, models)
    feedback = Feedback(Path(cfg.output), "ann")
    return Conversation(chat, feedback, Console(highlight=False, width=100))


def say(conversation: Conversation, *lines: str) -> None:
    for line in lines:
        conversation._handle(line)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


USER, ASSISTANT = "user", "assistant"


def message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def test_each_model_keeps_its_own_history_after_the_system_message():
    one, other = ScriptedModel("a"), ScriptedModel("b")
    say(talk(one, other, system="Be brief."), "Hi", "Why?")
    first = [message("system", "Be brief."), message(USER, "Hi")]
    assert one.asked == [first, [*first, message(ASSISTANT, "a 0"), message(USER, "Why?")]]
    assert other.asked[1][2] == message(ASSISTANT, "b 0")


def test_a_shared_history_follows_the_better_answer():
    one, other = ScriptedModel("a"), ScriptedModel("b")
    say(talk(one, other, shared_history=True), "Hi", "/better 2", "Why?", "/better 1")
    assert one.asked[1] == other.asked[1]
    assert one.asked[1][1] == message(ASSISTANT, "b 0")
    last = rows("feedback.pairs.jsonl")[1]
    assert (last["prompt"], last["chosen"], last["rejected"]) == (one.asked[1], "a 1", "b 1")


def test_text_is_continued_where_no_template_is_used():
    model = ScriptedModel("a", reads_messages=False)
    model.text = [" time", " far away"]
    say(talk(model), "Once upon a", " in a land", "/good")
    assert model.asked == ["Once upon a", "Once upon a time in a land"]
    row = rows("feedback.labels.jsonl")[0]
    assert (row["prompt"], row["completion"]) == ("Once upon a time in a land", " far away")


def test_retry_takes_another_sample_and_undo_and_clear_forget(capsys):
    model = ScriptedModel("a")
    conversation = talk(model)
    say(conversation, "Hi", "/retry", "More")
    assert model.asked[0] == model.asked[1]
    assert model.asked[2][1] == message(ASSISTANT, "a 1")
    say(conversation, "/undo", "Again", "/clear", "New")
    assert model.asked[3] == [*model.asked[2][:-1], message(USER, "Again")]
    assert model.asked[4] == [message(USER, "New")]
    say(conversation, "/set temperature=0", "/retry")
    assert "error: retry: got temperature=0" in capsys.readouterr().out
    assert len(model.asked) == 5


def test_a_failed_retry_keeps_the_old_answer():
    model = ScriptedModel("a")
    conversation = talk(model)
    say(conversation, "Hi")
    before = conversation.chat.last
    model.answer = None
    with pytest.raises(TypeError):
        conversation._retry()
    assert conversation.chat.turns == [before]


def test_set_changes_sampling_by_the_check_of_the_command_line(capsys):
    conversation = talk(ScriptedModel("tiny"))
    say(conversation, "/set temperature=0.3 sampling.top_p=0.9 'stop=[a,b]'")
    sampling = conversation.chat.cfg.sampling
    assert (sampling.temperature, sampling.top_p, sampling.stop) == (0.3, 0.9, ["a", "b"])
    capsys.readouterr()
    for words, need in (
        ("temprature=1", "did you mean sampling.temperature"),
        ("top_p=2", "sampling.top_p: got 2"),
        ("temperature=1,2", "sampling.temperature: got 1,2; need one value"),
        ("blind=true", "blind: cannot change during a chat"),
        ("seed", "seed"),
        ("'a", "No closing quotation"),
    ):
        say(conversation, f"/set {words}")
        found = capsys.readouterr().out
        assert found.startswith("error: "), words
        assert need in " ".join(found.split())
    assert conversation.chat.cfg.sampling == sampling


def test_ratings_have_the_whole_history_and_say_where_they_come_from():
    conversation = talk(ScriptedModel("a"), system="Be brief.")
    say(conversation, "Hi", "/good", "Why?", "/bad")
    good, bad = rows("feedback.labels.jsonl")
    assert good["prompt"] == [message("system", "Be brief."), message(USER, "Hi")]
    assert (good["completion"], good["label"], bad["label"]) == ("a 0", True, False)
    assert len(bad["prompt"]) == 4
    assert good["model"] == {"path": "a"}
    assert good["sampling"]["temperature"] == 0.7
    assert good["rater"] == "ann"
    assert good["time"].endswith("+00:00")


def test_another_rating_of_the_same_answer_replaces_the_first(capsys):
    conversation = talk(ScriptedModel("a"), ScriptedModel("b"))
    say(conversation, "Hi", "/good 1", "/good 1", "/bad 2", "/bad 1", "/better 1", "/better 2")
    assert [(row["completion"], row["label"]) for row in rows("feedback.labels.jsonl")] == [
        ("b 0", False),
        ("a 0", False),
    ]
    assert [row["chosen"] for row in rows("feedback.pairs.jsonl")] == ["b 0"]
    assert "noted already" in capsys.readouterr().out


def test_of_three_answers_the_better_one_is_preferred_to_both_others():
    models = [ScriptedModel(name) for name in "abc"]
    say(talk(*models), "Hi", "/better 2", "/both-bad")
    pairs = rows("feedback.pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("b 0", "a 0"), ("b 0", "c 0")]
    assert [row["label"] for row in rows("feedback.labels.jsonl")] == [False] * 3


def test_after_different_histories_the_turns_that_differ_are_compared():
    say(talk(ScriptedModel("a"), ScriptedModel("b")), "Hi", "Why?", "/better 1")
    row = rows("feedback.pairs.jsonl")[0]
    assert row["prompt"] == [message(USER, "Hi")]
    assert row["chosen"] == [
        message(ASSISTANT, "a 0"),
        message(USER, "Why?"),
        message(ASSISTANT, "a 1"),
    ]


def test_answers_that_nothing_can_learn_from_are_refused(capsys):
    one, other = ScriptedModel("a"), ScriptedModel("b")
    conversation = talk(one, other)
    one.text, other.text = ["same"], ["same"]
    say(conversation, "Hi", "/better 1", "/good", "/good 3", "/better x")
    one.text, one.stopped = [" "], True
    say(conversation, "Hi", "/bad 1", "/good 1", "/better 1")
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(errors) == 7
    assert not Path("feedback.labels.jsonl").exists()
    assert not Path("feedback.pairs.jsonl").exists()


def test_blind_models_have_no_names_until_the_vote(capsys):
    conversation = talk(ScriptedModel("model-a"), ScriptedModel("model-b"), blind=True)
    orders = set()
    for _ in range(20):
        say(conversation, "Hi")
        orders.add(tuple(conversation.chat.last.order))
        assert conversation.chat.heading(conversation.chat.last, 1) == "1"
    assert len(orders) == 2
    capsys.readouterr()
    say(conversation, "/better 1")
    first = conversation.chat.models[conversation.chat.last.order[0]].name
    assert f"1 is {first}" in capsys.readouterr().out
    assert rows("feedback.pairs.jsonl")[0]["chosen_model"] == {"path": first}


def test_save_writes_rows_for_sft_and_replaces_nothing(capsys):
    conversation = talk(ScriptedModel("a"), system="S")
    say(conversation, "/save chat.jsonl", "Hi", "/save chat.jsonl", "/save chat.jsonl", "/save x")
    out = capsys.readouterr().out
    assert out.count("error: ") == 3
    assert rows("chat.jsonl")[0]["messages"] == [
        message("system", "S"),
        message(USER, "Hi"),
        message(ASSISTANT, "a 0"),
    ]


def test_unknown_commands_and_text_that_begins_with_a_slash(capsys):
    model = ScriptedModel("a")
    conversation = talk(model)
    say(conversation, "/goood", " /etc is a folder?", "/help", "/show", "/system Be kind.", "/undo")
    assert model.asked == [[message(USER, "/etc is a folder?")]]
    out = capsys.readouterr().out
    assert "Try /good" in out
    assert "/save FILE" in out
    assert "temperature=0.7" in out
    assert conversation.chat.system == "Be kind."


def test_control_characters_of_a_model_reach_no_terminal(capsys):
    model = ScriptedModel("a")
    model.text = ["\x1b]0;x\x07red \x1b[31m \r\u202e fine 👩\u200d🔬\u3000é"]
    conversation = talk(model)
    say(conversation, "Hi")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out
    assert "fine 👩\u200d🔬\u3000é" in out


def test_a_chat_ends_at_ctrl_d_and_at_quit_and_says_who_reads_the_ratings(capsys):
    for end in ("\x04", "/quit\r"):
        with (
            create_pipe_input() as keys,
            create_app_session(input=keys, output=DummyOutput()),
        ):
            keys.send_text(f"Hi\r/bad\rhalf\x03/nothing\r{end}")
            talk(ScriptedModel("a"), history="none", output="f.jsonl").talk()
        out = capsys.readouterr().out
        assert "error: /nothing: no such command" in out
        assert out.splitlines()[-1] == "1 row in f.labels.jsonl, for rlhf bco"


def test_a_log_has_every_answer():
    conversation = talk(ScriptedModel("a"), ScriptedModel("b"), log="log.jsonl")
    say(conversation, "Hi", "/retry")
    found = rows("log.jsonl")
    assert [row["response"] for row in found] == ["a 0", "b 0", "a 1", "b 1"]
    assert found[0]["prompt"] == [message(USER, "Hi")]


def test_files_that_hold_other_rows_are_refused(capsys):
    Path("f.labels.jsonl").write_text('{"prompt": "a", "completion": "b", "label": tr')
    assert cli.main(["chat", "tiny", "output=f.jsonl"]) == 3
    assert "f.labels.jsonl:1: broken JSON" in capsys.readouterr().err
    Path("g.pairs.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    assert cli.main(["chat", "tiny", "output=g.jsonl"]) == 3
    assert "g.pairs.jsonl:1 has the columns completion, label" in capsys.readouterr().err
    Path("h.labels.jsonl").mkdir()
    assert cli.main(["chat", "tiny", "output=h.jsonl"]) == 3
    assert cli.main(["chat", "tiny", "output=h.txt"]) == 2
    assert cli.main(["chat", "tiny", "tiny", "output=h.jsonl"]) == 2
    assert cli.main(["chat", "tiny", "blind=true"]) == 2


def test_a_reward_model_or_unfinished_run_is_refused(capsys):
    Path("reward").mkdir()
    Path("reward/config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    assert cli.main(["chat", "./reward"]) == 2
    assert "model.path" in capsys.readouterr().err
    assert cli.main(["chat", "tiny", "./reward"]) == 2
    assert "beside: got" in capsys.readouterr().err
    Path("run").mkdir()
    Path("run/manifest.json").write_text('{"status": "failed"}')
    assert cli.main(["chat", "run"]) == 2
    assert "need a finished run" in capsys.readouterr().err


def test_lines_of_a_pipe_are_answered_on_stdout(run_of, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\n/quit\nlast"))
    words = ["max_new_tokens=3", "temperature=0", "precision=fp32", "log=log.jsonl"]
    assert cli.main(["chat", str(run_of("sft")), *words]) == 0
    found = rows("log.jsonl")
    assert [row["prompt"][-1]["content"] for row in found] == ["Hi", "/quit", "last"]
    assert [len(row["prompt"]) for row in found] == [1, 3, 5]
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{row['response']}\n" for row in found)
    assert "\x1b" not in captured.out


def test_a_model_without_template_says_so(run_of, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi"))
    words = [str(run_of("sft")), "max_new_tokens=3", "precision=fp32", "template=never"]
    assert cli.main(["chat", *words]) == 0
    assert "no chat template is used" in capsys.readouterr().err
    assert cli.main(["chat", *words, "system=S"]) == 2


def test_ratings_train_bco_dpo_and_a_reward_model():
    conversation = talk(ScriptedModel("a"), ScriptedModel("b"))
    for question in ("Hi", "How are you?", "Why?", "Where?"):
        say(conversation, question, "/better 1", "/good 1", "/bad 2")
    labels, pairs = "feedback.labels.jsonl", "feedback.pairs.jsonl"
    for stage, data in (("bco", labels), ("dpo", pairs), ("reward", pairs)):
        words = [*FAST, "max_steps=1", f"data={data}", f"output_dir={stage}"]
        words.remove("max_steps=2")
        assert cli.main([stage, *words]) == 0
        assert Path(stage, "model").is_dir()
        report = json.loads(Path(stage, "manifest.json").read_text())
        assert '"malformed": 0' in json.dumps(report)
