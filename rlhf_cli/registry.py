"""All commands of `rlhf` that take keys, and how runs of each stage are evaluated."""

from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.config import GenerateConfig, MergeConfig
from rlhf_cli.commands.doctor.config import DoctorConfig
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.label.config import LabelConfig
from rlhf_cli.commands.score.config import ScoreConfig
from rlhf_cli.config.command import Command
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.grpo.config import GRPOConfig
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.pretrain.config import PretrainConfig
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.stages.sft.config import SFTConfig

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "pretrain",
            PretrainConfig,
            "rlhf_cli.stages.pretrain.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "sft",
            SFTConfig,
            "rlhf_cli.stages.sft.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "reward",
            RewardConfig,
            "rlhf_cli.stages.reward.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "dpo",
            DPOConfig,
            "rlhf_cli.stages.dpo.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:dpo",
        ),
        Command(
            "ppo",
            PPOConfig,
            "rlhf_cli.stages.ppo.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:ppo",
            needs="reward.function=tiny/judge.py:score",
        ),
        Command(
            "grpo",
            GRPOConfig,
            "rlhf_cli.stages.ppo.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:ppo",
            needs="reward.function=tiny/judge.py:score",
        ),
        Command(
            "bco",
            BCOConfig,
            "rlhf_cli.stages.bco.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:bco",
        ),
        Command(
            "distill",
            DistillConfig,
            "rlhf_cli.stages.distill.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:distill",
            needs="teacher=runs/sft",
        ),
        Command(
            "generate",
            GenerateConfig,
            "rlhf_cli.commands.generate:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:generate",
            positional="model",
            examples=(
                'runs/sft prompt="Hello, you"',
                "model=tiny prompt=Hello max_new_tokens=8 --cfg",
            ),
        ),
        Command(
            "chat",
            ChatConfig,
            "rlhf_cli.commands.chat.run:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:chat",
            positional="model",
            more="beside",
            examples=(
                "runs/sft",
                "runs/sft runs/dpo blind=true output=feedback.jsonl",
            ),
        ),
        Command(
            "label",
            LabelConfig,
            "rlhf_cli.commands.label.run:run",
            trains=False,
            positional="file",
            examples=("pairs.jsonl", "answers.jsonl rater=ann output=ann.jsonl"),
        ),
        Command(
            "merge",
            MergeConfig,
            "rlhf_cli.commands.merge:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:merge",
            positional="model",
            examples=("runs/sft output_dir=runs/merged",),
        ),
        Command(
            "score",
            ScoreConfig,
            "rlhf_cli.commands.score.run:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:score",
            positional="reward.model",
            examples=(
                "runs/reward data=rows.jsonl output=scored.jsonl",
                "reward.function=tiny/judge.py:score data=tiny",
            ),
        ),
        Command(
            "evaluate",
            EvaluateConfig,
            "rlhf_cli.commands.evaluate.run:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:evaluate",
            positional="model",
            more="beside",
            examples=(
                "runs/sft",
                "runs/base runs/sft data=held_out.jsonl output=results.json",
                "runs/dpo baseline=runs/sft judge=judge.py:score prompts=prompts.jsonl",
                "runs/dpo baseline=runs/sft judge=tiny/judge.py:score prompts=tiny",
            ),
        ),
        Command(
            "doctor",
            DoctorConfig,
            "rlhf_cli.commands.doctor.run:run",
            trains=False,
            positional="run",
            more="beside",
            examples=(
                "runs/ppo",
                "runs/a runs/b --json",
                "reward=runs/reward policy=runs/sft prompts=prompts.jsonl",
            ),
        ),
    )
}

EVALUATORS = {
    "pretrain": "rlhf_cli.stages.likelihood:open_likelihood_evaluation",
    "sft": "rlhf_cli.stages.likelihood:open_likelihood_evaluation",
    "reward": "rlhf_cli.stages.reward.run:open_evaluation",
    "dpo": "rlhf_cli.stages.dpo.run:open_evaluation",
    "ppo": "rlhf_cli.stages.rollouts.evaluate:open_evaluation",
    "grpo": "rlhf_cli.stages.rollouts.evaluate:open_evaluation",
    "bco": "rlhf_cli.stages.bco.run:open_evaluation",
    "distill": "rlhf_cli.stages.distill.evaluate_result:open_evaluation",
}
"""Stage -> `module:function`, which opens the rows that a run of the stage is measured on.

Called with the run's configuration, whose `model.path` is its result and whose `data.eval` are the
rows, and the stage's name; returns a `stages.evaluation.Evaluation`, which is called with the
context to load the model and measure it.
"""
