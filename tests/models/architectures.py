"""Tiny models of different architectures, for tests of loading and saving."""

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 5, "num_local_experts": 5, "num_experts_per_tok": 2}
ARCHITECTURES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "gpt_neox": {},
    "phi3": {"pad_token_id": 0},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "qwen3_moe": {"moe_intermediate_size": 24, **EXPERTS},
    "mixtral": EXPERTS,
    "gpt_oss": {**EXPERTS, "rope_scaling": None},
}
