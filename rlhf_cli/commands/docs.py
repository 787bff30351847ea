"""The documentation that comes with the package: list its pages, print one."""

from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import pages, shipped


def run(words: list[str]) -> None:
    """Do what `rlhf docs WORDS` says.

    Raises:
        ConfigError: There is no such page, or there is more than one word.
    """
    if len(words) > 1:
        advice = f"Try rlhf docs {words[0]}"
        raise ConfigError(f"docs: got {' '.join(words)}; need one name. {advice}")
    print(_page(words[0]) if words else _list(), flush=True)


def _list() -> str:
    """A line for each page: its name and its title."""
    width = max(map(len, pages())) + 2
    return "\n".join(f"{name:<{width}}{_title(name)}" for name in pages())


def _title(name: str) -> str:
    return _text(name).partition("\n")[0].removeprefix("# ")


def _page(word: str) -> str:
    name = word.rpartition("/")[2].removesuffix(".md")
    if name not in pages():
        close = nearest(name, pages(), 0.5)
        advice = f"Try rlhf docs {close}" if close else "See rlhf docs"
        raise ConfigError(f"docs: {word} is no page of the documentation. {advice}")
    return _text(name).rstrip("\n")


def _text(name: str) -> str:
    return (shipped("docs") / f"{name}.md").read_text(encoding="utf-8")
