from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from rlhf_cli.commands.served.config import served_problems
from rlhf_cli.config.schema import (
    DataPath,
    FunctionPath,
    Ge,
    ModelPath,
    OutputPath,
    RuntimeOnly,
    Seed,
    Unit,
    no_rows,
)
from rlhf_cli.config.sizes import size_problems
from rlhf_cli.data.config import Columns, DataConfig, Format, SourceConfig, SourceList
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import ServerConfig

_ROW_RULES = ("max_length", "truncation", "packing", "train_on")
_FILE_OPTIONS = ("name", "revision", "split", "data_dir", "format", "columns")


@dataclass(kw_only=True)
class HeldOutConfig:
    """Rows that models are evaluated on. Options left at `auto` are those of the run."""

    path: Annotated[str | SourceList, DataPath("revision")] = ""
    """Held-out rows: a file, a folder, a hub id, `tiny`, or a list of these. Empty takes the rows
    that each run held out itself (its `data.eval`)."""

    name: str = ""
    """Configuration of a hub dataset."""

    revision: str = ""
    """Branch, tag or commit of a hub dataset."""

    split: str = ""
    """Split, or slice of rows: `test` (default), `test[:10%]`, `[100:200]`."""

    data_dir: str = ""
    """Folder inside the dataset or a local folder."""

    format: Format = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Column name -> name in the file, or a text with names in braces."""

    max_length: Annotated[int, Ge(2), Unit("tokens")] | Literal["auto"] = "auto"
    """Longest row; for a model that is no run `auto` is 1024, or the model's number of positions
    if that is smaller."""

    truncation: Literal["auto", "prompt_start", "response_end", "refuse"] = "auto"
    """How longer rows are truncated; for a model that is no run `auto` is `prompt_start`."""

    packing: bool | Literal["auto"] = "auto"
    """Several rows in one example; for a model that is no run `auto` is false."""

    train_on: Literal["auto", "response", "all", "last_turn"] = "auto"
    """Which tokens are counted; for a model that is no run `auto` is `response`."""

    max_bad_rows: Annotated[int, Ge(0), Unit("rows")] = 0
    """Malformed rows allowed before the evaluation stops."""

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        if not no_rows(self.path):
            return []
        default = HeldOutConfig()
        return [
            f"data.{name}: given without data.path, whose rows it describes. Try data=FILE"
            for name in _FILE_OPTIONS
            if getattr(self, name) != getattr(default, name)
        ]

    def applied_to(self, own: DataConfig) -> DataConfig:
        """Override a run's data settings; `eval` becomes the rows to evaluate on."""
        given = {name: getattr(self, name) for name in _ROW_RULES if getattr(self, name) != "auto"}
        given["max_bad_rows"] = max(self.max_bad_rows, own.max_bad_rows)
        if not no_rows(self.path):
            listed = [self.path] if isinstance(self.path, str) else self.path
            of_file = {name: getattr(self, name) for name in _FILE_OPTIONS}
            given |= of_file | {
                "eval": [
                    SourceConfig(path=item, **of_file) if isinstance(item, str) else item
                    for item in listed
                ]
            }
        return replace(own, **given)


@dataclass(kw_only=True)
class EvaluateConfig:
    """Evaluate models on held-out rows, or compare their responses by a judge function.

    Prints a table with 95 % intervals. Without data= a run is evaluated on the rows it held out.
    With judge= models respond to prompts and a function scores the responses; with baseline= the
    table also has the win rate against another model.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    data: HeldOutConfig = field(default_factory=HeldOutConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))
    rollout: ServerConfig = field(default_factory=ServerConfig)

    beside: Annotated[list[Annotated[str, ModelPath()]], ModelPath()] = field(default_factory=list)
    """Further models; or as arguments after the first: `rlhf evaluate runs/base runs/sft`."""

    reference: Annotated[str, ModelPath("reference_revision")] = ""
    """Reference model for runs of dpo and bco; empty takes the reference that each run was trained
    against."""

    reference_revision: str = ""
    """Branch, tag or commit of the hub id at `reference`; empty is its default branch."""

    baseline: Annotated[str, ModelPath()] = ""
    """Model whose responses the others are compared with; needs `judge`."""

    judge: Annotated[str, FunctionPath()] = ""
    """Function `FILE.py:NAME` of `prompts` and `responses`, two lists of equal length, that returns
    a score per response; higher is better."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts for the judge, as for `rlhf generate`."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user message in the chat template, as for `rlhf generate`.
    For held-out rows this includes text responses; `auto` does as each run did."""

    output: Annotated[str, OutputPath()] = ""
    """Also write the results to this `.json` file; with a judge, every response and its score."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Responses decoded at once."""

    micro_batch_tokens: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens of held-out rows per forward pass; does not change the result. 0 chooses it."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; `auto` is bf16 if the hardware supports it."""

    device_memory: Annotated[str, RuntimeOnly()] = ""
    """Memory to plan for, as in `24GB`, instead of that of the device found: for a device that is
    not here, or to leave room. Models that need more are refused."""

    device_flops: Annotated[float, Ge(0), RuntimeOnly(), Unit("FLOP/s")] = 0.0
    """Rate at which the device computes, from which `--dry-run` estimates the time, as in 400e12; 0
    measures a CPU, or takes a share of a GPU's datasheet."""

    seed: Seed = 0
    """Seed of the bootstrap for the intervals; responses are sampled with `sampling.seed`."""

    @property
    def models(self) -> list[str]:
        """Paths of all evaluated models, in the order given."""
        return [self.model.path, *self.beside]

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = self.model.missing() + self._repeated() + self._of_one_model()
        found += size_problems("device_memory", self.device_memory)
        return found + (self._judge_problems() if self.judge else self._data_problems())

    @property
    def computes(self) -> bool:
        """Whether a model beside those of the servers is loaded: none."""
        return False

    def _repeated(self) -> list[str]:
        named = [path for _, path in self.named_models]
        twice = [path for i, path in enumerate(named) if path in named[:i]]
        key = "baseline" if twice == [self.baseline] else "beside"
        return [f"{key}: got {path} twice; need each model once" for path in twice]

    def _of_one_model(self) -> list[str]:
        several = self.beside or self.baseline
        return self.model.settings_of_one_model() if several else []

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
        if self.rollout.addresses and (self.beside or self.baseline):
            found.append(
                "rollout.server: given with several models, and a server has one; need one model, "
                "or a server started for each in turn. Try rollout.start=vllm"
            )
        return found + served_problems(self)

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
            f"{name}: given without a judge; need judge. Try judge=FILE.py:FUNCTION"
            for name in ("baseline", "prompts")
            if getattr(self, name)
        ] + [
            f"rollout.{name}: given without a judge; held-out rows are measured by the model in "
            "this process. Try judge=FILE.py:FUNCTION"
            for name in ("server", "start")
            if getattr(self.rollout, name)
        ]
