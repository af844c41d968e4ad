"""LoRA adapters made of the demonstration one: as many as a test or a benchmark needs, of any rank and strength."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make_adapter(source: Path, folder: Path, name: str, *, scale: float = 1.0, rank: int | None = None) -> str:
    """Puts a copy of the adapter `source` into `folder` whole, as a rename does; in place of one of this name.

    `scale`: of what it changes in its base (0: nothing). `rank`: filled up with zeros to this one, to the same effect.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        made = Path(aside) / name
        shutil.copytree(source, made)
        config = json.loads((made / CONFIG).read_text())
        weights = load_file(made / WEIGHTS)
        added = (rank or config["r"]) - config["r"]
        for key, matrix in weights.items():
            if ".lora_A." in key:
                weights[key] = np.pad(matrix, ((0, added), (0, 0)))
            else:
                weights[key] = np.ascontiguousarray(np.pad(matrix * np.float32(scale), ((0, 0), (0, added))))
        config |= {"r": config["r"] + added, "lora_alpha": config["lora_alpha"] * (config["r"] + added) / config["r"]}
        (made / CONFIG).write_text(json.dumps(config))
        save_file(weights, made / WEIGHTS)
        if (folder / name).exists():
            (folder / name).rename(Path(aside) / "before")
        made.rename(folder / name)
    return name
