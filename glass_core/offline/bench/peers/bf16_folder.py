"""A Hugging Face folder in bfloat16, which other engines load as it is: their peak memory is not that of a cast."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from glass_core.checkpoint.json_file import read_json_object, write_json_object
from glass_core.errors import ConfigurationError


def write_bf16_folder(model_dir: Path, folder: Path) -> Path:
    """Copy a checkpoint folder into `folder`, its floating-point tensors as bfloat16.

    Raises ConfigurationError when it has no safetensors files.
    """
    weights = sorted(model_dir.glob("*.safetensors"))
    if not weights:
        raise ConfigurationError(f"{model_dir} has no *.safetensors: the peer needs a Hugging Face folder")
    for path in [*model_dir.glob("*.json"), *model_dir.glob("*.jinja")]:
        shutil.copy(path, folder)
    for path in weights:
        tensors = {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(path).items()
        }
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    config = read_json_object(model_dir / "config.json")
    write_json_object(folder / "config.json", {**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"})
    return folder
