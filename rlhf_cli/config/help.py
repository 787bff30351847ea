"""The help pages: plain text, 100 columns, made from the config classes."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from rlhf_cli.config.command import Command, Tool
from rlhf_cli.config.presets import preset_files
from rlhf_cli.config.schema import (
    DataPath,
    FilePath,
    FunctionPath,
    ModelPath,
    Option,
    OutputPath,
    Unit,
    aliases,
    is_group,
    is_union,
    options,
    split_annotated,
)
from rlhf_cli.config.values import describe_range, format_value
from rlhf_cli.errors import RlhfError, exit_codes

WIDTH = 100
_COLUMN = 36

_OVERVIEW = """\
usage: rlhf COMMAND [config=RECIPE]... [key=value ...] [-m] [--cfg] [--dry-run] [--help]
       rlhf recipes | data | report | runs | serve | push | env | schema | docs [--help]
       rlhf --help | --version

Train a language model from human feedback.

Commands
{commands}

Settings
  A recipe is a YAML file of keys, given by path or by a shipped name: config=tiny/sft
  (rlhf recipes lists those that are shipped). It may start from another (base: tiny/sft), have
  variables (vars: {{size: 256}}, used as ${{vars.size}}, set by vars.size=512) and say what -m runs
  (sweep: {{lr: [1e-4, 3e-4]}}). adapter=NAME and other presets are found in configs/ beside the
  recipe and in the folders of RLHF_CONFIGS too, as adapter/NAME.yaml.
  Several config= layer in order, later ones win. Any key can be set by key=value, which wins over
  every recipe; a recipe wins over the defaults.
    rlhf sft config=tiny/sft lr=1e-4 train.schedule=linear
    rlhf sft model=HuggingFaceTB/SmolLM2-135M data=chats.jsonl output_dir=runs/sft
  A training command without recipe, model and data runs the shipped recipe tiny/<command>.
  The same command with the same output_dir continues an unfinished run.
  -m runs every combination of several values: rlhf sft -m lr=1e-3,1e-4 seed=0,1
  --cfg prints the whole configuration as a recipe and runs nothing; --provenance prints where each
  value comes from. --dry-run reads the rows and prints steps, memory, time and disk of the run, and
  whether it fits (else exit code 4), in seconds; with device_memory=24GB for a GPU that is not
  here, and with --json for scripts.
  --quiet (-q) prints errors only; --json prints the result, or the error, as one JSON object.
  rlhf COMMAND --help lists every key of a command; rlhf docs prints the documentation.

Exit codes
{codes}"""


def overview(commands: Iterable[Command], tools: Iterable[Tool]) -> str:
    """The page of `rlhf --help`."""
    purposes = {command.name: _purpose(command)[0] for command in commands}
    purposes |= {tool.name: tool.purpose for tool in tools}
    lines = [
        f"  {name:<10} {textwrap.shorten(purpose, WIDTH - 13, placeholder='...')}"
        for name, purpose in purposes.items()
    ]
    codes = [f"  {code:>3}  {meaning}" for code, meaning in exit_codes().items()]
    return _OVERVIEW.format(
        commands="\n".join(lines),
        codes="\n".join(codes),
    )


def page(command: Command) -> str:
    """The page of `rlhf <command> --help`: every key with type, default and meaning."""
    several = " ..." if command.more else ""
    first = f"[{command.positional.upper()}{several}] " if command.positional else ""
    sweeps = "[-m] " if command.trains else ""
    dry = "" if command.name == "merge" else "[--dry-run] "
    switches = f"{sweeps}[--cfg] [--provenance] {dry}[--quiet] [--json] [--help]"
    usage = f"usage: rlhf {command.name} {first}[config=RECIPE]... [key=value ...] {switches}"
    usage = textwrap.fill(usage, WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)
    parts = [usage, "\n".join(textwrap.wrap(" ".join(_purpose(command)), WIDTH))]
    by_group: dict[str, list[Option]] = {}
    for option in options(command.config).values():
        by_group.setdefault(option.key.rpartition(".")[0], []).append(option)
    for group, members in by_group.items():
        lines = [line for option in members for line in _entry(option)]
        parts.append("\n".join([_heading(command, group, members[0].owner), *lines]))
    if aliases(command.config):
        parts.append("\n".join(_short_names(command)))
    parts.append("\n".join(_examples(command)))
    return "\n\n".join(parts)


def tool_page(tool: Tool) -> str:
    """The page of `rlhf <tool> --help`: what can follow its name."""
    words = " | ".join(filter(None, tool.forms))
    lines = [
        line
        for form, meaning in tool.forms.items()
        for line in _columns(f"rlhf {tool.name} {form}".rstrip(), _wrap(meaning))
    ]
    usage = f"usage: rlhf {tool.name} [{words}] [--help]"
    if len(usage) > WIDTH:
        first = " | ".join(dict.fromkeys(form.partition(" ")[0] for form in tool.forms))
        usage = f"usage: rlhf {tool.name} [{first}] ... [--help]"
    return "\n".join([usage, "", tool.purpose, "", *lines])


def _purpose(command: Command) -> tuple[str, str]:
    """The first line of the config class's docstring and the rest."""
    text = inspect.cleandoc(command.config.__doc__ or "")
    first, _, rest = text.partition("\n")
    return first, " ".join(rest.split())


def _heading(command: Command, group: str, config: type[Any]) -> str:
    if not group:
        return f"{command.name}: its own keys"
    return "\n".join([f"{group}: {first_sentence(config.__doc__ or '')}", *_presets(group)])


def first_sentence(text: str) -> str:
    """Up to the first full stop at the end of a word; `metrics.jsonl` has one inside."""
    return re.split(r"(?<=\.) ", " ".join(text.split()), maxsplit=1)[0]


def _presets(group: str) -> Iterator[str]:
    """A line for each file of a group, with the comment it starts with."""
    for name, file in preset_files(group).items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        purpose = first.removeprefix("# ") if first.startswith("# ") else f"In {file}."
        yield from _columns(f"{group}={name}", _wrap(f"Preset. {purpose}"))


def _entry(option: Option) -> Iterator[str]:
    right = [*_wrap(_kind(option.type)), *_wrap(docs(option.owner).get(option.name, ""))]
    return _columns(f"{option.key}={_default(option)}", right)


def _columns(left: str, right: list[str]) -> Iterator[str]:
    left = f"  {left}"
    if len(left) >= _COLUMN:
        yield left
        left = ""
    for line in right:
        yield f"{left:<{_COLUMN}}{line}"
        left = ""


def _default(option: Option) -> str:
    return "" if option.default == "" else format_value(option.default)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - _COLUMN, break_long_words=False, break_on_hyphens=False)


def _kind(annotation: Any) -> str:
    """A short form of a type: `number > 0`, `cosine | linear`, `list of text`."""
    bare, constraints = split_annotated(annotation)
    if is_union(bare):
        text = Annotated[str, *constraints] if constraints else str
        return " or ".join(_kind(text if part is str else part) for part in get_args(bare))
    if is_group(bare):
        return "{key: value}"
    parts = get_args(bare)
    if get_origin(bare) is Literal:
        return " | ".join(format_value(part) for part in parts)
    if get_origin(bare) is list:
        return f"list of {_kind(parts[0])}"
    if get_origin(bare) is dict:
        return f"{{key: {_kind(parts[1])}}}"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text", Any: "value"}
    paths = {DataPath: "path of data", ModelPath: "path or hub id", FilePath: "path of a file"}
    paths |= {OutputPath: "path to write to", FunctionPath: "FILE.py:FUNCTION"}
    name = next(
        (paths[type(mark)] for mark in constraints if type(mark) in paths), names.get(bare, "")
    )
    units = [f"({mark.name})" for mark in constraints if isinstance(mark, Unit)]
    return " ".join([name, *describe_range(constraints), *units])


@cache
def docs(config: type[Any]) -> dict[str, str]:
    """The sentence under each field of a config class, inherited ones included."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        if not isinstance(body, ast.ClassDef):
            raise RlhfError(f"{parent.__name__} is not a class")
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = _string(following)
                if text:
                    found[statement.target.id] = " ".join(text.split())
    return found


def _string(statement: ast.stmt) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""


def _short_names(command: Command) -> list[str]:
    return [
        "Short names, on the command line and in recipes",
        *(f"  {short:<16} {full}" for short, full in aliases(command.config).items()),
    ]


def _examples(command: Command) -> list[str]:
    name = command.name
    if not command.trains:
        return ["Examples", *(f"  rlhf {name} {words}" for words in command.examples)]
    needs = f"{command.needs} " if command.needs else ""
    return [
        "Examples",
        f"  rlhf {name}",
        f"  rlhf {name} config=tiny/{name} lr=1e-4 output_dir=runs/{name}",
        f"  rlhf {name} model=FOLDER_OR_HUB_ID data=FILE {needs}lr=1e-5",
        f"  rlhf {name} model=tiny data=tiny {needs}train=smoke --cfg",
        f"  rlhf {name} -m lr=1e-3,1e-4 seed=0,1",
    ]
