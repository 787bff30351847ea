import json
import math

from rlhf_cli.evaluation.intervals import Estimate
from rlhf_cli.evaluation.table import Result, format_table, to_json

NONE = math.nan
RESULTS = [
    Result("sft", "loss", Estimate(1.23456, 1.1, 1.3, 100)),
    Result("sft", "accuracy", Estimate(0.5, 0.40383, 0.59617, 100)),
    Result("sft", "perplexity", Estimate(12345.6, 9000.0, 20000.0, 100)),
    Result("dpo", "loss", Estimate(2.0, NONE, NONE, 1)),
    Result("dpo", "accuracy", Estimate(NONE, NONE, NONE, 0)),
]


def test_runs_stand_side_by_side():
    assert format_table(RESULTS).splitlines() == [
        "            sft                      dpo  n",
        "loss        1.235 [1.100, 1.300]     2    100 / 1",
        "accuracy    0.5000 [0.4038, 0.5962]  -    100 / 0",
        "perplexity  12,346 [9,000, 20,000]   -    100",
    ]


def test_json_has_null_for_what_is_not_there():
    rows = json.loads(json.dumps(to_json(RESULTS), allow_nan=False))
    assert rows[0] == {
        "run": "sft", "metric": "loss", "value": 1.23456, "low": 1.1, "high": 1.3, "n": 100,
    }  # fmt: skip
    assert rows[4]["value"] is None
