from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from rlhf_cli.config.schema import (
    DataPath,
    FunctionPath,
    Ge,
    ModelPath,
    OutputPath,
    Seed,
    Unit,
    no_rows,
)
from rlhf_cli.data.config import Columns, DataConfig, Format, Source, Sources
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rollout.config import SamplingConfig

_RULES = ("max_length", "truncation", "packing", "train_on")
_OF_THE_FILE = ("name", "revision", "split", "data_dir", "format", "columns")


@dataclass(kw_only=True)
class HeldOutConfig:
    """Which rows models are measured on. What is left at `auto` is as the run had it."""

    path: Annotated[str | Sources, DataPath("revision")] = ""
    """Held-out rows: a file, a folder, a hub id, `tiny`, or a list of these. Empty takes those that
    each run held out itself (its `data.eval`)."""

    name: str = ""
    """Configuration of a hub data set."""

    revision: str = ""
    """Branch, tag or commit of a hub data set."""

    split: str = ""
    """Split, or slice of rows: `test` (default), `test[:10%]`, `[100:200]`."""

    data_dir: str = ""
    """Folder inside the data set, or inside a local folder."""

    format: Format = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Our column name -> the name in the file, or a text with names in braces."""

    max_length: Annotated[int, Ge(2), Unit("tokens")] | Literal["auto"] = "auto"
    """Longest row; for a model that is no run `auto` is 1024, or the model's positions where these
    are fewer."""

    truncation: Literal["auto", "prompt_start", "response_end", "refuse"] = "auto"
    """What becomes of longer rows; for a model that is no run `auto` is `prompt_start`."""

    packing: bool | Literal["auto"] = "auto"
    """Several rows in one example; for a model that is no run `auto` is false."""

    train_on: Literal["auto", "response", "all", "last_turn"] = "auto"
    """Which tokens count; for a model that is no run `auto` is `response`."""

    max_bad_rows: Annotated[int, Ge(0), Unit("rows")] = 0
    """Malformed rows tolerated before the evaluation stops."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        if not no_rows(self.path):
            return []
        default = HeldOutConfig()
        return [
            f"data.{name}: given without data.path, whose rows it would say something of. "
            "Try data=FILE"
            for name in _OF_THE_FILE
            if getattr(self, name) != getattr(default, name)
        ]

    def applied_to(self, own: DataConfig) -> DataConfig:
        """A run's data settings with what is given here; `eval` are the rows to measure on."""
        given = {name: getattr(self, name) for name in _RULES if getattr(self, name) != "auto"}
        given["max_bad_rows"] = max(self.max_bad_rows, own.max_bad_rows)
        if not no_rows(self.path):
            listed = [self.path] if isinstance(self.path, str) else self.path
            of_file = {name: getattr(self, name) for name in _OF_THE_FILE}
            given |= of_file | {
                "eval": [
                    Source(path=item, **of_file) if isinstance(item, str) else item
                    for item in listed
                ]
            }
        return replace(own, **given)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure models on held-out rows, side by side, or let a judge compare their answers.

    Prints a table with 95 % intervals. Without data= a run is measured on the rows it held out.
    With judge= models answer prompts, and a function scores the answers; with baseline= too, it is
    counted how often they beat those of another model.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    data: HeldOutConfig = field(default_factory=HeldOutConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))

    beside: Annotated[list[Annotated[str, ModelPath()]], ModelPath()] = field(default_factory=list)
    """More models; as words after the first: `rlhf evaluate runs/base runs/sft`."""

    reference: Annotated[str, ModelPath("reference_revision")] = ""
    """What runs of dpo and bco are compared with; empty takes what each of them was compared with
    in training."""

    reference_revision: str = ""
    """Branch, tag or commit of the hub id at `reference`; empty takes its default branch."""

    baseline: Annotated[str, ModelPath()] = ""
    """Model whose answers are to be beaten; needs a judge."""

    judge: Annotated[str, FunctionPath()] = ""
    """Function of `prompts` and `responses`, two lists of one length, that returns a score for each
    response; higher is better."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts to answer, as for `rlhf generate`."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user's message in the chat template; as for
    `rlhf generate`. Of held-out rows it holds for text responses too; `auto` does as each run
    did."""

    output: Annotated[str, OutputPath()] = ""
    """Write the results to this `.json` file too; with a judge also every answer and its score."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Prompts answered at once."""

    micro_batch_tokens: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens of held-out rows that one forward pass holds; no effect on the result. 0 finds it."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; `auto` is bf16 where the hardware has it."""

    seed: Seed = 0
    """Seed of the draws that give the intervals; answers are drawn by `sampling.seed`."""

    @property
    def models(self) -> list[str]:
        """All models that are measured, in the order given."""
        return [self.model.path, *self.beside]

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self.model.missing() + self._repeated() + self._of_one_model()
        return found + (self._judge_problems() if self.judge else self._data_problems())

    def _repeated(self) -> list[str]:
        named = [path for _, path in self.named_models]
        twice = [path for i, path in enumerate(named) if path in named[:i]]
        key = "baseline" if twice == [self.baseline] else "beside"
        return [f"{key}: got {path} twice; need each model once" for path in twice]

    def _of_one_model(self) -> list[str]:
        """Settings that cannot be true of several models."""
        if not self.beside and not self.baseline:
            return []
        default = ModelConfig()
        names = ["revision", "base", "base_revision", "init", "architecture", "tokenizer"]
        names += ["tokenizer_revision", "chat_template"]
        return [
            f"model.{name}: given with several models, each of which has its own; need one model"
            for name in names
            if getattr(self.model, name) != getattr(default, name)
        ]

    def _judge_problems(self) -> list[str]:
        found = []
        if no_rows(self.prompts):
            found.append(
                "prompts: none given; the judge needs answers to prompts. Try prompts=FILE"
            )
        if not no_rows(self.data.path):
            found.append(
                f"data.path: given beside judge={self.judge}, which reads prompts. "
                "Try prompts=FILE, or leave judge out"
            )
        return found

    @property
    def named_models(self) -> list[tuple[str, str]]:
        """Each model, and the key that names it."""
        named = [("model.path", self.model.path), *(("beside", path) for path in self.beside)]
        return [*named, *([("baseline", self.baseline)] if self.baseline else [])]

    def revision_of(self, path: str) -> str:
        """The revision of one of the models; only a single one has one."""
        return self.model.revision if path == self.model.path else ""

    def _data_problems(self) -> list[str]:
        return [
            f"{name}: given without a judge, who would need it. Try judge=FILE.py:FUNCTION"
            for name in ("baseline", "prompts")
            if getattr(self, name)
        ]
