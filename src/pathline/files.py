"""Writing without loss: a file appears whole, or what was there stays. Tensors are safetensors, nothing is pickled."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error.

    Raises:
        ValueError: the folder does not exist or cannot be written to, or there is no space left.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error.strerror}); choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{target}: cannot be written ({reason}); make room, or choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], key: str, about: Mapping[str, Any]) -> None:
    """Writes tensors, and JSON values under ``key``, to a safetensors file; equal arguments give equal bytes.

    Raises:
        ValueError: the file cannot be written.
    """
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, metadata={key: json.dumps(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_tensors(path: str | Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values under ``key``, in the order in which they were written, and the tensors.

    Raises:
        ValueError: the file is no safetensors file, is cut short, or has no such key.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is no complete safetensors file ({error})") from error
    try:
        about = json.loads(metadata[key])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: was not written by pathline, or holds something else of it") from error
    return about, tensors
