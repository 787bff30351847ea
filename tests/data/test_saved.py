"""Folders that `save_to_disk` wrote."""

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.sources.mixture import open_held_out_data, open_sources, open_training_data
from rlhf_cli.errors import DataError
from tests.data.toy import write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore")  # those of datasets are its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`alone`: ten rows. `splits`: these as `train`, and `validation` and `other` of two rows."""
    import datasets

    datasets.disable_progress_bars()
    where = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_dict({"text": [f"train {i}" for i in range(10)]})
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} 0", f"{name} 1"]})
        for name in ("validation", "other")
    }
    rows.save_to_disk(where / "alone")
    datasets.DatasetDict(train=rows, **parts).save_to_disk(where / "splits")
    return where


def texts(path, side="train", **settings):
    cfg = DataConfig(path=str(path), **settings)
    [source] = open_sources(cfg, cfg.path, "pretrain", side)
    return [row.parsed["text"] for row in source.rows()], source


def test_one_data_set_and_several_splits(folder):
    alone, source = texts(folder / "alone")
    assert alone == [f"train {i}" for i in range(10)]
    assert [row.location for row in source.rows()][1] == "alone:2"
    found, source = texts(folder / "splits")
    assert (found, source.names) == (alone, ("splits/train",))
    assert texts(folder / "splits" / "train")[0] == alone
    assert texts(folder, data_dir="splits")[0] == alone


def test_splits_and_slices(folder):
    assert texts(folder / "splits", split="other")[0] == ["other 0", "other 1"]
    assert texts(folder / "splits", split="other[1:]")[0] == ["other 1"]
    found, source = texts(folder / "alone", split="[80%:]")
    assert found == ["train 8", "train 9"]
    assert [row.line for row in source.rows()] == [9, 10]
    contents = {
        texts(folder / "alone", split=split)[1].fingerprint for split in ("", "[1:]", "[2:]")
    }
    assert len(contents) == 3


def test_held_out_rows(folder):
    cfg = DataConfig(path=str(folder / "splits"), eval=str(folder / "splits"))
    held_out = [row.parsed["text"] for row in open_held_out_data(cfg, "pretrain").rows()]
    assert held_out == ["validation 0", "validation 1"]
    share = DataConfig(path=str(folder / "alone"), eval=0.2)
    sides = open_training_data(share, "pretrain", 0), open_held_out_data(share, "pretrain")
    assert [len(list(side.rows())) for side in sides] == [8, 2]


def test_several_sources(folder):
    cfg = DataConfig(path=[str(folder / "alone"), str(folder / "splits")])
    assert len(list(open_training_data(cfg, "pretrain", 0).rows())) == 20


def test_prompts_of_a_saved_set(folder, tmp_path):
    import datasets

    datasets.Dataset.from_dict({"prompt": ["p", "q"]}).save_to_disk(tmp_path / "prompts")
    assert load_prompts(str(tmp_path / "prompts")).prompts == ["p", "q"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("splits", {"split": "dev"}, "splits: no split dev; save_to_disk wrote other, train, val"),
        ("alone", {"split": "dev"}, "alone holds one data set and has no split dev; slice its"),
        ("alone", {"name": "main"}, "data.name: got main, but "),
    ],
)
def test_what_the_folder_does_not_have_is_one_line(folder, name, settings, message):
    with pytest.raises(DataError) as error:
        texts(folder / name, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_arrow_file_names_its_folder(folder):
    [file] = (folder / "alone").glob("*.arrow")
    with pytest.raises(
        DataError, match=r"arrow: an arrow file; need the folder .* Try data=.*alone"
    ):
        texts(file)


def test_a_damaged_folder_is_one_line(tmp_path):
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="datasets cannot load what save_to_disk wrote"):
        texts(tmp_path)


def test_metadata_beside_rows_is_no_row(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", {"text": "a"})
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    found, source = texts(tmp_path)
    assert (found, source.skipped) == (["a"], ("dataset_infos.json",))
