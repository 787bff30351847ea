"""Data sets that `datasets` reads: from local folders laid out like those of the hub."""

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.config import SourceConfig as NamedSource
from rlhf_cli.data.sources.mixture import open_sources
from rlhf_cli.errors import DataError
from rlhf_cli.runs import hub as commits
from tests.data.toy import write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore")  # those of datasets are its own


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch):
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


@pytest.fixture
def hub(tmp_path):
    """Two configurations, the first with two splits."""
    folder = tmp_path / "set"
    for name, count in (("train", 10), ("test", 2)):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = ({"text": f"{name} {i}"} for i in range(count))
        write_jsonl(folder / "data" / f"{name}.jsonl", *rows)
    (folder / "rl").mkdir()
    write_jsonl(folder / "rl" / "rows.jsonl", {"text": "rl"})
    (folder / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n"
        "  - split: train\n    path: data/train.jsonl\n  - split: test\n    path: data/test.jsonl\n"
        "- config_name: rl\n  data_files: rl/rows.jsonl\n---\n# About\n"
    )
    return str(folder)


def texts(path, side="train", **settings):
    cfg = DataConfig(path=path, **settings)
    [source] = open_sources(cfg, cfg.path, "pretrain", side)
    return [row.parsed["text"] for row in source.rows()], source


def test_a_folder_whose_card_lists_configurations(hub):
    found, source = texts(hub)
    assert found == [f"train {i}" for i in range(10)]
    assert source.names == (f"{hub}[train]",)
    assert [row.location for row in source.rows()][1] == f"{hub}[train]:2"


def test_held_out_rows_are_the_test_split(hub):
    assert texts(hub, "test")[0] == ["test 0", "test 1"]


def test_split_slice_and_configuration(hub):
    assert texts(hub, split="test")[0] == ["test 0", "test 1"]
    assert texts(hub, split="train[:20%]")[0] == ["train 0", "train 1"]
    assert texts(hub, split="[8:]")[0] == ["train 8", "train 9"]
    assert texts(hub, name="rl")[0] == ["rl"]


def test_rows_in_folders_below_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-00000-of-00001.jsonl", {"text": "a"})
    write_jsonl(tmp_path / "data" / "test-00000-of-00001.jsonl", {"text": "b"})
    assert texts(str(tmp_path))[0] == ["a"]


def test_data_dir_chooses_a_folder_inside(hub):
    found, source = texts(hub, data_dir="rl")
    assert (found, source.names) == (["rl"], ("rows.jsonl",))
    with pytest.raises(DataError, match=r"set/none: no such file or folder"):
        texts(hub, data_dir="none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, 'data.split=dev): Unknown split "dev". Should be one of'),
        ({"name": "zz"}, "data.name=zz, data.split=train): BuilderConfig 'zz' not found"),
    ],
)
def test_what_the_set_does_not_have_is_one_line(hub, settings, message):
    with pytest.raises(DataError) as error:
        texts(hub, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_that_cannot_be_reached_is_one_line():
    with pytest.raises(DataError) as error:
        texts("nobody/nothing-here")
    assert str(error.value).startswith("nobody/nothing-here: no such file or folder here, and the ")
    assert "HF_HUB_OFFLINE" in str(error.value)
    assert "\n" not in str(error.value)


FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def on_hub(monkeypatch):
    """Stands for the hub and `datasets`: gives the revisions that were asked for."""
    import datasets

    asked = []

    class Api:
        def dataset_info(self, hub_id, revision=None):
            return type("Info", (), {"sha": FIRST if revision == "v1" else SECOND})

    def load(path, name=None, *, revision=None, **options):
        asked.append((path, revision))
        found = datasets.Dataset.from_dict({"text": [f"{path} {revision}"]})
        found.info.download_checksums = {f"hf://datasets/{path}@{load.has or revision}/a.json": {}}
        return found

    load.has = ""
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    commits.set_commits({})
    yield asked, load
    commits.set_commits({})


def test_rows_of_the_hub_come_from_one_commit_which_is_noted(on_hub):
    asked, _ = on_hub
    sources = ["org/set", NamedSource(path="org/set", revision="v1")]
    cfg = DataConfig(path=sources)
    open_sources(cfg, cfg.path, "pretrain", "train")
    assert asked == [("org/set", SECOND), ("org/set", FIRST)]
    assert commits.commits() == {
        "datasets/org/set@main": SECOND,
        "datasets/org/set@v1": FIRST,
    }
    cfg = DataConfig(path="org/set", revision="v1", eval="org/other")
    open_sources(cfg, cfg.eval, "pretrain", "test")
    assert asked[-1] == ("org/other", FIRST)


def test_a_run_that_goes_on_reads_the_rows_it_began_with(on_hub):
    asked, _ = on_hub
    commits.set_commits({"datasets/org/set@main": FIRST})
    texts("org/set")
    assert asked == [("org/set", FIRST)]


def test_rows_of_another_commit_than_the_one_asked_for_are_refused(on_hub):
    _, load = on_hub
    load.has = SECOND  # as offline, where `datasets` takes what it has
    advice = rf"need the rows of commit {FIRST}, .* data\.revision={SECOND}$"
    with pytest.raises(DataError, match=advice):
        texts("org/set", revision="v1")


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch):
    """Its library would try five times, for 40 seconds; the cache is read at once instead."""
    import datasets

    seen = []

    def load(*words, **options):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("nothing there")

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr("rlhf_cli.runs.hub.resolve_dataset", lambda *words: "")
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="the hub cannot be reached"):
        open_sources(DataConfig(path="nobody/rows"), "nobody/rows", "sft", "train")
    assert (seen, datasets.config.HF_HUB_OFFLINE) == ([True], before)
