"""Reading files with tensors in them from anywhere: nothing in a file is executed. The files'
formats; pickles is the machine that reads pickled tensors."""

from alignmask.safe_load.files import (
    read_huggingface,
    read_json,
    read_pickled,
    read_safetensors,
    read_tensors,
)
from alignmask.safe_load.pickles import CheckpointError

__all__ = [
    "CheckpointError",
    "read_huggingface",
    "read_json",
    "read_pickled",
    "read_safetensors",
    "read_tensors",
]
