"""The command line: parses argv, checks the configuration, then runs the command."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
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
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import SHIPPED
from rlhf_cli.tools import TOOLS

if TYPE_CHECKING:
    from rlhf_cli.resolve import Resolved


def entry() -> int:
    """The console script `rlhf`."""
    limit_thread_spinning()
    signal.signal(signal.SIGTERM, _interrupt)  # until the loop has a step to finish
    return main(sys.argv[1:])


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM end a command as Ctrl-C does: exit code 130, the manifest and lock in order."""
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run a command and return its exit code; errors are printed on stderr.

    Of several processes that another launcher started, rank 0 does so for all.
    """
    own = torchrun.read_launcher_env(argv)
    if own is None:
        return _main(argv)
    if own.rank:
        return torchrun.run_worker(own)
    code = _main(argv)
    torchrun.release_workers(own, code)
    return code


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
        command = COMMANDS.get(argv[0])
        known = translate(error, command.less_memory if command else Command.less_memory)
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
    if command.trains and not line.recipes and not _names_model_or_data(line):
        line.recipes.append(f"{SHIPPED}/{command.name}")
        print(f"no model or data given: using recipe {line.recipes[0]}", file=sys.stderr)
    if line.multirun:
        from rlhf_cli.sweep.run import run

        return run(command, line)
    from rlhf_cli.resolve import resolve  # Hydra: 0.2 s, which the help does not need

    resolved = resolve(command, line)
    if line.show_origins:
        from rlhf_cli.config.provenance import format_table, trace

        origins = trace(resolved.public_tree, resolved.layers, resolved.overrides)
        print(format_table(resolved.public_tree, origins), end="", flush=True)
    elif line.show_config:
        from rlhf_cli.config.yaml_files import to_yaml

        print(to_yaml(command.name, resolved.public_tree), end="", flush=True)
    elif command.trains:
        _run_training(command, resolved, argv)
    else:
        _run_once(command, resolved)
    return 0


# With any of these set, the shipped recipe is not meant.
_MODEL_OR_DATA = ("model", "model.path", "model.init", "model.architecture", "data", "data.path")


def _names_model_or_data(line: CommandLine) -> bool:
    """Whether a model or data are set, also by another trainer's name for the key."""
    others = (OTHER_NAMES[o.key].keys for o in line.overrides if o.key in OTHER_NAMES)
    return line.sets(*_MODEL_OR_DATA) or any({*keys} & {*_MODEL_OR_DATA} for keys in others)


def _run_training(command: Command, resolved: "Resolved", argv: list[str]) -> None:
    from rlhf_cli.runs import folder, hub, lock, log, manifest

    config = resolved.config
    new = not (config.output_dir and os.path.isdir(config.output_dir))
    out = folder.allocate(command.name, config.output_dir)
    decision = ""
    try:
        decision = folder.claim(out, resolved.public_tree, command.name, config.resume)
        if decision == "complete":
            print_result(f"already complete: {out}", {"status": decision, "output_dir": str(out)})
        else:
            hub.set_commits(manifest.commits(out) if decision == "continue" else {})
            with log.logged(out):
                _run_in(out, command, resolved, argv)
    except (ConfigError, DataError):
        if decision == "fresh":
            folder.discard(out)
        raise
    finally:
        lock.release(out)
        if new:
            with contextlib.suppress(OSError):
                out.rmdir()  # only where it is empty


def _run_once(command: Command, resolved: "Resolved") -> None:
    from rlhf_cli.preflight.hub import fetch_named
    from rlhf_cli.runs import hub, log

    hub.set_commits({})
    with log.redacted():
        fetch_named(command, resolved.config, resolved.tree)
        _runner(command)(resolved.config)


def _run_in(out: Path, command: Command, resolved: "Resolved", argv: list[str]) -> None:
    from rlhf_cli.launch import launcher
    from rlhf_cli.preflight.hub import fetch_named
    from rlhf_cli.runs import inputs, manifest

    try:
        read = inputs.record_inputs(resolved.tree, command.config)
        manifest.write_start(out, command.name, argv, resolved.public_tree, read)
        fetch_named(command, resolved.config, resolved.tree)
        manifest.record_commits(out)
        if launcher.is_single_process(resolved.config.launch.processes):
            summary = _runner(command)(resolved.config, out)
        else:
            summary = launcher.launch(command.name, resolved.tree, out)
    except BaseException as error:
        manifest.fail(out, error)
        raise
    manifest.complete(out, **summary)
    _show_summary(out)


def _show_summary(out: Path) -> None:
    """Print what a finished run did, on stderr or as JSON."""
    from rlhf_cli.runs.record import read_record
    from rlhf_cli.runs.summary import summarize

    summary = summarize(read_record(out))
    summary.show()
    print_result("", summary.to_dict())


def _runner(command: Command | Tool) -> Callable[..., Any]:
    """The function that runs a command; torch is imported only now."""
    return load_function(command.runner)
