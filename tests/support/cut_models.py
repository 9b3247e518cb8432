"""Models cut from another: some of its layers, which makes a smaller and faster one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CUT = """
import sys, torch, transformers
source, folder, *layers = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
kept = [int(layer) for layer in layers]
model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
for i, layer in enumerate(model.model.layers):
    layer.self_attn.layer_idx = i
model.config.num_hidden_layers = len(kept)
if getattr(model.config, "layer_types", None):
    model.config.layer_types = [model.config.layer_types[i] for i in kept]
model.save_pretrained(folder)
transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
"""


def cut_model(target: Path, folder: Path, layers: list[int]) -> Path:
    """`target` with some of its layers, in float32, saved to `folder` by a process of its own."""
    subprocess.run(
        [sys.executable, "-c", CUT, str(target), str(folder), *map(str, layers)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return folder
