from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import DataPath, Ge, ModelPath, OutputPath, Unit, no_rows
from rlhf_cli.data.config import Columns, Format, SourceList
from rlhf_cli.rewards.config import RewardsConfig


@dataclass(kw_only=True)
class ScoredDataConfig:
    """Rows whose responses are scored."""

    path: Annotated[str | SourceList, DataPath("revision")] = ""
    """Rows: a file, a folder, a hub id, `tiny`, or a list of these. Each row has a prompt with a
    `completion` or `response`, chat messages, a preference pair, or a list of `responses`."""

    name: str = ""
    """Configuration of a hub dataset."""

    revision: str = ""
    """Branch, tag or commit of a hub dataset."""

    split: str = ""
    """Split, or slice of rows: `train` (default), `test[:10%]`, `[100:200]`."""

    data_dir: str = ""
    """Folder inside the dataset or a local folder."""

    format: Format = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Column name -> name in the file, or a text with names in braces."""

    max_bad_rows: Annotated[int, Ge(0), Unit("rows")] = 0
    """Malformed rows allowed; they are not written."""


@dataclass(kw_only=True)
class ScoreConfig:
    """Score the responses of rows, and write the rows with their scores.

    The scores are those that `rlhf ppo` and `rlhf generate` compute with the same `reward.*` keys.
    A summary is printed on stderr: mean, deviation and quantiles, and the accuracy on pairs.
    """

    reward: RewardsConfig = field(default_factory=RewardsConfig)
    data: ScoredDataConfig = field(default_factory=ScoredDataConfig)

    output: Annotated[str, OutputPath()] = ""
    """File (`.jsonl`) for the rows; empty prints them. All columns are kept."""

    column: str = "score"
    """Name of the new column. A pair gets `score_chosen`, `score_rejected` and `score_margin`, a
    list of responses `scores`; each of several reward terms gets a column that ends in its name."""

    replace: bool = False
    """Replace columns that the rows have under these names; false refuses such rows."""

    tokenizer: Annotated[str, ModelPath()] = ""
    """Model or run whose tokens `reward.length_penalty` counts; empty takes those of the reward
    model."""

    micro_batch_tokens: Annotated[int, Ge(1), Unit("tokens")] = 4096
    """Tokens per forward pass of a reward model; does not change the scores."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; `auto` is bf16 if the hardware supports it."""

    @property
    def tokenizer_model(self) -> str:
        """Path of the model whose tokens are counted; empty if tokens are not counted."""
        terms = self.reward.all_terms
        if not any(term.length_penalty for term in terms):
            return ""
        return self.tokenizer or next((term.model for term in terms if term.model), "")

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = self.reward.missing()
        if no_rows(self.data.path):
            found.append("data.path: none given; need rows to score. Try data=FILE")
        if not self.column.strip():
            found.append("column: got no name; need one. Try column=score")
        return found + self._reward_problems() + self._tokenizer_problems()

    def _reward_problems(self) -> list[str]:
        found = []
        if self.reward.scale == "running":
            found.append(
                "reward.scale: got running, by which later scores are on another scale than "
                "earlier ones; all of them are written to one file. Try reward.scale=none"
            )
        if self.reward.skip_special_tokens:
            found.append(
                "reward.skip_special_tokens: given, and the responses of rows are text already; "
                "need it left out"
            )
        return found

    def _tokenizer_problems(self) -> list[str]:
        counts = any(term.length_penalty for term in self.reward.all_terms)
        if counts and not self.tokenizer_model:
            return [
                "tokenizer: none given; reward.length_penalty counts tokens, and no reward.model "
                "says of which tokenizer. Try tokenizer=FOLDER_OR_HUB_ID"
            ]
        if self.tokenizer and not counts:
            return ["tokenizer: given without reward.length_penalty, which alone reads it"]
        return []
