"""What a model's files say before anything is loaded: defaults that depend on it, and problems."""

from importlib.util import find_spec
from os.path import isdir

from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.config import DataConfig
from rlhf_cli.models.config import (
    FLASH_PACKAGES,
    LIGER,
    LIGER_MODULE,
    AdapterConfig,
    ComparedModelConfig,
    LoadConfig,
    ModelConfig,
)
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import model_checks
from rlhf_cli.runs.artifact import find_model_folder, is_adapter, is_reward_model, may_be_adapter
from rlhf_cli.runs.model_checks import (
    check_base_revision,
    check_language_model,
    check_not_encoder_decoder,
    check_not_reward_model,
    check_revision,
)
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.distill.config import ADAPTER_OFF, DistillConfig
from rlhf_cli.stages.ppo.config import PPOConfig


def positions(model: ModelConfig) -> int | None:
    """The longest row that a model takes, where that is known here."""
    config = model_checks.read_base_config(model.path, model.revision, model.base)
    return model_checks.max_positions(config or model.architecture)


def fit_to_model(cfg: StageConfig) -> None:
    """Lower a `data.max_length` that is at its default to the positions of the model."""
    room = positions(cfg.model)
    if room and cfg.data.max_length == DataConfig.max_length:
        cfg.data.max_length = min(cfg.data.max_length, room)


def brings_adapter(cfg: LoadConfig) -> bool:
    """Whether `model.path` is known here to be an adapter."""
    return is_adapter(cfg.model.path, cfg.model.revision)


def trains_adapter(cfg: LoadConfig) -> bool:
    """Whether an adapter is trained and the weights stay as they are."""
    kept = brings_adapter(cfg) and cfg.adapter.start != "merge"
    return cfg.adapter.kind != "none" or kept


def trains_weights(cfg: LoadConfig) -> bool:
    """Whether it is known here that no adapter is trained."""
    may_bring = may_be_adapter(cfg.model.path, cfg.model.revision)
    return cfg.adapter.kind == "none" and not (may_bring and cfg.adapter.start != "merge")


def peak_learning_rate(cfg: StageConfig) -> float:
    """`train.lr`, where `auto` depends on whether an adapter is trained."""
    if cfg.train.lr != "auto":
        return cfg.train.lr
    full, adapter = cfg.default_lr
    return adapter if trains_adapter(cfg) else full


def model_problems(model: ModelConfig) -> list[str]:
    """Problems with the model, its tokenizer and the package of its attention."""
    found = check_revision("model.path", model.path, model.revision)
    found += check_not_encoder_decoder("model.path", model.path, model.revision)
    found += check_base_revision("model", model.path, model.base, model.base_revision)
    found += check_revision("model.tokenizer", model.tokenizer, model.tokenizer_revision)
    module, origin = FLASH_PACKAGES.get(model.attention, ("", ""))
    if module and find_spec(module) is None:
        found.append(
            f"model.attention: got {model.attention}, but {module} is not installed "
            f"({origin}). Try model.attention=auto"
        )
    return found


def reference_problems(model: ComparedModelConfig) -> list[str]:
    """Problems with the model that `model.reference` names."""
    reference = model.reference
    if reference == SHIPPED:
        return []  # refused by the config class
    if reference in model.reference_choices:
        return check_revision("model.reference", "", model.reference_revision)
    meant = nearest(reference, model.reference_choices, 0.7)
    if not isdir(reference) and meant:
        return [
            f"model.reference: got {reference}, which is no folder here; need "
            f"{', '.join(model.reference_choices)} or a model. Try model.reference={meant}"
        ]
    return check_language_model("model.reference", reference, model.reference_revision)


def teacher_problems(cfg: DistillConfig) -> list[str]:
    """Problems with the model that `teacher` names."""
    teacher = cfg.teacher
    if teacher in ("", SHIPPED, ADAPTER_OFF) or cfg.teacher_is_server:
        return []  # refused by the config class, or no model's folder
    meant = nearest(teacher, (ADAPTER_OFF,), 0.7)
    if not isdir(teacher) and meant:
        return [
            f"teacher: got {teacher}, which is no folder here; need {ADAPTER_OFF} or a model. "
            f"Try teacher={meant}"
        ]
    return check_language_model("teacher", teacher, cfg.teacher_revision)


def load_problems(cfg: LoadConfig) -> list[str]:
    """Problems with what is trained of a model, and with the package of its layers."""
    found = []
    if LIGER in cfg.kernels and find_spec(LIGER_MODULE) is None:
        advice = "Try pip install 'rlhf-cli[kernels]'"
        found.append(f"kernels: got liger, but liger-kernel is not installed. {advice}")
    if not cfg.scores:
        found += check_not_reward_model("model.path", cfg.model.path, cfg.model.revision)
    start = cfg.adapter.start
    if start != "continue" and not may_be_adapter(cfg.model.path, cfg.model.revision):
        found.append(
            f"adapter.start: got {start}, but model.path={cfg.model.path} has no adapter. "
            "Try adapter.start=continue"
        )
    elif start == "stack" and cfg.adapter.kind == "none":
        found.append(
            "adapter.start: got stack with adapter.kind=none; need a kind for the new adapter. "
            "Try adapter=lora"
        )
    if cfg.quant.kind in ("nf4", "int8") and trains_weights(cfg):
        found.append(
            f"quant.kind: got {cfg.quant.kind} with full training, and quantized weights have no "
            "gradient; need an adapter. Try adapter=lora"
        )
    if brings_adapter(cfg) and start == "continue":
        return found + model_checks.check_adapter(cfg.model, cfg.adapter, AdapterConfig())
    return found + model_checks.check_layer_names(cfg.model, cfg.adapter)


def ppo_step_problems(cfg: PPOConfig) -> list[str]:
    """Problems with the models of a PPO update: reference and value model."""
    found = reference_problems(cfg.model)
    if cfg.value == "adapter" and cfg.has_value_model and trains_weights(cfg):
        found.append(
            "value: got adapter with adapter.kind=none; need an adapter on the policy for a "
            "second one to stand beside. Try value=shared, or adapter=lora"
        )
    model, revision = cfg.value_model, cfg.value_model_revision
    found += check_revision("value_model", model, revision)
    found += check_not_encoder_decoder("value_model", model, revision)
    if find_model_folder(model, revision) and not is_reward_model(model, revision):
        found.append(f"value_model: got {model}, which gives no scores; need a reward model")
    return found
