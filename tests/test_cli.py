"""The command line as a process sees it: streams, exit codes, and what is imported when."""

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_cli
from rlhf_cli import cli, resources
from rlhf_cli.config.check import check_override
from rlhf_cli.config.help import docs, page
from rlhf_cli.config.schema import aliases, options
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, DataError, Interrupted, NonFinite, exit_codes
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import run_files
from rlhf_cli.tools import TOOLS
from rlhf_cli.train.config import LogConfig

TINY = ["model=tiny", "data=tiny"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Commands run nothing but note what they were called with."""
    noted: list[tuple] = []
    monkeypatch.setattr(cli, "_runner", lambda command: lambda *args: noted.append(args) or {})
    return noted


def failing(monkeypatch, error: BaseException) -> None:
    def run(*args: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_runner", lambda command: run)


def manifest(path: str) -> dict:
    return json.loads(Path(path, "manifest.json").read_text())


# Help


def test_overview_names_every_command_and_exit_code(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in (*COMMANDS, *TOOLS):
        assert f"\n  {name} " in text
    assert "...\n" not in text, "a purpose is too long for its line"
    for code, meaning in exit_codes().items():
        assert f"\n  {code:>3}  {meaning}\n" in text


def test_every_exit_code_has_a_meaning():
    assert list(exit_codes()) == [0, 1, 2, 3, 4, 5, 130]
    assert exit_codes()[1] == "any other error"
    assert exit_codes()[3] == "data are missing or cannot be used"


def test_no_command_is_a_wrong_command_line(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: rlhf COMMAND")


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"rlhf {rlhf_cli.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_tells_every_key_with_its_meaning(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for knob in options(COMMANDS[name].config).values():
        assert f"\n  {knob.key}=" in text
        assert docs(knob.owner)[knob.name], f"{knob.key} has no sentence"
    for short, full in aliases(COMMANDS[name].config).items():
        assert re.search(rf"^  {short} +{re.escape(full)}$", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_100_columns(name, capsys):
    cli.main(["--help"])
    text = capsys.readouterr().out + page(COMMANDS[name])
    assert [line for line in text.splitlines() if len(line) > 100 or line != line.rstrip()] == []


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_of_a_tool_tells_its_forms_in_100_columns(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rlhf {name} [")
    for form in TOOLS[name].forms:
        assert f"\n  rlhf {name} {form}".rstrip() in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", [name for name in COMMANDS if not COMMANDS[name].trains])
def test_the_examples_of_a_verb_compose(name, calls):
    for folder in ("runs/base", "runs/sft", "runs/dpo", "runs/reward"):
        Path(folder).mkdir(parents=True)
    files = ("held_out.jsonl", "prompts.jsonl", "pairs.jsonl", "answers.jsonl", "rows.jsonl")
    for file in files:
        Path(file).touch()
    Path("runs/reward/artifact.json").write_text('{"kind": "reward_model"}')
    Path("judge.py").write_text("def score(prompts, responses): ...\n")
    Path("runs/sft/config.yaml").write_text("stage: sft\ndata: {path: tiny}\n")
    assert COMMANDS[name].examples
    for words in COMMANDS[name].examples:
        assert cli.main([name, *shlex.split(words)]) == 0


def test_a_page_tells_type_range_and_unit():
    text = page(COMMANDS["sft"])
    assert re.search(r"train\.lr=auto +number > 0 or auto\n", text)
    assert re.search(r"train\.max_steps=0 +whole number >= 0 \(optimizer steps\)\n", text)
    assert re.search(r"train\.schedule=cosine +cosine \| linear \| constant \| wsd\n", text)
    assert re.search(r"model=tiny +Preset\. The shipped model of four", text)


def test_a_heading_is_a_whole_sentence():
    """Of `metrics.jsonl`, the dot ended it."""
    assert f"\nlog: {LogConfig.__doc__}\n" in page(COMMANDS["sft"])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_sentence_explains_only_values_that_its_key_takes(name):
    for knob in options(COMMANDS[name].config).values():
        said = re.findall(r"(?<![=\w])`(auto|none|true|false)`", docs(knob.owner)[knob.name])
        assert [
            word for word in said if check_override(COMMANDS[name], f"{knob.key}={word}")
        ] == [], knob.key


@pytest.mark.parametrize("argv", [["help", "sft"], ["--help", "sft"], ["sft", "-h"]])
def test_ways_to_ask_for_a_page(argv, capsys):
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: rlhf sft ")


def test_help_wins_over_everything_else_on_the_line(capsys):
    assert cli.main(["sft", "nonsense", "lr=x", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: rlhf sft")


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["stf"]) == 2
    assert capsys.readouterr().err == (
        f"error: stf: no such command; need one of {', '.join([*COMMANDS, *TOOLS])}. Try rlhf sft\n"
    )


# What is imported


HEAVY = ("torch", "transformers", "datasets", "numpy", "accelerate")


@pytest.mark.parametrize(
    ("argv", "code", "light"),
    [
        (["--help"], 0, (*HEAVY, "hydra")),
        (["sft", "--help"], 0, (*HEAVY, "hydra")),
        (["recipes"], 0, (*HEAVY, "hydra")),
        (["env", "--help"], 0, (*HEAVY, "hydra")),
        (["sft", *TINY, "--provenance"], 0, HEAVY),
        (["sft", *TINY, "--cfg"], 0, HEAVY),
        (["sft", *TINY, "lr=x"], 2, HEAVY),
        (["sft", *TINY, "output_dir=done"], 0, HEAVY),
    ],
)
def test_nothing_heavy_is_imported_before_a_run_starts(argv, code, light, calls):
    cli.main(["sft", *TINY, "output_dir=done"])
    program = (
        "import sys; from rlhf_cli.cli import main; code = main(sys.argv[1:]); "
        f"print([name for name in {light!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == f"[] {code}"


# Runs


def test_cfg_prints_a_recipe_that_gives_the_same(capsys):
    assert cli.main(["sft", *TINY, "lr=3e-5", "--cfg"]) == 0
    first = capsys.readouterr().out
    Path("r.yaml").write_text(first)
    assert "  lr: 3e-5\n" in first
    assert cli.main(["sft", "config=r.yaml", "--cfg"]) == 0
    assert capsys.readouterr().out == first


def test_a_stage_gets_its_config_and_folder(calls, folder):
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 0
    [(config, out)] = calls
    assert (config.model.path, out) == ("tiny", folder / "out")
    assert manifest("out")["status"] == "complete"
    assert manifest("out")["argv"] == ["sft", *TINY, "output_dir=out"]
    assert not (out / ".lock").exists()


def test_a_verb_gets_its_config_only(calls):
    assert cli.main(["generate", "model=tiny", "prompt=Hello, you"]) == 0
    [(config,)] = calls
    assert config.prompt == "Hello, you"


@pytest.mark.parametrize("word", ["run", "./run", "runs/lr=1"])
def test_the_first_bare_word_of_a_verb_is_its_model(word, calls, folder):
    Path(word).mkdir(parents=True)
    assert cli.main(["merge", "output_dir=new", word]) == 0
    [(config,)] = calls
    assert config.model.path == str(folder / word)


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "it's"],
        ["a", 'beside=[b,"it\'s"]'],
        ["--beside", '[b,"it\'s"]', "model=a"],
    ],
)
def test_further_bare_words_are_more_models(words, calls, folder):
    for name in ("a", "b", "it's"):
        Path(name).mkdir()
    assert cli.main(["evaluate", "data=tiny", *words, "seed=1"]) == 0
    [(config,)] = calls
    assert config.models == [str(folder / name) for name in ("a", "b", "it's")]


def test_the_bare_word_may_be_a_preset(calls):
    assert cli.main(["generate", "tiny", "prompt=x"]) == 0
    [(config,)] = calls
    assert config.model.path == "tiny"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["merge", "tiny", "again", "output_dir=x"], "again: need key=value. Try config=again if "
         "it is a recipe"),
        (["sft", *TINY, "tiny"], "tiny: need key=value. Try config=tiny if it is a recipe"),
    ],
)  # fmt: skip
def test_other_bare_words_are_one_line(argv, line, capsys):
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_the_same_command_again_does_nothing(calls, capsys, folder):
    cli.main(["sft", *TINY, "output_dir=out"])
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 0
    assert len(calls) == 1
    assert capsys.readouterr().out == f"already complete: {folder}/out\n"


def test_a_run_is_repeated_from_its_config(calls):
    cli.main(["sft", *TINY, "lr=3e-4", "output_dir=first"])
    cli.main(["sft", "config=first/config.yaml", "output_dir=second"])
    assert Path("second/config.yaml").read_text() == Path("first/config.yaml").read_text()


def test_another_configuration_in_the_same_folder_is_shown(calls, capsys, folder):
    cli.main(["sft", *TINY, "output_dir=out"])
    assert cli.main(["sft", *TINY, "output_dir=out", "lr=1e-3"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: output_dir: {folder}/out holds a run with other values; use the same or another "
        "output_dir",
        "error:   train.lr: auto -> 0.001",
    ]


@pytest.fixture
def shipped_sft(tmp_path, monkeypatch):
    """A package whose only shipped recipe is tiny/sft."""
    package = tmp_path / "package"
    shutil.copytree(resources.shipped_folder("configs"), package / "configs")
    (package / "recipes" / "tiny").mkdir(parents=True)
    (package / "recipes" / "tiny" / "sft.yaml").write_text("stage: sft\nmodel: tiny\ndata: tiny\n")
    monkeypatch.setattr(resources, "PACKAGE", package)


@pytest.mark.usefixtures("shipped_sft")
def test_without_model_and_data_the_shipped_recipe_runs(calls, capsys):
    assert cli.main(["sft", "seed=3", "output_dir=out"]) == 0
    assert capsys.readouterr().err == "no model or data given: using recipe tiny/sft\n"
    [(config, _)] = calls
    assert (config.model.path, config.data.path, config.seed) == ("tiny", "tiny", 3)


@pytest.mark.usefixtures("shipped_sft")
def test_shipped_recipes_go_by_name(calls, capsys):
    assert cli.main(["sft", "config=tiny/sft", "output_dir=out"]) == 0
    assert cli.main(["sft", "config=tiny/stf"]) == 2
    assert capsys.readouterr().err == (
        "error: config: got tiny/stf; no such file and no shipped recipe. Try config=tiny/sft\n"
    )


# Exit codes


def test_missing_data_is_3(capsys):
    assert cli.main(["sft", "model=tiny", "data=nowhere.jsonl"]) == 3
    assert capsys.readouterr().err == (
        "error: data.path: got nowhere.jsonl; need a file or folder that exists. "
        "Try data.path=tiny  (command line)\n"
    )


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class SafetensorError(Exception):
    """Named as the library's."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NonFinite("step 7: the loss is nan"), 5),
        (Interrupted("stopped after step 7"), 130),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 4),
        (RuntimeError("CUDA error: out of memory"), 4),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "cache/x"), 1),
        (OSError(errno.EROFS, "Read-only file system", "cache/x"), 1),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1),
    ],
)
def test_an_error_of_a_run_is_told_without_traceback(error, code, monkeypatch, capsys):
    failing(monkeypatch, error)
    assert cli.main(["sft", *TINY, "output_dir=out"]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert manifest("out")["status"] == ("interrupted" if code == 130 else "failed")
    assert manifest("out")["error"].startswith(type(error).__name__)


@pytest.mark.parametrize(("error", "code"), [(DataError("x"), 3), (ConfigError("x"), 2)])
def test_a_run_that_fails_on_its_input_leaves_no_folder(error, code, monkeypatch, capsys):
    failing(monkeypatch, error)
    assert cli.main(["sft", *TINY, "output_dir=out"]) == code
    assert not Path("out").exists()
    assert cli.main(["sft", *TINY]) == code
    assert [*Path("runs").iterdir()] == []
    Path("out").mkdir()
    Path("out", ".gitignore").touch()
    assert cli.main(["sft", *TINY, "output_dir=out"]) == code
    assert [path.name for path in Path("out").iterdir()] == [".gitignore"]
    assert capsys.readouterr().err.count("error: x") == 3


def test_a_run_that_has_measured_something_keeps_its_folder(monkeypatch):
    def score_fails(config, out):
        (out / "metrics.jsonl").write_text('{"step": 0}\n')
        raise DataError("reward.url: no answer")

    monkeypatch.setattr(cli, "_runner", lambda command: score_fails)
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 3
    assert manifest("out")["status"] == "failed"
    assert Path("out/log.txt").read_text().endswith("error: reward.url: no answer\n")


CPU_OUT_OF_MEMORY = (  # as torch 2.11 says it
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)\n"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full. So.\nx"),
            "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full",
        ),
        (
            RuntimeError(CPU_OUT_OF_MEMORY),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 "
            "bytes. Error code 12 (Cannot allocate memory)",
        ),
        (MemoryError(), "out of memory"),
    ],
)
@pytest.mark.parametrize(
    ("argv", "phase"),
    [
        (["sft", *TINY, "output_dir=out"], "update"),
        (["generate", "model=tiny", "prompt=x"], "rollout"),
    ],
)
def test_out_of_memory_has_the_estimate_and_keys_of_the_command(
    monkeypatch, capsys, error, said, argv, phase
):
    failing(monkeypatch, error)
    assert cli.main(argv) == 4
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"error: {said}"
    assert any(phase in line for line in others)
    tries = [line.split("Try ")[1].split(":")[0] for line in others if "Try " in line]
    assert 1 <= len(tries) <= 3
    for words in tries:
        assert cli.main([*argv, *words.split(), "--cfg"]) == 0


def test_torch_says_on_a_cpu_what_we_take_for_out_of_memory(monkeypatch, capsys):
    import torch

    def run(*args: object) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(cli, "_runner", lambda command: run)
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 4
    assert capsys.readouterr().err.startswith("error: DefaultCPUAllocator: can't allocate memory")


def test_an_unexpected_error_shows_its_traceback(monkeypatch, capsys):
    failing(monkeypatch, ZeroDivisionError("x"))
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_run_can_be_started_again(monkeypatch, calls):
    with monkeypatch.context() as patched:
        failing(patched, DataError("x"))
        cli.main(["sft", *TINY, "output_dir=out"])
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 0
    assert manifest("out")["status"] == "complete"
    assert len(manifest("out")["starts"]) == 1  # the one before left nothing to go on with


def test_an_interrupted_run_goes_on(monkeypatch, calls):
    with monkeypatch.context() as patched:
        failing(patched, KeyboardInterrupt())
        assert cli.main(["sft", *TINY, "output_dir=out"]) == 130
    Path("out/checkpoints/step-000001").mkdir(parents=True)
    assert cli.main(["sft", *TINY, "output_dir=out", "train.log_steps=7"]) == 0
    assert manifest("out")["status"] == "complete"


def test_an_error_is_told_though_the_disk_is_full_by_then(monkeypatch, capsys):
    def fill_the_disk(*args: object) -> None:
        def fail(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(run_files.os, "fsync", fail)
        raise DataError("rows.jsonl:3: no text")

    monkeypatch.setattr(cli, "_runner", lambda command: fill_the_disk)
    assert cli.main(["sft", *TINY, "output_dir=out"]) == 3
    assert capsys.readouterr().err == "error: rows.jsonl:3: no text\n"
    assert not Path("out/.lock").exists()


def test_runs_that_is_a_file_is_one_line(calls, capsys):
    Path("runs").touch()
    assert cli.main(["sft", *TINY]) == 1
    assert capsys.readouterr().err == (
        "error: runs: cannot be written (file exists); give another output_dir=FOLDER, and start "
        "again\n"
    )


def test_the_module_is_the_script():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"rlhf {rlhf_cli.__version__}\n"


def test_a_reader_that_leaves_early_is_no_error():
    program = "import sys; from rlhf_cli.cli import main; sys.exit(main(['sft', '--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.close()
    assert child.stderr
    with child.stderr as stderr:
        assert stderr.read() == b""
    child.wait()


# Quiet, and results as JSON


def test_quiet_prints_errors_only_and_the_log_has_everything(monkeypatch, capfd):
    def run(*args: object) -> dict:
        logger.info("a message")
        return {}

    monkeypatch.setattr(cli, "_runner", lambda command: run)
    assert cli.main(["sft", *TINY, "output_dir=run", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert Path("run", "log.txt").read_text() == "a message\n"
    assert cli.main(["dpo", "beta=-1", "-q"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: beta")
    assert len(err.splitlines()) == 1


def test_quiet_silences_child_processes(monkeypatch, capfd):
    def run(*args: object) -> dict:
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'noise')"], check=True)
        return {}

    monkeypatch.setattr(cli, "_runner", lambda command: run)
    assert cli.main(["sft", *TINY, "output_dir=run", "--quiet"]) == 0
    assert capfd.readouterr().err == ""


def test_json_prints_the_summary_or_the_error(calls, capsys):
    assert cli.main(["sft", *TINY, "output_dir=run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["status"], found["output_dir"]) == ("sft", "complete", "run")
    assert cli.main(["sft", *TINY, "output_dir=run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "complete"
    assert cli.main(["dpo", "beta=-1", "--json"]) == 2
    failure = json.loads(capsys.readouterr().out)
    assert failure["exit_code"] == 2
    assert "beta" in failure["error"]
