"""`rlhf serve`: commands of other programs for a result."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from rlhf_cli import cli

OPTIONS = {
    "transformers": {"--dtype", "--quantization", "--port"},
    "vllm": {
        *("--dtype", "--max-model-len", "--runner", "--convert", "--enable-lora"),
        *("--lora-modules", "--max-lora-rank", "--tokenizer", "--served-model-name", "--port"),
    },
    "sglang": {
        *("--model-path", "--dtype", "--context-length", "--is-embedding", "--tokenizer-path"),
        *("--lora-paths", "--served-model-name", "--port"),
    },
    "python": {"--outfile", "--outtype"},
    "llama-server": {"-m", "-c", "-a", "--port"},
    "rlhf": set(),
    "curl": {"-H", "-d"},
}
"""Options of transformers 5.23, vllm 0.32.0, sglang 0.5.23 and llama.cpp, read in their sources."""


@pytest.fixture
def serve(capsys):
    def run(*words: str) -> dict[str, list[list[str]]]:
        """Words of each command, by the server that it is for."""
        capsys.readouterr()
        assert cli.main(["serve", *words]) == 0
        found: dict[str, list[list[str]]] = {}
        server = ""
        for text in capsys.readouterr().out.splitlines():
            head = re.match(r"# (transformers|vLLM|SGLang|llama\.cpp) ", text)
            server = head[1].lower() if head else server
            if head:
                found[server] = []
            elif text and not text.startswith("#"):
                found[server].append(shlex.split(text))
        return found

    return run


def body(request: list[str]) -> dict:
    return json.loads(request[request.index("-d") + 1])


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.mark.parametrize("settings", [("sft",), ("sft", "adapter=lora"), ("reward",)])
def test_every_option_exists(settings, run_of, serve):
    for commands in serve(str(run_of(*settings))).values():
        for command in commands:
            used = {word for word in command[1:] if re.fullmatch(r"--?[a-z][a-z-]*", word)}
            assert used <= OPTIONS[command[0]]


def test_whole_weights_are_served_from_the_models_folder(run_of, serve):
    run = run_of("sft")
    found = serve(str(run))
    folder = str(run / "model")
    assert [*found] == ["transformers", "vllm", "sglang", "llama.cpp"]
    assert found["transformers"][0][:3] == ["transformers", "serve", folder]
    assert found["vllm"][0][:3] == ["vllm", "serve", folder]
    assert value(found["sglang"][0], "--model-path") == folder
    assert found["llama.cpp"][0][2] == folder
    assert value(found["vllm"][0], "--max-model-len") == "512"
    dtype = json.loads((run / "model" / "config.json").read_text())["dtype"]
    assert value(found["vllm"][0], "--dtype") == dtype
    request = found["llama.cpp"][-1]
    assert request[1] == "http://localhost:8000/v1/chat/completions"
    assert body(request)["stop"] == ["<|end|>"]
    assert body(found["vllm"][-1])["model"] == value(found["vllm"][0], "--served-model-name")


def test_an_adapter_is_served_on_its_base_or_merged_first(run_of, serve):
    run = run_of("sft", "adapter=lora", "adapter.rank=5")
    found = serve(str(run))
    [command, request] = found["vllm"]
    assert value(command, "--lora-modules") == f"sft={run / 'model'}"
    assert value(command, "--max-lora-rank") == "8"
    assert Path(command[2]).is_dir()
    assert command[2] != str(run / "model")
    assert body(request)["model"] == "sft"
    for server in ("transformers", "llama.cpp"):
        assert found[server][0] == ["rlhf", "merge", str(run), f"output_dir={run}-merged"]
        assert f"{run}-merged" in found[server][1]


@pytest.mark.parametrize(
    "settings", [["adapter=dora"], ["adapter=lora", "adapter.modules_to_save=[norm]"]]
)
def test_what_no_server_takes_is_merged_first(settings, run_of, serve):
    run = run_of("sft", *settings)
    for server in ("vllm", "sglang"):
        first, second, _ = serve(str(run), f"server={server}")[server]
        assert first[:2] == ["rlhf", "merge"]
        assert "--enable-lora" not in second
        assert "--lora-paths" not in second


def test_a_reward_model_is_served_as_a_classifier(run_of, serve):
    run = run_of("reward")
    found = serve(str(run))
    assert found["transformers"] == found["llama.cpp"] == []
    [command, request] = found["vllm"]
    assert (value(command, "--runner"), value(command, "--convert")) == ("pooling", "classify")
    assert request[1].endswith("/classify")
    assert body(request)["use_activation"] is False
    assert body(request)["input"].endswith("<|end|>")
    assert "--is-embedding" in found["sglang"][0]
    merged = serve(str(run_of("reward", "adapter=lora")), "server=vllm")["vllm"]
    assert merged[0][:2] == ["rlhf", "merge"]


def test_a_base_in_four_bits_is_told(small_quantized, capsys):
    assert cli.main(["serve", str(small_quantized), "server=vllm"]) == 0
    assert "trained on a base in nf4" in capsys.readouterr().out


@pytest.fixture
def small_quantized(run_of, tmp_path):
    """An adapter whose record says that its base was in four bits."""
    copy = tmp_path / "qsft"
    shutil.copytree(run_of("sft", "adapter=lora"), copy)
    facts = json.loads((copy / "artifact.json").read_text())
    (copy / "artifact.json").write_text(json.dumps({**facts, "quant": "nf4"}))
    return copy


def test_as_an_object_for_scripts(run_of, capsys):
    assert cli.main(["serve", str(run_of("sft")), "format=json", "server=vllm"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["positions"] == 512
    [server] = found["servers"]
    assert server["server"] == "vLLM"
    assert server["commands"][0].startswith("vllm serve ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "serve: got nothing; need one run"),
        (["nowhere"], "nowhere: no such run or model folder"),
        (["a", "b"], "serve: got a b; need one run"),
        (["tiny", "server=vlm"], "server: got vlm; need one of"),
        (["tiny", "format=yaml"], "format: got yaml; need one of"),
        (["."], "no config.json in"),
    ],
)
def test_wrong_arguments_are_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_an_unfinished_run_is_refused(run_of, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"status": "failed"}')
    assert cli.main(["serve", str(run)]) == 2
    assert "not finished (status: failed)" in capsys.readouterr().err
