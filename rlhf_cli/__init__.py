"""rlhf: train a language model from human feedback, from the command line or from Python.

The names in `__all__` are the Python interface (`rlhf docs python_api`). The module of a name, and
with it torch, is imported when the name is first read.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "LoadConfig",
    "LoadInputs",
    "ModelConfig",
    "PPOConfig",
    "PPOModelConfig",
    "PPOTrainer",
    "Response",
    "SamplingConfig",
    "TokenBatch",
    "TrainConfig",
    "create_context",
    "generate",
    "load_policy",
    "load_tokenizer",
    "read_head",
    "token_logprobs",
]

if TYPE_CHECKING:
    from rlhf_cli.context import create_context
    from rlhf_cli.data.batches import TokenBatch
    from rlhf_cli.logprobs import token_logprobs
    from rlhf_cli.models.config import LoadConfig, ModelConfig
    from rlhf_cli.models.load import LoadInputs, load_policy
    from rlhf_cli.models.tokenizer import load_tokenizer
    from rlhf_cli.models.wrapper import read_head
    from rlhf_cli.rollout.config import SamplingConfig
    from rlhf_cli.rollout.engine import generate
    from rlhf_cli.rollout.response import Response
    from rlhf_cli.stages.ppo.config import PPOConfig, PPOModelConfig
    from rlhf_cli.stages.ppo.trainer import PPOTrainer
    from rlhf_cli.train.config import TrainConfig
else:  # hidden from type checkers, which would accept any name of a module with `__getattr__`
    _MODULES = {
        "context": ["create_context"],
        "data.batches": ["TokenBatch"],
        "logprobs": ["token_logprobs"],
        "models.config": ["LoadConfig", "ModelConfig"],
        "models.load": ["LoadInputs", "load_policy"],
        "models.tokenizer": ["load_tokenizer"],
        "models.wrapper": ["read_head"],
        "rollout.config": ["SamplingConfig"],
        "rollout.engine": ["generate"],
        "rollout.response": ["Response"],
        "stages.ppo.config": ["PPOConfig", "PPOModelConfig"],
        "stages.ppo.trainer": ["PPOTrainer"],
        "train.config": ["TrainConfig"],
    }
    _MODULE_OF = {name: f"{__name__}.{module}" for module, own in _MODULES.items() for name in own}

    def __getattr__(name):
        """Import a public name from its module (PEP 562)."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return found

    def __dir__():
        """List the public names too, which may not be imported yet."""
        return sorted({*globals(), *__all__})
