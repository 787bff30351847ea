"""Did you mean: the nearest thing a user can have meant by a key, a choice or a path."""

import difflib

from rlhf_cli.config.nearest import nearest
from rlhf_cli.config.renamed import renamed
from rlhf_cli.config.schema import Knob, aliases, groups, knobs
from rlhf_cli.stages.registry import COMMANDS, Command

# Other trainers' names for the same thing.
_ELSEWHERE = {
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "model_name_or_path": "model.path",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "max_seq_length": "data.max_length",
    "data": "prompts",
    "data.path": "prompts",
}


def unknown_key(command: Command, key: str, example: str) -> str:
    """The line for a key that a command does not have and that was set to `example`."""
    old = renamed(key)
    if old:
        new, version = old
        if _has(command, new):
            return f"{key}: renamed to {new} in {version}. Try {new}={example or 'VALUE'}"
        key = new
    short = aliases(command.config)
    if key in short:
        return f"{key}: a short name of the command line; in a recipe write {short[key]}"
    meant = _meant(command, key)
    advice = f" Try {meant}={example or 'VALUE'}" if meant else f" See rlhf {command.name} --help"
    others = [other.name for other in COMMANDS.values() if key in _names(other)]
    if others:
        return f"{key}: a key of {', '.join(others)}, not of {command.name}.{advice}"
    guess = f"; did you mean {meant}?" if meant else "."
    return f"{key}: no such key in {command.name}{guess}{advice}"


def _names(command: Command) -> set[str]:
    return {*knobs(command.config), *groups(command.config)}


def _has(command: Command, key: str) -> bool:
    """Whether a key, or the mapping that it stands in, is one of the command's."""
    while key and key not in _names(command):
        key = key.rpartition(".")[0]
    return bool(key)


def _meant(command: Command, key: str) -> str:
    """The valid key that is most like a wrong one, by its full name or by its last part."""
    known = knobs(command.config)
    if _ELSEWHERE.get(key) in known:
        return _ELSEWHERE[key]
    words = {**dict(zip(known, known, strict=True)), **aliases(command.config)}
    words |= {
        group: f"{group}.path" for group in groups(command.config) if f"{group}.path" in known
    }
    last = key.rpartition(".")[2]
    same = [knob.key for knob in known.values() if knob.name == last]
    return nearest(key, same, 0) if same else _most_alike(key, last, words, known)


def _most_alike(key: str, last: str, words: dict[str, str], known: dict[str, Knob]) -> str:
    def likeness(word: str) -> float:
        whole = difflib.SequenceMatcher(None, key, word).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, word.rpartition(".")[2]).ratio())

    best = max(words, key=likeness)
    return words[best] if likeness(best) >= 0.6 and words[best] in known else ""
