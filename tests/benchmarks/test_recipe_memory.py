"""The memory in the headers of the recipes is that of the memory model."""

import re
from pathlib import Path

import pytest

from benchmarks.recipe_memory import RECIPES, estimate_recipe, write_shapes
from tests.pages import RECIPES as FOLDER


@pytest.mark.slow
def test_headers_say_what_the_dry_run_estimates(tmp_path: Path) -> None:
    write_shapes(tmp_path)
    for recipe in RECIPES:
        text = (FOLDER / f"{recipe.name}.yaml").read_text(encoding="utf-8")
        lines = [line[1:] for line in text.splitlines() if line.startswith("#")]
        header = " ".join(" ".join(lines).split())
        if "estimated by the dry run" not in header:
            assert re.search(r"[Mm]emory: as \w+\.yaml", header), recipe.name
            continue
        said = [int(number) for number in re.findall(r"(\d+) GB", header)]
        found = estimate_recipe(recipe, tmp_path).peak[1] / 1e9
        # 15 % is the accuracy that the memory model claims
        assert any(abs(number - found) <= 0.15 * found for number in said), (recipe.name, found)
