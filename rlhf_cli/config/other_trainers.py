"""Keys of other trainers, and the settings that replace them here.

An entry gives the settings for `name=VALUE`, with `{}` for the value, or a mapping from values to
settings; and a note where the meaning differs. Further placeholders:

    {list}    the value as a list, `a,b` as `[a,b]`
    {global}  examples per optimizer step: those of one device, times accumulation
    {steps}   the value as a share of `max_steps`

An entry without settings has no counterpart here; its note says what there is.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherName:
    """The replacement of another trainer's key.

    Attributes:
        settings: `key=value` arguments, as described above.
        note: one sentence where the meaning differs.
    """

    settings: str | dict[str, str]
    note: str = ""

    @property
    def keys(self) -> list[str]:
        """Our keys that it sets; for a mapping, those of its first value."""
        found = self.settings
        first = found if isinstance(found, str) else next(iter(found.values()))
        return re.findall(r"(?:^| )([\w.]+)=", first)


_GLOBAL = (
    "It counts the examples of an optimizer step over all devices and accumulated micro-batches."
)
_STEPS = "It counts optimizer steps, not a share of the run."
_MEMORY = "How a step is cut to fit memory changes no result and is found by itself."
_CUT = "Prompt and response share data.max_length, and data.truncation says what is cut."
_SHARDED = "launch.shard=full divides weights, gradients and optimizer state among the processes."
_SHARDINGS = {
    "full_shard": "launch.shard=full",
    "shard_grad_op": "launch.shard=grad_op",
    "hybrid_shard": "launch.shard=hybrid launch.replicas=2",
    "no_shard": "launch.shard=none",
}
_PATHS = "It takes files, folders and hub ids, or a list of {path: FILE, weight: 2}."
_HELD_OUT = "data.eval says which rows are held out, train.eval_steps how often they are measured."
_TR_DPO = "A reference that moves is set by sync_steps and sync_alpha."
_CACHED = "Rows are tokenized once and cached; loading them takes no time in training."
_COMMANDS = "Each stage is a command of its own: rlhf sft, rlhf reward, rlhf dpo, rlhf ppo."
_PUSH = "rlhf push RUN to=ORG/NAME uploads a result with its model card."
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
    "learning_rate": OtherName("train.lr={}"),
    "num_train_epochs": OtherName("train.epochs={}"),
    "per_device_train_batch_size": OtherName("train.batch_size={global}", _GLOBAL),
    "per_gpu_train_batch_size": OtherName("train.batch_size={global}", _GLOBAL),
    "gradient_accumulation_steps": OtherName("train.batch_size={global}", _GLOBAL),
    "per_device_eval_batch_size": OtherName("", _MEMORY),
    "auto_find_batch_size": OtherName("", _MEMORY),
    "warmup_ratio": OtherName("train.warmup_steps={steps}", _STEPS),
    "lr_scheduler_type": OtherName(_SCHEDULES),
    "optim": OtherName(_OPTIMIZERS),
    "bf16": OtherName(_PRECISION),
    "fp16": OtherName("", "Compute is bf16 or fp32 (train.precision); fp16 is not supported."),
    "adam_beta_1": OtherName("train.adam_beta1={}"),
    "adam_beta_2": OtherName("train.adam_beta2={}"),
    "logging_steps": OtherName("train.log_steps={}"),
    "save_total_limit": OtherName("train.keep_checkpoints={}"),
    "save_strategy": OtherName({"no": "train.save_steps=0"}, "It counts optimizer steps."),
    "eval_strategy": OtherName("", _HELD_OUT),
    "evaluation_strategy": OtherName("", _HELD_OUT),
    "group_by_length": OtherName("", "Rows are never padded, so that there is nothing to group."),
    "neftune_noise_alpha": OtherName("", "Noise on embeddings is not supported."),
    "use_vllm": OtherName("", "Responses are decoded by this tool itself."),
    "system_prompt": OtherName("system={}"),
    "reference_free": OtherName(
        {"true": "model.reference=none", "false": "model.reference=auto"},
        "Losses that need no reference are simpo, cpo, orpo and sft.",
    ),
    "load_best_model_at_end": OtherName(
        {"true": "train.result=best", "false": "train.result=last"}
    ),
    "early_stopping_patience": OtherName("train.early_stop_patience={}"),
    "report_to": OtherName(_TRACKERS),
    "torch_compile": OtherName("train.compile={}"),
    "use_gradient_checkpointing": OtherName("train.gradient_checkpointing={}"),
    "resume_from_checkpoint": OtherName({"true": "resume=auto", "false": "resume=never"}),
    "overwrite_output_dir": OtherName("", "A folder is never overwritten; give a new output_dir."),
    "data_seed": OtherName("seed={}"),
    "deepspeed": OtherName("launch.shard=full", _SHARDED),
    "fsdp": OtherName(_SHARDINGS),
    "fsdp_config": OtherName("launch.shard=full", _SHARDED),
    "use_liger_kernel": OtherName(
        {"false": "kernels=none"}, "kernels=auto takes liger-kernel's layers where it is installed."
    ),
    "dataloader_num_workers": OtherName("", _CACHED),
    "dataloader_pin_memory": OtherName("", _CACHED),
    "dataset_num_proc": OtherName("", _CACHED),
    "remove_unused_columns": OtherName("", "Unused columns are ignored, and named once."),
    "do_train": OtherName("", _COMMANDS),
    "do_eval": OtherName("", _HELD_OUT),
    "do_predict": OtherName("", "rlhf generate writes responses."),
    "run_name": OtherName("", "A tracker's run has the name of output_dir."),
    "logging_dir": OtherName("", "Trackers write below output_dir."),
    "push_to_hub": OtherName("", _PUSH),
    "hub_model_id": OtherName("", _PUSH),
    "hub_token": OtherName("", "The token is read from HF_TOKEN, or from hf auth login."),
    "ddp_timeout": OtherName("", "A rank that ends is noticed at once."),
    "tf32": OtherName("", "Compute is bf16 or fp32 (train.precision)."),
    "num_processes": OtherName("launch.processes={}"),
    "nproc_per_node": OtherName("launch.processes={}"),
}

TRL = {
    "model_name_or_path": OtherName("model.path={}"),
    "model_revision": OtherName("model.revision={}"),
    "attn_implementation": OtherName("model.attention={}"),
    "torch_dtype": OtherName(_DTYPES),
    "chat_template_path": OtherName("model.chat_template={}"),
    "dataset_name": OtherName("data.path={}"),
    "dataset_path": OtherName("data.path={}"),
    "dataset_config": OtherName("data.name={}"),
    "dataset_config_name": OtherName("data.name={}"),
    "dataset_train_split": OtherName("data.split={}"),
    "dataset_test_split": OtherName(
        "data.eval={}", "It names held-out rows, or how many to hold out."
    ),
    "eval_dataset": OtherName("data.eval={}"),
    "train_dataset": OtherName("data.path={}"),
    "dataset_text_field": OtherName("data.columns.text={}"),
    "max_seq_length": OtherName("data.max_length={}"),
    "max_prompt_length": OtherName("", _CUT),
    "truncation_mode": OtherName(
        {"keep_end": "data.truncation=prompt_start", "keep_start": "data.truncation=response_end"}
    ),
    "completion_only_loss": OtherName(
        {"true": "data.train_on=response", "false": "data.train_on=all"}
    ),
    "assistant_only_loss": OtherName(
        {"true": "data.train_on=response", "false": "data.train_on=all"}
    ),
    "shuffle_dataset": OtherName("data.shuffle={}"),
    "use_peft": OtherName({"true": "adapter=lora", "false": "adapter=none"}),
    "lora_r": OtherName("adapter=lora adapter.rank={}"),
    "lora_alpha": OtherName("adapter=lora adapter.alpha={}"),
    "lora_dropout": OtherName("adapter=lora adapter.dropout={}"),
    "lora_target_modules": OtherName("adapter=lora adapter.targets={list}"),
    "lora_modules_to_save": OtherName("adapter=lora adapter.modules_to_save={list}"),
    "use_rslora": OtherName({"true": "adapter=rslora", "false": "adapter=lora"}),
    "use_dora": OtherName({"true": "adapter=dora", "false": "adapter=lora"}),
    "load_in_4bit": OtherName({"true": "quant=nf4", "false": "quant=none"}),
    "load_in_8bit": OtherName({"true": "quant=int8", "false": "quant=none"}),
    "bnb_4bit_quant_type": OtherName({"nf4": "quant=nf4"}),
    "use_bnb_nested_quant": OtherName("quant=nf4 quant.double={}"),
    "bnb_4bit_use_double_quant": OtherName("quant=nf4 quant.double={}"),
    "precompute_ref_log_probs": OtherName(
        {"true": "model.reference=stored", "false": "model.reference=copy"}
    ),
    "ref_model": OtherName("model.reference={}"),
    "sync_ref_model": OtherName({"true": "model.reference=copy", "false": "sync_steps=0"}, _TR_DPO),
    "ref_model_sync_steps": OtherName("model.reference=copy sync_steps={}"),
    "ref_model_mixup_alpha": OtherName("sync_alpha={}", _TR_DPO),
    "f_divergence_type": OtherName(
        {
            "reverse_kl": "f_divergence=reverse_kl",
            "forward_kl": "f_divergence=forward_kl",
            "js_divergence": "f_divergence=js",
            "alpha_divergence": "f_divergence=alpha",
        }
    ),
    "f_alpha_divergence_coef": OtherName("f_divergence=alpha f_alpha={}"),
    "rpo_alpha": OtherName("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "use_weighting": OtherName("wpo={}"),
    "cpo_alpha": OtherName("nll_weight={}"),
    "center_rewards_coefficient": OtherName("center_coefficient={}"),
    "prompt_sample_size": OtherName("udm.sample_size={}"),
    "reward_model_path": OtherName("reward.model={}"),
    "reward_funcs": OtherName(
        "reward.function={}", "It is a function in a file, as FILE.py:FUNCTION."
    ),
    "sft_model_path": OtherName("model.path={}"),
    "teacher_model": OtherName("teacher={}"),
    "teacher_model_name_or_path": OtherName("teacher={}"),
    "lmbda": OtherName(
        "on_policy_fraction={}", "It is a share of each step's prompts, not of the steps."
    ),
    "seq_kd": OtherName("", "rlhf generate writes the teacher's responses, rlhf sft learns them."),
    "response_length": OtherName("sampling.max_new_tokens={}"),
    "max_completion_length": OtherName("sampling.max_new_tokens={}"),
    "num_generations": OtherName("samples_per_prompt={}"),
    "num_ppo_epochs": OtherName("ppo_epochs={}"),
    "num_iterations": OtherName("ppo_epochs={}"),
    "num_mini_batches": OtherName("minibatches={}"),
    "cliprange": OtherName("clip_range={}"),
    "cliprange_value": OtherName("value_clip_range={}"),
    "epsilon": OtherName("clip_range={}"),
    "epsilon_high": OtherName("clip_range_high={}"),
    "importance_sampling_level": OtherName({"token": "ratio=token", "sequence": "ratio=sequence"}),
    "scale_rewards": OtherName(
        {"group": "scale=std", "batch": "scale=batch", "none": "scale=none"}
    ),
    "multi_objective_aggregation": OtherName(
        {
            "sum_then_normalize": "normalize_rewards=sum",
            "normalize_then_sum": "normalize_rewards=each",
        }
    ),
    "mask_truncated_completions": OtherName("mask_truncated={}"),
    "entropy_coef_delta": OtherName("entropy_step={}"),
    "lam": OtherName("gae_lambda={}"),
    "init_kl_coef": OtherName("kl_coef={}"),
    "adap_kl_ctrl": OtherName({"true": "kl_controller=adaptive", "false": "kl_controller=fixed"}),
    "target_kl": OtherName("early_stop_kl={}"),
    "total_episodes": OtherName(
        "", "train.max_steps counts rollouts of train.batch_size prompts each."
    ),
    "local_rollout_forward_batch_size": OtherName("", _MEMORY),
    "num_sample_generations": OtherName(
        "sample_steps={}", "It writes samples every so many steps."
    ),
}

LLAMA_FACTORY = {
    "cutoff_len": OtherName("data.max_length={}"),
    "val_size": OtherName("data.eval={}", "Below 1 it is a share, else a number of rows."),
    "finetuning_type": OtherName({"lora": "adapter=lora", "full": "adapter=none"}),
    "lora_rank": OtherName("adapter=lora adapter.rank={}"),
    "lora_target": OtherName("adapter=lora adapter.targets={list}"),
    "additional_target": OtherName("adapter=lora adapter.modules_to_save={list}"),
    "adapter_name_or_path": OtherName("model.path={}", "An adapter is a model like any other."),
    "create_new_adapter": OtherName({"true": "adapter=lora adapter.start=merge"}),
    "quantization_bit": OtherName({"4": "quant=nf4", "8": "quant=int8"}),
    "double_quantization": OtherName("quant=nf4 quant.double={}"),
    "flash_attn": OtherName(
        {
            "auto": "model.attention=auto",
            "disabled": "model.attention=eager",
            "sdpa": "model.attention=sdpa",
            "fa2": "model.attention=flash_attention_2",
        }
    ),
    "pref_beta": OtherName("beta={}"),
    "pref_loss": OtherName("loss_type={}"),
    "pref_ftx": OtherName("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "dpo_label_smoothing": OtherName("label_smoothing={}"),
    "kto_chosen_weight": OtherName("desirable_weight={}"),
    "kto_rejected_weight": OtherName("undesirable_weight={}"),
    "reward_model": OtherName("reward.model={}"),
    "ppo_target": OtherName("kl_target={}"),
    "train_on_prompt": OtherName({"true": "data.train_on=all", "false": "data.train_on=response"}),
    "mask_history": OtherName(
        {"true": "data.train_on=last_turn", "false": "data.train_on=response"}
    ),
    "max_samples": OtherName("data.split=[:{}]"),
    "dataset_dir": OtherName("data.path={}", _PATHS),
    "neat_packing": OtherName("data.packing={}", "Packed rows never see each other."),
    "freeze_trainable_layers": OtherName(
        "", "model.freeze names the layers that stay as they are."
    ),
    "export_dir": OtherName("output_dir={}"),
    "preprocessing_num_workers": OtherName("", _CACHED),
    "overwrite_cache": OtherName("", "The cache is keyed by content; RLHF_CACHE names its folder."),
    "plot_loss": OtherName("", "report.html in the run folder has the curves."),
    "infer_backend": OtherName("", "Responses are decoded by this tool itself."),
    "include_num_input_tokens_seen": OtherName("", "metrics.jsonl has tokens_per_second."),
}

AXOLOTL = {
    "base_model": OtherName("model.path={}"),
    "tokenizer_config": OtherName("model.tokenizer={}"),
    "datasets": OtherName("data.path={}", _PATHS),
    "test_datasets": OtherName("data.eval={}", _PATHS),
    "sequence_len": OtherName("data.max_length={}"),
    "sample_packing": OtherName("data.packing={}", "Packed rows never see each other."),
    "pad_to_sequence_len": OtherName("", "Rows are flat; nothing is padded to data.max_length."),
    "val_set_size": OtherName("data.eval={}", "Below 1 it is a share, else a number of rows."),
    "micro_batch_size": OtherName("train.batch_size={global}", _GLOBAL),
    "num_epochs": OtherName("train.epochs={}"),
    "lr_scheduler": OtherName(_SCHEDULES),
    "optimizer": OtherName(_OPTIMIZERS),
    "cosine_min_lr_ratio": OtherName("train.min_lr_ratio={}"),
    "train_on_inputs": OtherName({"true": "data.train_on=all", "false": "data.train_on=response"}),
    "lora_target_linear": OtherName({"true": "adapter=lora adapter.targets=all-linear"}),
    "lora_model_dir": OtherName("model.path={}", "An adapter is a model like any other."),
    "peft_use_dora": OtherName({"true": "adapter=dora", "false": "adapter=lora"}),
    "peft_use_rslora": OtherName({"true": "adapter=rslora", "false": "adapter=lora"}),
    "flash_attention": OtherName({"true": "model.attention=flash_attention_2"}),
    "sdp_attention": OtherName({"true": "model.attention=sdpa"}),
    "rl": OtherName("", "Each is a command of its own: rlhf dpo, rlhf bco, rlhf ppo."),
    "rl_beta": OtherName("beta={}"),
    "dpo_beta": OtherName("beta={}"),
    "dpo_loss_type": OtherName("loss_type={}"),
    "orpo_alpha": OtherName("loss_type=orpo beta={}"),
    "evals_per_epoch": OtherName("", "train.eval_steps counts optimizer steps."),
    "saves_per_epoch": OtherName("", "train.save_steps counts optimizer steps."),
    "auto_resume_from_checkpoints": OtherName({"true": "resume=auto", "false": "resume=never"}),
    "wandb_project": OtherName("", "log.trackers=[wandb] sends metrics to it."),
    "wandb_entity": OtherName("", "It is read from WANDB_ENTITY."),
    "wandb_name": OtherName("", "A tracker's run has the name of output_dir."),
    "dataset_prepared_path": OtherName("", "RLHF_CACHE names the folder of the cache."),
    "special_tokens": OtherName("", "They are those of the tokenizer (model.tokenizer)."),
    "eot_tokens": OtherName("", "The end of a turn is read from the chat template."),
    "strict": OtherName("", "Unknown keys are always refused."),
}

OPENRLHF = {
    "pretrain": OtherName("model.path={}"),
    "dataset": OtherName("data.path={}"),
    "prompt_data": OtherName("data.path={}"),
    "input_key": OtherName("data.columns.prompt={}"),
    "output_key": OtherName("data.columns.completion={}"),
    "chosen_key": OtherName("data.columns.chosen={}"),
    "rejected_key": OtherName("data.columns.rejected={}"),
    "max_len": OtherName("data.max_length={}"),
    "prompt_max_len": OtherName("", _CUT),
    "generate_max_len": OtherName("sampling.max_new_tokens={}"),
    "max_epochs": OtherName("train.epochs={}"),
    "train_batch_size": OtherName("train.batch_size={}"),
    "micro_train_batch_size": OtherName("", _MEMORY),
    "micro_rollout_batch_size": OtherName("", _MEMORY),
    "rollout_batch_size": OtherName("train.batch_size={}", "A step of ppo is one rollout."),
    "n_samples_per_prompt": OtherName("samples_per_prompt={}"),
    "actor_learning_rate": OtherName("train.lr={}", "Policy and value model share it."),
    "lr_warmup_ratio": OtherName("train.warmup_steps={steps}", _STEPS),
    "l2": OtherName("train.weight_decay={}"),
    "max_norm": OtherName("train.max_grad_norm={}"),
    "packing_samples": OtherName("", "Rows are flat without padding in any case."),
    "zero_stage": OtherName(
        {"2": "launch.shard=grad_op", "3": "launch.shard=full"},
        "Of stage 1 there is none; grad_op also divides the gradients.",
    ),
    "save_path": OtherName("output_dir={}"),
    "ckpt_path": OtherName("output_dir={}", "Checkpoints are in the run's folder."),
    "reward_pretrain": OtherName("reward.model={}"),
    "critic_pretrain": OtherName("value=model value_model={}"),
    "ref_pretrain": OtherName("model.reference={}"),
    "remote_rm_url": OtherName("reward.url={}"),
    "advantage_estimator": OtherName(
        {
            "gae": "advantage=gae",
            "rloo": "advantage=rloo",
            "reinforce": "advantage=reinforce_pp",
            "reinforce_baseline": "advantage=reinforce_baseline",
            "group_norm": "advantage=grpo",
        }
    ),
    "eps_clip": OtherName("clip_range={}"),
    "value_clip": OtherName("value_clip_range={}"),
    "lambd": OtherName("gae_lambda={}"),
    "pretrain_data": OtherName("ptx_data={}"),
    "nll_loss_coef": OtherName("loss_type=[sigmoid,sft] loss_weights=[1,{}]"),
    "ipo": OtherName({"true": "loss_type=ipo"}),
    "use_wandb": OtherName("log.trackers=[wandb]", "The key itself is read from WANDB_API_KEY."),
    "use_tensorboard": OtherName("log.trackers=[tensorboard]"),
    "vllm_num_engines": OtherName("", "Responses are decoded by this tool itself."),
    "vllm_gpu_memory_utilization": OtherName("", "Responses are decoded by this tool itself."),
    "colocate_all_models": OtherName("", "All models of a run are on the same device."),
    "apply_chat_template": OtherName({"true": "template=always", "false": "template=never"}),
}

GENERATE = {
    "max_tokens": OtherName("sampling.max_new_tokens={}"),
    "n": OtherName("samples_per_prompt={}"),
    "data": OtherName("prompts={}"),
    "data.path": OtherName("prompts={}"),
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

OTHER_NAMES = {name: entry for table in LIBRARIES.values() for name, entry in table.items()}
