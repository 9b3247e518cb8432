"""Small transformers models of random weights, for what does not depend on what a model says."""

from __future__ import annotations

from typing import Any, Final

VOCABULARY: Final = 97
WINDOW: Final = 7
COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "initializer_range": 0.25,  # decided: what is likely is much likelier than the rest
}


def random_model(kind: str, *, seed: int = 3, noise: float = 0.0, **changes: Any) -> Any:
    """A causal LM: "llama", "qwen2", "mistral" (sees seven tokens back) or "gemma2".

    With noise on its weights one similar to that without: right often and wrong often enough.
    """
    import torch
    import transformers

    torch.set_num_threads(1)  # two that wait for each other are slower where all cores work
    torch.manual_seed(seed)
    config: Any
    if kind == "llama":
        config = transformers.LlamaConfig(**COMMON | changes)
    elif kind == "qwen2":
        config = transformers.Qwen2Config(**COMMON | changes)
    elif kind == "mistral":
        config = transformers.MistralConfig(**COMMON | changes, sliding_window=WINDOW)
    else:
        config = transformers.Gemma2Config(**COMMON | changes, head_dim=8)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(17)
    with torch.inference_mode():
        for weights in model.parameters():
            weights.add_(noise * torch.randn(weights.shape, generator=generator))
    return model
