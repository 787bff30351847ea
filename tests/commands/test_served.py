"""Responses of servers for `rlhf generate` and judges; no weights are loaded in the process."""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.commands import generator
from rlhf_cli.commands.served import generator as served
from rlhf_cli.rollout.server.requests import response_seed
from tests.rollout.server.stub import model_writer, serving

STUB = Path(__file__).parents[1] / "rollout" / "server" / "serve_stub.py"
START = f"{shlex.quote(sys.executable)} {STUB} {{model}} {{port}} {{name}} tokenizer"
PROMPTS = ["Tell Ana about tea.", "Tell Ben about jazz.", "Tell Ana about jazz."]
JUDGE = """
def length(*, prompts, responses, **columns):
    return [len(response) for response in responses]
"""
COMMON = ["prompts=prompts.jsonl", "max_new_tokens=6", "output=out.jsonl"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Loading weights fails."""
    monkeypatch.setattr(generator, "load_generator", None)


def serving_run(run: Path, *, real: bool = False, **changed):
    """A stub started with the model of a run; `real` responds by its weights."""
    folder = run / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = {
        "rows": 1024,
        "context": 512,
        "root": str(folder),
        "tokenize": lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    }
    if real:
        own["write"] = model_writer(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer)
    return serving(**{**own, **changed})


def write(run: object, *words: object) -> list[dict]:
    assert cli.main(["generate", str(run), *COMMON, *map(str, words)]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def requests(stub) -> list[dict]:
    """Sampling parameters of the responses that were asked for, without those of the checks."""
    bodies = [body for _, path, body in stub.calls if path == "/inference/v1/generate" and body]
    return [one["sampling_params"] for one in bodies if one["sampling_params"]["max_tokens"] > 1]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_greedy_responses_are_those_of_the_model_here(kind, run_of, monkeypatch):
    run = run_of("sft")
    expected = write(run, "temperature=0", "precision=fp32")
    monkeypatch.setattr(generator, "load_generator", None)
    with serving_run(run, real=True, kind=kind) as stub:
        assert write(run, "temperature=0", f"rollout.server={stub.url}") == expected


def test_samples_have_the_seeds_of_their_prompts_in_any_portion(run_of, no_weights):
    run = run_of("sft")
    words = ["samples_per_prompt=2", "sampling.seed=7", 'sampling.stop=["zq"]']
    with serving_run(run) as stub:
        whole = write(run, *words, f"rollout.server={stub.url}")
        asked = requests(stub)
    assert len(whole) == 6
    assert {one["seed"] for one in asked} == {
        response_seed(7, prompt, sample) for prompt in range(3) for sample in range(2)
    }
    assert all(one["stop"] == ["zq"] and "logprobs" not in one for one in asked)
    with serving_run(run) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "BATCHES_PER_CALL", 1)
        server = [f"rollout.server={stub.url}", "rollout.concurrency=2"]
        assert write(run, *words, *server) == whole
        assert stub.most_in_flight <= 2


def test_the_best_of_several_by_a_reward(run_of, no_weights):
    run = run_of("sft")
    with serving_run(run) as stub:
        server = f"rollout.server={stub.url}"
        every = write(run, server, "samples_per_prompt=4")
        best = write(
            run, server, "samples_per_prompt=4", "keep=best", "reward.function=judge.py:length"
        )
    lengths = [len(row["response"]) for row in every]
    assert [row["best_score"] for row in best] == [max(lengths[k : k + 4]) for k in (0, 4, 8)]


def test_one_response_is_printed_when_it_is_complete(run_of, no_weights, capsys):
    run = run_of("sft")
    with serving_run(run) as stub:
        words = [str(run), "prompt=Hi", "max_new_tokens=6", f"rollout.server={stub.url}"]
        assert cli.main(["generate", *words]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line


def refused(run: Path, url: str, capsys, *words: str) -> str:
    code = cli.main(["generate", str(run), *COMMON, f"rollout.server={url}", *words])
    assert code == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert not Path("out.jsonl").exists()
    return line


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_with_another_model_is_refused(kind, run_of, tmp_path, capsys, no_weights):
    run = run_of("sft")
    with serving_run(run, kind=kind, root=str(tmp_path)) as stub:
        line = refused(run, stub.url, capsys)
        assert f"serves {tmp_path}; need model.path={run}. Start it with that model" in line
    with serving_run(run, kind=kind, version="rlhf-0123456789ab-5") as stub:
        assert "has weights that a training run handed over" in refused(run, stub.url, capsys)
    with serving_run(run, kind=kind, context=10) as stub:
        assert "takes 10 tokens of prompt and response; need" in refused(run, stub.url, capsys)
    with serving_run(run, kind=kind, rows=1023) as stub:
        assert "has no token id 1023" in refused(run, stub.url, capsys)
    with serving_run(run, kind=kind, tokenize=lambda text: [5]) as stub:
        assert "has another tokenizer" in refused(run, stub.url, capsys)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["quant=nf4"], "quant.kind: got nf4 with a server"),
        (["model.attention=sdpa"], "model.attention: got sdpa with a server"),
        (["batch_size=8"], "batch_size: got 8 with a server"),
        (["precision=fp32"], "precision: got fp32 with rollout.server"),
        (["device_memory=24GB"], "device_memory: got 24GB with a server"),
        (["device_flops=1e12"], "device_flops: got 1000000000000.0 with a server"),
        (["sampling.cuda_graphs=true"], "sampling.cuda_graphs: got true with a server"),
        (["sampling.min_new_tokens=2", "sampling.stop=[x]"], "sampling.min_new_tokens: given with"),
        (["rollout.start=vllm"], "rollout.start: given beside rollout.server"),
        (
            ["rollout.sync_folder=/tmp"],
            "rollout.sync_folder: a key of dpo, ppo, grpo, distill, not of",
        ),
        (["rollout.lag=1"], "rollout.lag: a key of dpo, ppo, grpo, distill, not of generate"),
    ],
)
def test_keys_without_an_effect_are_refused(words, line, run_of, capsys):
    assert line in refused(run_of("sft"), "http://127.0.0.1:9", capsys, *words)


@pytest.mark.slow
def test_precision_is_that_of_a_started_server_or_of_a_reward_model(run_of, capsys):
    common = [str(run_of("sft")), "prompt=Hi", "precision=fp32", "--dry-run"]
    assert cli.main(["generate", *common, "rollout.start=vllm"]) == 0
    words = ["samples_per_prompt=2", "rollout.server=http://127.0.0.1:9"]
    assert cli.main(["generate", *common, *words, f"reward.model={run_of('reward')}"]) == 0


def test_models_that_no_server_can_load_are_refused(run_of, capsys):
    server = "rollout.server=http://127.0.0.1:9"
    assert cli.main(["generate", "tiny", "prompt=Hi", server]) == 2
    assert "model.path: got tiny, whose weights are random, with a serv" in capsys.readouterr().err
    adapter = run_of("sft", "adapter=lora")
    assert cli.main(["generate", str(adapter), "prompt=Hi", server]) == 2
    err = capsys.readouterr().err
    assert f"model.path: got {adapter}, an adapter, with a server; need whole weights" in err
    assert f"Try rlhf merge model={adapter} output_dir={adapter}-merged" in err


def judge(*words: object) -> int:
    common = ["judge=judge.py:length", "prompts=prompts.jsonl", "max_new_tokens=6"]
    return cli.main(["evaluate", *map(str, words), *common, "output=out.json"])


def test_models_to_be_judged_are_served_one_after_the_other(
    run_of, no_weights, tmp_path, monkeypatch, capsys
):
    sft, base = run_of("sft"), run_of("pretrain")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path("temporary").mkdir()
    capsys.readouterr()  # of the runs
    logs: list[str] = []

    def keep(folder: Path, **_: object) -> None:
        logs.append((folder / "server.log").read_text())

    monkeypatch.setattr(served, "shutil", SimpleNamespace(rmtree=keep))
    assert judge(sft, f"baseline={base}", f"rollout.start={START}") == 0
    found = json.loads(Path("out.json").read_text())
    assert {row["run"] for row in found["results"]} == {"sft", "pretrain"}
    one, other = (row for row in found["answers"][0]["answers"].values())
    assert one["response"] != other["response"]  # the stub's depend on the folder
    pids = [int(text.split("pid ")[1].split()[0]) for text in logs]
    assert len({*pids}) == 2
    assert not any(_runs(pid) for pid in pids)
    shown = capsys.readouterr().err
    assert shown.index(str(sft / "model")) < shown.index(str(base / "model"))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return bool(Path(f"/proc/{pid}/cmdline").read_text())


def test_the_log_of_a_server_that_does_not_start_stays(run_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path("temporary").mkdir()
    code = cli.main(["generate", str(run_of("sft")), "prompt=Hi", "rollout.start=sh -c 'exit 3'"])
    assert code == 1
    assert "the server ended with exit code" in capsys.readouterr().err
    assert len([*Path("temporary").glob("rlhf-server-*/server.log")]) == 1


def test_one_server_has_one_model_to_be_judged(run_of, no_weights, capsys):
    run = run_of("sft")
    with serving_run(run) as stub:
        assert judge(run, f"rollout.server={stub.url}") == 0
        assert judge(run, run_of("pretrain"), f"rollout.server={stub.url}") == 2
    assert "rollout.server: given with several models, and a server" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "rollout.start=vllm"]) == 2
    assert "rollout.start: given without a judge" in capsys.readouterr().err


def test_a_dry_run_says_what_is_asked_of_the_server(run_of, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "KEY", "secret")
    run = str(run_of("sft"))
    words = ["prompt=[Hello,Hi]", "max_new_tokens=5", "rollout.start=vllm", "samples_per_prompt=3"]
    assert cli.main(["generate", run, *words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["responses"] == 6
    assert found["run"]["context_length"] == found["data"]["longest_tokens"] + 5
    assert (found["run"]["start"], found["run"]["models"]) == ("vllm", [run])
    assert "memory" not in found
    words = ["prompts=prompts.jsonl", "judge=judge.py:length", f"baseline={run_of('pretrain')}"]
    assert cli.main(["evaluate", run, *words, "rollout.start=vllm", "--dry-run"]) == 0
    assert "vllm, started and ended, for each model in turn" in capsys.readouterr().out
