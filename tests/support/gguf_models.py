"""A tiny Llama written as a GGUF file, as llama.cpp's converter would, and as the folder it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, TokenType

from tests.support.tiny_models import LM_HEADS, VOCABULARY, make_config, make_model, save_bpe_tokenizer

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def save_gguf(
    folder: Path, *, architecture: str = "llama", scale: float = 1.0, without: str = "", seed: int = 0
) -> tuple[Path, Path]:
    """Write a tiny Llama whose weights float16 holds exactly; returns the GGUF file and the safetensors folder."""
    model = make_model(make_config("smollm"), LM_HEADS["smollm"], seed).half().float()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(scale)
    file, plain = folder / "tiny.gguf", folder / "plain"
    model.save_pretrained(plain)
    save_bpe_tokenizer(plain)
    config: Any = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, plain)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" and not (without and without in name):
            writer.add_tensor(_name(name), _stored(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, plain


def _add_tokenizer(writer: GGUFWriter, plain: Path) -> None:
    model = json.loads((plain / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _name(name: str) -> str:
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outside:
        return outside[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_PARTS[rest.removesuffix('.weight')]}.weight"


def _stored(name: str, tensor: torch.Tensor, config: Any) -> np.ndarray[Any, Any]:
    """Return a weight as llama.cpp holds it: rows of queries and keys in the order of its rotary embedding."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, number in heads.items():
        if part in name:
            rows, columns = tensor.shape
            tensor = tensor.reshape(number, 2, rows // number // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    array = tensor.contiguous().numpy()
    return array if tensor.ndim == 1 or np.abs(array).max() > 65504 else array.astype(np.float16)
