"""The command line: parses argv, checks the configuration, then runs the command."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from rlhf_cli import __version__
from rlhf_cli.config.args import CommandLine, parse
from rlhf_cli.config.command import Command, Tool, load_function
from rlhf_cli.config.other_trainers import OTHER_NAMES
from rlhf_cli.config.suggest import nearest
from rlhf_cli.console import only_errors, print_result, print_results_as_json
from rlhf_cli.cores import limit_thread_spinning
from rlhf_cli.errors import ConfigError, DataError, Interrupted, RlhfError, translate
from rlhf_cli.launch import torchrun
from rlhf_cli.launch.slurm.ranks import wait_for_former_start
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import SHIPPED
from rlhf_cli.tools import TOOLS

if TYPE_CHECKING:
    from rlhf_cli.resolve import Resolved


def entry() -> int:
    """The console script `rlhf`."""
    limit_thread_spinning()
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)  # until the loop has a step to finish
    return main(sys.argv[1:])


# Slurm sends SIGUSR1 before the time limit, as `--signal` says, and submitit has it send SIGUSR2.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Let a signal end a command as Ctrl-C does: exit code 130, the manifest and lock in order."""
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run a command and return its exit code; errors are printed on stderr.

    Of several processes that another launcher started, rank 0 does so for all.
    """
    own = torchrun.read_launcher_env(argv)
    if own is None:
        return _main(argv)
    if own.rank:
        try:
            return torchrun.run_worker(own)
        except KeyboardInterrupt:  # before rank 0 sent a task; it has the exit code
            return 0
    return torchrun.run_command(own, lambda: _main(argv))


def _main(argv: list[str]) -> int:
    if not QUIET & {*argv}:
        return _run(argv, sys.stderr)
    with only_errors() as errors:
        return _run(argv, errors)


QUIET = {"--quiet", "-q"}


def _run(argv: list[str], errors: TextIO) -> int:
    try:
        return _dispatch(argv)
    except RlhfError as error:
        return _report(error, errors)
    except KeyboardInterrupt:
        print("interrupted", file=errors)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output, as in `rlhf sft --help | head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = translate(error)
        if known:
            return _report(known, errors)
        traceback.print_exc(file=errors)
        return 1


def _report(error: RlhfError, errors: TextIO) -> int:
    from rlhf_cli.runs.log import redact

    text = redact(str(error))
    for line in text.split("\n"):
        print(f"error: {line}", file=errors, flush=True)
    print_result("", {"error": text, "exit_code": error.exit_code})
    return error.exit_code


def _dispatch(argv: list[str]) -> int:
    print_results_as_json("--json" in argv)
    if not argv or argv in (["--help"], ["-h"], ["help"]):
        from rlhf_cli.config.help import overview

        print(overview(COMMANDS.values(), TOOLS.values()), flush=True)
        return 0 if argv else ConfigError.exit_code
    if argv[0] in ("--version", "-V", "version"):
        print(f"rlhf {__version__}")
        return 0
    if argv[0] in ("--help", "-h", "help"):
        argv = [argv[1], "--help"]
    if argv[0] in TOOLS:
        return _run_tool(TOOLS[argv[0]], argv[1:])
    command = _command(argv[0])
    line = parse(command, argv[1:])
    if line.help:
        from rlhf_cli.config.help import page

        print(page(command), flush=True)
        return 0
    return _start(command, line, argv)


def _run_tool(tool: Tool, words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        from rlhf_cli.config.help import tool_page

        print(tool_page(tool), flush=True)
    else:
        _runner(tool)(words)
    return 0


def _command(word: str) -> Command:
    if word in COMMANDS:
        return COMMANDS[word]
    known = [*COMMANDS, *TOOLS]
    close = nearest(word, known)
    advice = f"Try rlhf {close}" if close else "See rlhf --help"
    raise ConfigError(f"{word}: no such command; need one of {', '.join(known)}. {advice}")


def _start(command: Command, line: CommandLine, argv: list[str]) -> int:
    if command.trains:
        torchrun.require_several()
    if command.trains and not line.recipes and not _names_model_or_data(line):
        line.recipes.append(f"{SHIPPED}/{command.name}")
        print(f"no model or data given: using recipe {line.recipes[0]}", file=sys.stderr)
    if line.multirun and line.dry_run:
        from rlhf_cli.sweep.run import plan_sweep

        return _dry_run(
            command, line, {job.title: job.resolved for job in plan_sweep(command, line).jobs}
        )
    if line.multirun:
        from rlhf_cli.sweep.run import run

        return run(command, line)
    from rlhf_cli.resolve import resolve  # Hydra: 0.2 s, which the help does not need

    resolved = resolve(command, line)
    _require_slurm_for_its_keys(line, resolved)
    if line.show_origins:
        from rlhf_cli.config.provenance import format_table, trace

        origins = trace(resolved.public_tree, resolved.layers, resolved.overrides)
        print(format_table(resolved.public_tree, origins), end="", flush=True)
    elif line.show_config:
        from rlhf_cli.config.yaml_files import to_yaml

        print(to_yaml(command.name, resolved.public_tree), end="", flush=True)
    elif line.dry_run:
        return _dry_run(command, line, {"": resolved})
    elif command.trains and resolved.config.launch.kind == "slurm":
        from rlhf_cli.launch.slurm import submit

        submit.run(command, resolved)
    elif command.trains:
        _run_training(command, resolved, argv)
    else:
        return _run_once(command, resolved)
    return 0


def _require_slurm_for_its_keys(line: CommandLine, resolved: "Resolved") -> None:
    """Refuse keys of a Slurm job on the command line of a run that is no job."""
    given = [one.key for one in line.overrides if one.key.startswith("launch.slurm.")]
    if given and resolved.config.launch.kind != "slurm":
        raise ConfigError(
            f"{given[0]}: given, but the run starts on this machine, with launch.kind="
            f"{resolved.config.launch.kind}. Try launch=slurm"
        )


def _dry_run(command: Command, line: CommandLine, jobs: dict[str, "Resolved"]) -> int:
    """Print what a command, or each job of a sweep, would do; torch is not imported.

    Args:
        command: to run.
        line: the command line.
        jobs: title of a job -> its configuration; without a sweep the title is empty.
    """
    from rlhf_cli.torch_free import hide_torch

    hide_torch()
    code: int = load_function(DRY_RUN)(command, jobs, as_json=line.json)
    return code


DRY_RUN = "rlhf_cli.commands.dry_run.run:run"


# With any of these set, the shipped recipe is not meant.
_MODEL_OR_DATA = ("model", "model.path", "model.init", "model.architecture", "data", "data.path")


def _names_model_or_data(line: CommandLine) -> bool:
    """Whether a model or data are set, also by another trainer's name for the key."""
    others = (OTHER_NAMES[o.key].keys for o in line.overrides if o.key in OTHER_NAMES)
    return line.sets(*_MODEL_OR_DATA) or any({*keys} & {*_MODEL_OR_DATA} for keys in others)


def _run_training(command: Command, resolved: "Resolved", argv: list[str]) -> None:
    from rlhf_cli.report.write import write_at_end
    from rlhf_cli.runs import folder, hub, lock, log, manifest

    config = resolved.config
    new = not (config.output_dir and os.path.isdir(config.output_dir))
    out = folder.allocate(command.name, config.output_dir)
    decision = ""
    wait_for_former_start(out)
    try:
        decision = folder.claim(out, resolved.public_tree, command.name, config.resume)
        if decision == "complete":
            print_result(f"already complete: {out}", {"status": decision, "output_dir": str(out)})
        else:
            hub.set_commits(manifest.commits(out) if decision == "continue" else {})
            with log.logged(out), _explained(command, config):
                try:
                    _run_in(out, command, resolved, argv)
                finally:
                    write_at_end(out)
                _show_summary(out)
    except (ConfigError, DataError):
        if decision == "fresh":
            folder.discard(out)
        raise
    finally:
        lock.release(out)
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()  # only where it is empty


def _run_once(command: Command, resolved: "Resolved") -> int:
    """Run a command that does not train; a number that it returns is the exit code."""
    from rlhf_cli.preflight.hub import fetch_named
    from rlhf_cli.runs import hub, log

    hub.set_commits({})
    with log.redacted():
        fetch_named(command, resolved.config, resolved.tree)
        _refuse_too_large(resolved.config)
        with _explained(command, resolved.config):
            code = _runner(command)(resolved.config)
    return code if isinstance(code, int) else 0


def _run_in(out: Path, command: Command, resolved: "Resolved", argv: list[str]) -> None:
    from rlhf_cli.launch import launcher
    from rlhf_cli.preflight.hub import fetch_named
    from rlhf_cli.runs import inputs, manifest

    try:
        read = inputs.record_inputs(resolved.tree, command.config)
        origins = _set_keys(resolved)
        manifest.write_start(out, command.name, argv, resolved.public_tree, read, origins)
        fetch_named(command, resolved.config, resolved.tree)
        manifest.record_commits(out)
        processes = resolved.config.launch.processes
        _refuse_too_large(resolved.config, launcher.count_processes(processes))
        if launcher.is_single_process(processes):
            summary = _runner(command)(resolved.config, out)
        else:
            summary = launcher.launch(command.name, resolved.tree, out)
    except BaseException as error:
        manifest.fail(out, error)
        raise
    manifest.complete(out, **summary)


def _show_summary(out: Path) -> None:
    """Print what a finished run did, on stderr or as JSON."""
    from rlhf_cli.runs.record import read_record
    from rlhf_cli.runs.summary import summarize

    summary = summarize(read_record(out))
    summary.show()
    print_result("", summary.to_dict())


def _set_keys(resolved: "Resolved") -> dict[str, str]:
    """Where each key that is no default was set."""
    from rlhf_cli.config.provenance import DEFAULT, trace

    origins = trace(resolved.public_tree, resolved.layers, resolved.overrides)
    return {key: where for key, where in origins.items() if where != DEFAULT}


def _refuse_too_large(config: Any, processes: int = 1) -> None:
    """Refuse models that cannot fit this device, before they are loaded."""
    from rlhf_cli.memory.limit import refuse_too_large

    refuse_too_large(config, processes)


def _explained(command: Command, config: Any) -> AbstractContextManager[None]:
    """Explain an out-of-memory error with the memory model."""
    from rlhf_cli.memory.out_of_memory import explained

    return explained(command.name, config)


def _runner(command: Command | Tool) -> Callable[..., Any]:
    """The function that runs a command; torch is imported only now."""
    return load_function(command.runner)
