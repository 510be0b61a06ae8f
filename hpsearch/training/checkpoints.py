"""Checkpoints: one file per trial, whole or not there, checked before anything is trained from it.

The format is safetensors' (8 bytes of length, a JSON header, the numbers), so that other tools can read it; the
header's metadata say what it is and hold a SHA-256 of the numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpsearch.errors import DataError

FORMAT = "hpsearch-checkpoint-1"

DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """One trial between two epochs.

    Attributes:
        architecture: what its tensors belong to; equal for trials that can share a pack.
        epoch: how many it has been trained.
        start: total loss on its first minibatch, by which divergence is judged.
        tensors: weights, running statistics and the optimiser's memory, by name, without the axis of members.
    """

    architecture: str
    epoch: int
    start: float
    tensors: dict[str, torch.Tensor]


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; whoever reads ``path`` meanwhile, or after a crash, sees the old file or the new one.

    Args:
        path: a file, whose folder is made where missing, or a URL that fsspec knows (``s3://…``).
        checkpoint: its tensors are of float32, float64 or int64.

    Raises:
        OSError: it cannot be written.
    """
    content = _encode(checkpoint)
    if "://" in str(path):
        import fsspec  # comes with torch

        with fsspec.open(str(path), "wb") as file:  # object stores show an object once it is whole
            file.write(content)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        DataError: it is damaged, or no checkpoint.
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    if "://" in str(path):
        import fsspec  # comes with torch

        with fsspec.open(str(path), "rb") as file:
            content: bytes = file.read()
    else:
        content = Path(path).read_bytes()
    try:
        return _decode(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise DataError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {error}): delete it, and the trial starts anew"
        ) from None


def check_resumed(checkpoints: Sequence[Checkpoint], *, n_members: int, epoch: int, n_epochs: int) -> None:
    """Raise ValueError unless a pack can go on from these: it is new, and they are one per member, all of one epoch."""
    epochs = {checkpoint.epoch for checkpoint in checkpoints}
    if epoch or len(checkpoints) != n_members or len(epochs) != 1 or max(epochs) > n_epochs:
        raise ValueError("a new pack resumes one checkpoint per member, all of one epoch that it has")


def fitting(checkpoint: Checkpoint, architecture: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise DataError unless the checkpoint is of this architecture, with tensors of these names, shapes and types."""
    if checkpoint.architecture != architecture:
        raise DataError(
            f"the checkpoint is of another architecture, {checkpoint.architecture}, and not of {architecture}: "
            "train the trial from the start"
        )
    if odd := tensors.keys() ^ checkpoint.tensors.keys():
        raise DataError(f"the checkpoint and the model differ in {', '.join(sorted(odd))}: train it from the start")
    for name, tensor in tensors.items():
        own = checkpoint.tensors[name]
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise DataError(
                f"the checkpoint's {name} is {tuple(own.shape)} of {own.dtype}, and not {tuple(tensor.shape)} of "
                f"{tensor.dtype}: train the trial from the start"
            )


def _encode(checkpoint: Checkpoint) -> bytes:
    header: dict[str, Any] = {}
    pieces = []
    end = 0
    for name, tensor in checkpoint.tensors.items():
        piece = tensor.detach().cpu().contiguous().numpy().tobytes()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(piece)],
        }
        pieces.append(piece)
        end += len(piece)
    data = b"".join(pieces)
    facts = {"architecture": checkpoint.architecture, "epoch": checkpoint.epoch, "start": checkpoint.start}
    header["__metadata__"] = {
        "format": FORMAT,
        "checkpoint": json.dumps(facts),
        "sha256": hashlib.sha256(json.dumps([header, facts]).encode() + data).hexdigest(),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _decode(content: bytes) -> Checkpoint:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError("it ends before its header does")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
    facts = json.loads(metadata["checkpoint"])
    digest = hashlib.sha256(json.dumps([header, facts]).encode() + data).hexdigest()
    if digest != metadata["sha256"]:
        raise ValueError("its SHA-256 is not what its header says")
    tensors = {name: _tensor(entry, data) for name, entry in header.items()}
    return Checkpoint(str(facts["architecture"]), int(facts["epoch"]), float(facts["start"]), tensors)


def _tensor(entry: dict[str, Any], data: bytes) -> torch.Tensor:
    start, end = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    if end - start != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError("a tensor's length does not fit its shape")
    numbers = np.frombuffer(data[start:end], dtype=torch.empty(0, dtype=dtype).numpy().dtype)
    return torch.from_numpy(numbers.copy()).reshape(entry["shape"])
