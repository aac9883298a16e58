"Every family block by block: equal to the model's own forward, and refused where that cannot be"
import copy,pytest,torch
from torch import nn
from transformers import (AutoModelForCausalLM,LlamaConfig,MistralConfig,Qwen2Config,Qwen3Config,GemmaConfig,Gemma2Config,Gemma3TextConfig,PhiConfig,
                          Phi3Config,OPTConfig,GPT2Config,GPTNeoXConfig,FalconConfig,MixtralConfig,Qwen3MoeConfig)
from compresscal.models import Block,capture,check_replay,decoder_blocks,find_blocks,fingerprint,watch_inputs

std = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
           pad_token_id=0, bos_token_id=1, eos_token_id=2)
falcon = {k: v for k,v in std.items() if k not in ("num_key_value_heads","intermediate_size")}
sliding = ["sliding_attention","full_attention","sliding_attention"]
families = dict(
    llama=LlamaConfig(**std), llama_tied=LlamaConfig(**std, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    mistral=MistralConfig(**std, sliding_window=5),
    qwen2=Qwen2Config(**std, use_sliding_window=True, sliding_window=5, max_window_layers=1), qwen3=Qwen3Config(**std, head_dim=16),
    gemma=GemmaConfig(**std, head_dim=8), gemma2=Gemma2Config(**std, head_dim=8, sliding_window=5, layer_types=sliding),
    gemma3=Gemma3TextConfig(**std, head_dim=8, sliding_window=5, layer_types=sliding),
    phi=PhiConfig(**std), phi3=Phi3Config(**std, sliding_window=5),
    opt=OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0),
    opt_350m=OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16,
                       do_layer_norm_before=False, pad_token_id=0),
    gpt2=GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    neox=GPTNeoXConfig(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64),
    neox_sequential=GPTNeoXConfig(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, use_parallel_residual=False),
    falcon_7b=FalconConfig(**falcon, multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False),
    falcon_40b=FalconConfig(**falcon, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, alibi=False),
    falcon_11b=FalconConfig(**falcon, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, num_ln_in_parallel_attn=1, alibi=False),
    falcon_rw=FalconConfig(**falcon, multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True),
    mixtral=MixtralConfig(**std, num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    qwen3_moe=Qwen3MoeConfig(**std, head_dim=8, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[1]),
)
