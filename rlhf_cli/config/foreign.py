"""Other trainers' names for our keys.

Each entry is what to type here for `name=VALUE` there: settings with `{}` for the value as it was
given, or a mapping from a value to settings, and a sentence where the meaning differs. Further
placeholders:

    {list}    the value as a list, `a,b` as `[a,b]`
    {global}  examples of an optimizer step: those of one device, times accumulation
    {steps}   that share of `max_steps`

No settings mean that there is nothing of the kind here; the sentence says what is.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """What another trainer's key is called here.

    Attributes:
        settings: as above.
        note: one sentence where the meaning differs.
    """

    settings: str | dict[str, str]
    note: str = ""

    @property
    def keys(self) -> list[str]:
        """The keys of ours that it stands for; of a mapping, those of its first value."""
        found = self.settings
        first = found if isinstance(found, str) else next(iter(found.values()))
        return re.findall(r"(?:^| )([\w.]+)=", first)


_GLOBAL = (
    "It counts the examples of an optimizer step over all devices and accumulated micro-batches."
)
_STEPS = "It counts optimizer steps, not a share of the run."
_MEMORY = "How a step is cut to fit memory changes no result and is found by itself."
_CUT = "Prompt and response share data.max_length, and data.truncation says what is cut."
_SHARDED = "Sharding over devices is not supported; each process holds the whole model."
_PATHS = "It takes files, folders and hub ids, or a list of {path: FILE, weight: 2}."
_HELD_OUT = "data.eval says which rows are held out, train.eval_steps how often they are measured."
_MOVING = "A reference that moves is set by sync_steps and sync_share."
_PRECISION = {"true": "train.precision=bf16", "false": "train.precision=fp32"}
_SCHEDULES = {
    "cosine": "train.schedule=cosine",
    "linear": "train.schedule=linear",
    "constant": "train.schedule=constant",
    "constant_with_warmup": "train.schedule=constant",
    "cosine_with_min_lr": "train.schedule=cosine train.min_lr_ratio=0.1",
    "warmup_stable_decay": "train.schedule=wsd",
}
_OPTIMIZERS = {
    "adamw_torch": "train.optimizer=adamw",
    "adamw_torch_fused": "train.optimizer=adamw",
    "adamw_hf": "train.optimizer=adamw",
    "adamw_8bit": "train.optimizer=adamw_8bit",
    "adamw_bnb_8bit": "train.optimizer=adamw_8bit",
    "paged_adamw_32bit": "train.optimizer=paged_adamw",
    "paged_adamw_8bit": "train.optimizer=paged_adamw_8bit",
}
_DTYPES = {
    "bfloat16": "model.dtype=bf16",
    "float32": "model.dtype=fp32",
    "auto": "model.dtype=auto",
}
_TRACKERS = {
    "wandb": "log.trackers=[wandb]",
    "tensorboard": "log.trackers=[tensorboard]",
    "trackio": "log.trackers=[trackio]",
    "none": "log.trackers=[]",
}

TRANSFORMERS = {
    "learning_rate": Foreign("train.lr={}"),
    "num_train_epochs": Foreign("train.epochs={}"),
    "per_device_train_batch_size": Foreign("train.batch_size={global}", _GLOBAL),
    "per_gpu_train_batch_size": Foreign("train.batch_size={global}", _GLOBAL),
    "gradient_accumulation_steps": Foreign("train.batch_size={global}", _GLOBAL),
    "per_device_eval_batch_size": Foreign("", _MEMORY),
    "auto_find_batch_size": Foreign("", _MEMORY),
    "warmup_ratio": Foreign("train.warmup_steps={steps}", _STEPS),
    "lr_scheduler_type": Foreign(_SCHEDULES),
    "optim": Foreign(_OPTIMIZERS),
    "bf16": Foreign(_PRECISION),
    "fp16": Foreign("", "Compute is bf16 or fp32 (train.precision); fp16 is not supported."),
    "adam_beta_1": Foreign("train.adam_beta1={}"),
    "adam_beta_2": Foreign("train.adam_beta2={}"),
    "logging_steps": Foreign("train.log_steps={}"),
    "save_total_limit": Foreign("train.keep_checkpoints={}"),
    "save_strategy": Foreign({"no": "train.save_steps=0"}, "It counts optimizer steps."),
    "eval_strategy": Foreign("", _HELD_OUT),
    "evaluation_strategy": Foreign("", _HELD_OUT),
    "group_by_length": Foreign("", "Rows are never padded, so that there is nothing to group."),
    "neftune_noise_alpha": Foreign("", "Noise on embeddings is not supported."),
    "use_vllm": Foreign("", "Responses are decoded by this tool itself."),
    "system_prompt": Foreign("system={}"),
    "reference_free": Foreign(
        {"true": "model.reference=none", "false": "model.reference=auto"},
        "Losses that need no reference are simpo, cpo, orpo and sft.",
    ),
    "load_best_model_at_end": Foreign({"true": "train.result=best", "false": "train.result=last"}),
    "early_stopping_patience": Foreign("train.early_stop={}"),
    "report_to": Foreign(_TRACKERS),
    "torch_compile": Foreign("train.compile={}"),
    "use_gradient_checkpointing": Foreign("train.gradient_checkpointing={}"),
    "resume_from_checkpoint": Foreign({"true": "resume=auto", "false": "resume=never"}),
    "overwrite_output_dir": Foreign("", "A folder is never overwritten; give a new output_dir."),
    "data_seed": Foreign("seed={}"),
    "deepspeed": Foreign("", _SHARDED),
    "fsdp": Foreign("", _SHARDED),
    "fsdp_config": Foreign("", _SHARDED),
    "use_liger_kernel": Foreign(
        {"false": "kernels=none"}, "kernels=auto takes liger-kernel's layers where it is installed."
    ),
    "num_processes": Foreign("launch.processes={}"),
    "nproc_per_node": Foreign("launch.processes={}"),
}

TRL = {
    "model_name_or_path": Foreign("model.path={}"),
    "model_revision": Foreign("model.revision={}"),
    "attn_implementation": Foreign("model.attention={}"),
    "torch_dtype": Foreign(_DTYPES),
    "chat_template_path": Foreign("model.chat_template={}"),
    "dataset_name": Foreign("data.path={}"),
    "dataset_path": Foreign("data.path={}"),
    "dataset_config": Foreign("data.name={}"),
    "dataset_config_name": Foreign("data.name={}"),
    "dataset_train_split": Foreign("data.split={}"),
    "dataset_test_split": Foreign(
        "data.eval={}", "It names held-out rows, or how many to hold out."
    ),
    "eval_dataset": Foreign("data.eval={}"),
    "train_dataset": Foreign("data.path={}"),
    "dataset_text_field": Foreign("data.columns.text={}"),
    "max_seq_length": Foreign("data.max_length={}"),
    "max_prompt_length": Foreign("", _CUT),
    "truncation_mode": Foreign(
        {"keep_end": "data.truncation=prompt_start", "keep_start": "data.truncation=response_end"}
    ),
    "completion_only_loss": Foreign(
        {"true": "data.train_on=response", "false": "data.train_on=all"}
    ),
    "assistant_only_loss": Foreign(
        {"true": "data.train_on=response", "false": "data.train_on=all"}
    ),
    "shuffle_dataset": Foreign("data.shuffle={}"),
    "use_peft": Foreign({"true": "adapter=lora", "false": "adapter=none"}),
    "lora_r": Foreign("adapter=lora adapter.rank={}"),
    "lora_alpha": Foreign("adapter=lora adapter.alpha={}"),
    "lora_dropout": Foreign("adapter=lora adapter.dropout={}"),
    "lora_target_modules": Foreign("adapter=lora adapter.targets={list}"),
    "lora_modules_to_save": Foreign("adapter=lora adapter.modules_to_save={list}"),
    "use_rslora": Foreign({"true": "adapter=rslora", "false": "adapter=lora"}),
    "use_dora": Foreign({"true": "adapter=dora", "false": "adapter=lora"}),
    "load_in_4bit": Foreign({"true": "quant=nf4", "false": "quant=none"}),
    "load_in_8bit": Foreign({"true": "quant=int8", "false": "quant=none"}),
    "bnb_4bit_quant_type": Foreign({"nf4": "quant=nf4"}),
    "use_bnb_nested_quant": Foreign("quant=nf4 quant.double={}"),
    "bnb_4bit_use_double_quant": Foreign("quant=nf4 quant.double={}"),
    "precompute_ref_log_probs": Foreign(
        {"true": "model.reference=stored", "false": "model.reference=copy"}
    ),
    "ref_model": Foreign("model.reference={}"),
    "sync_ref_model": Foreign({"true": "model.reference=copy", "false": "sync_steps=0"}, _MOVING),
    "ref_model_sync_steps": Foreign("model.reference=copy sync_steps={}"),
    "ref_model_mixup_alpha": Foreign("sync_share={}", _MOVING),
    "f_divergence_type": Foreign(
        {
            "reverse_kl": "f_divergence=reverse_kl",
            "forward_kl": "f_divergence=forward_kl",
            "js_divergence": "f_divergence=js",
            "alpha_divergence": "f_divergence=alpha",
        }
    ),
    "f_alpha_divergence_coef": Foreign("f_divergence=alpha f_alpha={}"),
    "rpo_alpha": Foreign("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "use_weighting": Foreign("wpo={}"),
    "cpo_alpha": Foreign("nll_weight={}"),
    "center_rewards_coefficient": Foreign("center_coefficient={}"),
    "prompt_sample_size": Foreign("udm.sample_size={}"),
    "reward_model_path": Foreign("reward.model={}"),
    "reward_funcs": Foreign(
        "reward.function={}", "It is a function in a file, as FILE.py:FUNCTION."
    ),
    "sft_model_path": Foreign("model.path={}"),
    "response_length": Foreign("sampling.max_new_tokens={}"),
    "max_completion_length": Foreign("sampling.max_new_tokens={}"),
    "num_generations": Foreign("samples_per_prompt={}"),
    "num_ppo_epochs": Foreign("ppo_epochs={}"),
    "num_iterations": Foreign("ppo_epochs={}"),
    "num_mini_batches": Foreign("minibatches={}"),
    "cliprange": Foreign("clip_range={}"),
    "cliprange_value": Foreign("value_clip_range={}"),
    "epsilon": Foreign("clip_range={}"),
    "lam": Foreign("gae_lambda={}"),
    "init_kl_coef": Foreign("kl_coef={}"),
    "adap_kl_ctrl": Foreign({"true": "kl_controller=adaptive", "false": "kl_controller=fixed"}),
    "target_kl": Foreign("early_stop_kl={}"),
    "total_episodes": Foreign(
        "", "train.max_steps counts rollouts of train.batch_size prompts each."
    ),
    "local_rollout_forward_batch_size": Foreign("", _MEMORY),
    "num_sample_generations": Foreign("sample_steps={}", "It writes samples every so many steps."),
}

LLAMA_FACTORY = {
    "cutoff_len": Foreign("data.max_length={}"),
    "val_size": Foreign("data.eval={}", "Below 1 it is a share, else a number of rows."),
    "finetuning_type": Foreign({"lora": "adapter=lora", "full": "adapter=none"}),
    "lora_rank": Foreign("adapter=lora adapter.rank={}"),
    "lora_target": Foreign("adapter=lora adapter.targets={list}"),
    "additional_target": Foreign("adapter=lora adapter.modules_to_save={list}"),
    "adapter_name_or_path": Foreign("model.path={}", "An adapter is a model like any other."),
    "create_new_adapter": Foreign({"true": "adapter=lora adapter.start=merge"}),
    "quantization_bit": Foreign({"4": "quant=nf4", "8": "quant=int8"}),
    "double_quantization": Foreign("quant=nf4 quant.double={}"),
    "flash_attn": Foreign(
        {
            "auto": "model.attention=auto",
            "disabled": "model.attention=eager",
            "sdpa": "model.attention=sdpa",
            "fa2": "model.attention=flash_attention_2",
        }
    ),
    "pref_beta": Foreign("beta={}"),
    "pref_loss": Foreign("loss_type={}"),
    "pref_ftx": Foreign("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "dpo_label_smoothing": Foreign("label_smoothing={}"),
    "kto_chosen_weight": Foreign("desirable_weight={}"),
    "kto_rejected_weight": Foreign("undesirable_weight={}"),
    "reward_model": Foreign("reward.model={}"),
    "ppo_target": Foreign("kl_target={}"),
    "train_on_prompt": Foreign({"true": "data.train_on=all", "false": "data.train_on=response"}),
    "mask_history": Foreign({"true": "data.train_on=last_turn", "false": "data.train_on=response"}),
    "max_samples": Foreign("data.split=[:{}]"),
    "dataset_dir": Foreign("data.path={}", _PATHS),
    "neat_packing": Foreign("data.packing={}", "Packed rows never see each other."),
    "freeze_trainable_layers": Foreign("", "model.freeze names the layers that stay as they are."),
    "export_dir": Foreign("output_dir={}"),
}

AXOLOTL = {
    "base_model": Foreign("model.path={}"),
    "tokenizer_config": Foreign("model.tokenizer={}"),
    "datasets": Foreign("data.path={}", _PATHS),
    "test_datasets": Foreign("data.eval={}", _PATHS),
    "sequence_len": Foreign("data.max_length={}"),
    "sample_packing": Foreign("data.packing={}", "Packed rows never see each other."),
    "pad_to_sequence_len": Foreign("", "Rows are flat; nothing is padded to data.max_length."),
    "val_set_size": Foreign("data.eval={}", "Below 1 it is a share, else a number of rows."),
    "micro_batch_size": Foreign("train.batch_size={global}", _GLOBAL),
    "num_epochs": Foreign("train.epochs={}"),
    "lr_scheduler": Foreign(_SCHEDULES),
    "optimizer": Foreign(_OPTIMIZERS),
    "cosine_min_lr_ratio": Foreign("train.min_lr_ratio={}"),
    "train_on_inputs": Foreign({"true": "data.train_on=all", "false": "data.train_on=response"}),
    "lora_target_linear": Foreign({"true": "adapter=lora adapter.targets=all-linear"}),
    "lora_model_dir": Foreign("model.path={}", "An adapter is a model like any other."),
    "peft_use_dora": Foreign({"true": "adapter=dora", "false": "adapter=lora"}),
    "peft_use_rslora": Foreign({"true": "adapter=rslora", "false": "adapter=lora"}),
    "flash_attention": Foreign({"true": "model.attention=flash_attention_2"}),
    "sdp_attention": Foreign({"true": "model.attention=sdpa"}),
    "rl": Foreign("", "Each is a command of its own: rlhf dpo, rlhf bco, rlhf ppo."),
    "rl_beta": Foreign("beta={}"),
    "dpo_beta": Foreign("beta={}"),
    "dpo_loss_type": Foreign("loss_type={}"),
    "orpo_alpha": Foreign("loss_type=orpo beta={}"),
    "evals_per_epoch": Foreign("", "train.eval_steps counts optimizer steps."),
    "saves_per_epoch": Foreign("", "train.save_steps counts optimizer steps."),
    "auto_resume_from_checkpoints": Foreign({"true": "resume=auto", "false": "resume=never"}),
    "wandb_project": Foreign("", "log.trackers=[wandb] sends metrics to it."),
}

OPENRLHF = {
    "pretrain": Foreign("model.path={}"),
    "dataset": Foreign("data.path={}"),
    "prompt_data": Foreign("data.path={}"),
    "input_key": Foreign("data.columns.prompt={}"),
    "output_key": Foreign("data.columns.completion={}"),
    "chosen_key": Foreign("data.columns.chosen={}"),
    "rejected_key": Foreign("data.columns.rejected={}"),
    "max_len": Foreign("data.max_length={}"),
    "prompt_max_len": Foreign("", _CUT),
    "generate_max_len": Foreign("sampling.max_new_tokens={}"),
    "max_epochs": Foreign("train.epochs={}"),
    "train_batch_size": Foreign("train.batch_size={}"),
    "micro_train_batch_size": Foreign("", _MEMORY),
    "micro_rollout_batch_size": Foreign("", _MEMORY),
    "rollout_batch_size": Foreign("train.batch_size={}", "A step of ppo is one rollout."),
    "n_samples_per_prompt": Foreign("samples_per_prompt={}"),
    "actor_learning_rate": Foreign("train.lr={}", "Policy and value model share it."),
    "lr_warmup_ratio": Foreign("train.warmup_steps={steps}", _STEPS),
    "l2": Foreign("train.weight_decay={}"),
    "max_norm": Foreign("train.max_grad_norm={}"),
    "packing_samples": Foreign("", "Rows are flat without padding in any case."),
    "zero_stage": Foreign("", _SHARDED),
    "save_path": Foreign("output_dir={}"),
    "ckpt_path": Foreign("output_dir={}", "Checkpoints are in the run's folder."),
    "reward_pretrain": Foreign("reward.model={}"),
    "critic_pretrain": Foreign("value=model value_model={}"),
    "ref_pretrain": Foreign("model.reference={}"),
    "remote_rm_url": Foreign("reward.url={}"),
    "advantage_estimator": Foreign(
        {
            "gae": "advantage=gae",
            "rloo": "advantage=rloo",
            "reinforce": "advantage=reinforce_pp",
            "reinforce_baseline": "advantage=reinforce_baseline",
            "group_norm": "advantage=grpo",
        }
    ),
    "eps_clip": Foreign("clip_range={}"),
    "value_clip": Foreign("value_clip_range={}"),
    "lambd": Foreign("gae_lambda={}"),
    "pretrain_data": Foreign("ptx_data={}"),
    "nll_loss_coef": Foreign("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "ipo": Foreign({"true": "loss_type=ipo"}),
    "use_wandb": Foreign("log.trackers=[wandb]", "The key itself is read from WANDB_API_KEY."),
    "use_tensorboard": Foreign("log.trackers=[tensorboard]"),
}

GENERATE = {
    "max_tokens": Foreign("sampling.max_new_tokens={}"),
    "n": Foreign("samples_per_prompt={}"),
    "data": Foreign("prompts={}"),
    "data.path": Foreign("prompts={}"),
}
"""Keys of `rlhf generate` by the names of vLLM and of the training commands."""

LIBRARIES = {
    "transformers": TRANSFORMERS,
    "TRL": TRL,
    "LLaMA-Factory": LLAMA_FACTORY,
    "axolotl": AXOLOTL,
    "OpenRLHF": OPENRLHF,
    "generate": GENERATE,
}

FOREIGN = {name: entry for table in LIBRARIES.values() for name, entry in table.items()}
