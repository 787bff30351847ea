"""docs/migration.md shows the replacements that the command line gives."""

import pytest

from rlhf_cli.config.other_trainers import LIBRARIES
from tests import migration
from tests.pages import DOCS

PAGE = (DOCS / "migration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "generate"])
def test_the_page_has_the_keys_of_each_library(library):
    assert migration.table(library) in PAGE, f"see tests/migration.py for {library}"
