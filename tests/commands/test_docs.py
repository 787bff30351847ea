"""`rlhf docs`: the pages, one page, and what is no page."""

import pytest

from rlhf_cli import cli, resources


def test_every_page_is_listed_with_its_title(capsys):
    assert cli.main(["docs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == resources.page_names()
    assert "LoRA and quantization" in [line.partition("  ")[2].strip() for line in lines]


@pytest.mark.parametrize("name", ["data", "data.md", "docs/data.md"])
def test_a_page_by_its_name_or_its_file(name, capsys):
    assert cli.main(["docs", name]) == 0
    assert capsys.readouterr().out == (resources.shipped_folder("docs") / "data.md").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dta"], "docs: dta is no page of the documentation. Try rlhf docs data"),
        (["xyzzy"], "docs: xyzzy is no page of the documentation. See rlhf docs"),
        (["data", "ppo"], "docs: got data ppo; need one name. Try rlhf docs data"),
    ],
)
def test_what_is_no_page_is_one_line(words, line, capsys):
    assert cli.main(["docs", *words]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
