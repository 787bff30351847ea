import json
import random
import re
import time
from html.parser import HTMLParser

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.report.page import run_page
from rlhf_cli.report.write import write_at_end, write_report
from rlhf_cli.runs.record import read_record

VOID = {"meta", "br", "img", "link", "input"}


class _Checker(HTMLParser):
    """Collects tags, attributes that could load or run something, and open elements."""

    def __init__(self):
        super().__init__()
        self.tags, self.risky, self.open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.risky += [(tag, k, v) for k, v in attrs if k.startswith("on") or k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    """The page, once it is known to be whole, and to load and run nothing."""
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "iframe", "object", "link", "img"} & checker.tags
    assert all(value.startswith("#") for _, _, value in checker.risky)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)
    return page


def page_of(folder):
    return checked(run_page(read_record(folder)))


def test_a_page_shows_what_the_folder_says(a_run):
    run = a_run(
        steps=12,
        seconds=90.0,
        before={"loss": 0.7},
        after={"loss": 0.4},
        intervals={"after": {"loss": [0.35, 0.45]}},
        data={"rows": 10, "kept": 8, "refused": {"no prompt": {"rows": 2, "example": "a.jsonl:3"}}},
        origins={"beta": "dpo.yaml:7", "train.lr": "command line"},
    )
    page = page_of(run)
    for words in ("Before", "0.400", "0.350 to 0.450", "refused: no prompt", "a.jsonl:3"):
        assert words in page
    for words in ("dpo.yaml:7", "command line", "1 min 30 s", "Gradient norm", "prefers-color-sch"):
        assert words in page
    assert page.index('id="diagnosis"') < page.index('id="evaluation"') < page.index("<svg")


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31mred\x07 \ud800 \"'&"


def test_text_of_files_cannot_become_markup(a_run):
    samples = [
        {"step": k, "prompt": EVIL, "response": f"{EVIL}{k}", "score": float(k), "tokens": k + 3}
        for k in range(12)
    ]
    run = a_run(
        f"run <b>{'x' * 20}",
        lines=[{"step": k, EVIL: float(k), "loss": 1.0 / (k + 1)} for k in range(5)],
        config=f"stage: ppo\nmodel:\n  path: {json.dumps(EVIL)}\n",
        samples=samples,
        fixed=samples,
        error=EVIL,
        status="failed",
        argv=["ppo", EVIL],
        data={"files": [EVIL], "refused": {EVIL: {"rows": 1, "example": EVIL}}},
        origins={"model.path": EVIL},
    )
    page = page_of(run)
    assert "&lt;script&gt;alert(1)" in page
    assert "\\x1b[31m" in page
    assert "\\ud800" in page


def test_samples_of_broken_utf_8(a_run):
    run = a_run()
    (run / "samples.jsonl").write_bytes(b'{"step": 1, "prompt": "\xff\xfe", "response": "\xc3"}\n')
    assert "�" in page_of(run)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "loss": 0.5}],
        [{"step": 0, "eval/loss": 0.5}],
        [{"step": k, "loss": 0.5} for k in range(20)],
        [{"step": k, "loss": float("nan"), "lr": float("inf")} for k in range(20)],
        [{"step": k, "loss": [1.0, float("nan"), -float("inf")][k % 3]} for k in range(20)],
        [{"step": k, "loss": (-1) ** k * 1e308} for k in range(20)],
        [{"step": 5, "loss": float(k)} for k in range(20)],
        [{"step": k, "loss": 10**400 if k == 3 else k} for k in range(20)],
        [{"step": k, "loss": 1e9 + 1e-3 * k} for k in range(20)],
        [{"step": k, "anything/else": k**0.5, "eval/anything/else": k} for k in range(20)],
    ],
)
def test_odd_metrics(a_run, lines):
    page = page_of(a_run(lines=lines))
    assert "nan" not in re.sub(r"<title>.*?</title>", "", page).lower().replace("nano", "")


def test_values_that_are_not_finite_are_told(a_run):
    lines = [{"step": k, "loss": float("nan") if k == 7 else 1.0 / k} for k in range(1, 20)]
    page = page_of(a_run(lines=lines))
    assert "1 value is not finite, the first at step 7" in page
    assert 'class="lost"' in page


def test_sudden_losses_have_their_rows(a_run):
    run = a_run()
    line = {"step": 7, "loss": 9.5, "before": 1.5, "rows": ["a.jsonl:3", "<b>"], "losses": [9, 8]}
    (run / "spikes.jsonl").write_text(json.dumps(line) + '\n{"step": "x"}\n')
    page = page_of(run)
    assert "a.jsonl:3, &lt;b&gt;" in page
    assert "Sudden losses" in page


def test_what_ended_a_run_is_told_once(a_run):
    page = page_of(a_run(status="failed", error="NonFinite: step 3: the loss is not finite"))
    assert "the loss is not finite" in page
    assert "What ended the run" not in page


def test_a_metrics_file_with_half_a_line_and_with_garbage(a_run):
    run = a_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('not json\n{"step": 13, "lo')
    page = page_of(run)
    assert "1 line skipped" in page
    assert "Gradient norm" in page


def test_a_folder_with_metrics_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    assert "Loss" in page_of(tmp_path)


def test_a_folder_without_metrics(a_run):
    run = a_run(lines=[])
    (run / "metrics.jsonl").unlink()
    assert "No metrics were written." in page_of(run)


def test_a_run_of_transformers(tmp_path):
    state = {
        "global_step": 20,
        "max_steps": 20,
        "log_history": [
            {"step": k, "loss": 1.0 / k, "learning_rate": 1e-5, "rewards/chosen": 0.1 * k}
            for k in range(1, 21)
        ],
    }
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    page = page_of(tmp_path)
    assert "Implicit reward" in page
    assert "complete" in page


def test_prompts_through_time_stand_beside_each_other(a_run):
    fixed = [
        {"step": step, "prompt": f"prompt {p}", "response": f"answer {p} at {step}", "tokens": 3}
        for step in range(0, 60, 10)
        for p in range(2)
    ]
    page = page_of(a_run(fixed=fixed))
    places = [page.index(f"answer 1 at {step}") for step in (0, 20, 30, 50)]
    assert places == sorted(places)
    assert "answer 1 at 10" not in page


def test_best_and_worst_by_reward_and_the_scatter(a_run):
    samples = [
        {"step": k, "prompt": "p", "response": f"r{k}", "score": float(k), "tokens": 2 * k}
        for k in range(20)
    ]
    page = page_of(a_run(samples=samples))
    best = page[page.index('id="extremes"') :]
    assert best.index("r19") < best.index("r18") < best.index(">r0<") < best.index(">r1<")
    assert page.count('class="point') == 20
    assert "correlation" in page


def test_a_long_run_is_small_and_fast(a_run):
    noise = random.Random(0)
    lines = [
        {"step": k, "loss": 1.0 / (1 + k / 1000) + noise.gauss(0, 0.1), "grad_norm": noise.random()}
        for k in range(20_000)
    ]
    run = a_run(lines=lines)
    began = time.process_time()
    write_report([run], run / "report.html")
    assert time.process_time() - began < 3  # a tenth of 200k lines; 0.3 s on an idle core
    assert (run / "report.html").stat().st_size < 100_000


def test_at_the_end_of_a_run_nothing_can_fail(tmp_path, a_run, capsys):
    run = a_run()
    (run / "report.html").mkdir()
    write_at_end(run)
    assert "report.html: not written" in capsys.readouterr().err
    write_at_end(tmp_path / "none")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError):
        write_report([tmp_path / "none"], tmp_path / "report.html")
