"""Write a model's weight files as `save_pretrained` does, with one weight in memory at a time.

transformers decides what is written: names, tied weights that are left out, conversions that are
reversed, files of a limited size and their index. It gets stored tensors for that, and no values.
The files are then written weight by weight.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import modeling_utils

from rlhf_cli.models.stored_origin import Origin
from rlhf_cli.models.stored_tensor import StoredTensor, read
from rlhf_cli.models.stored_weights import DTYPES, exchanged

SHARD = "4GB"
"""Largest weight file."""

ALIGNMENT = 8
"""Tensors begin at a multiple of these bytes."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

ORDER = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Types in the order of safetensors, which writes the last first."""

Whole = Callable[[str], Tensor]
"""Name of a tensor -> its values; under sharding all ranks call it, in the same order."""


@dataclass(frozen=True, eq=False)
class Gathered(Origin):
    """A tensor that is gathered when it is written.

    Attributes:
        name: of the tensor.
        gather: gives its values.
        kept: values that a later tensor of the same file is made of too.
        uses: how often the values are still needed, by name.
    """

    name: str
    gather: Whole
    kept: dict[str, Tensor]
    uses: Counter[str]

    def whole(self) -> Tensor:
        """Gather the values, where no tensor before this needed them."""
        found = self.kept.pop(self.name, None)
        value = self.gather(self.name) if found is None else found
        self.uses[self.name] -= 1
        if self.uses[self.name] > 0:
            self.kept[self.name] = value
        return value


@dataclass(frozen=True)
class WeightFile:
    """A file to write.

    Attributes:
        name: within the folder.
        origins: of its tensors, by name.
        metadata: of its header.
    """

    name: str
    origins: Mapping[str, Origin]
    metadata: Mapping[str, str]


def save_weights(
    model: Any,
    folder: Path,
    dtype: torch.dtype,
    whole: Whole | None = None,
    *,
    is_main: bool = True,
) -> None:
    """Write a model for `from_pretrained`: its configs, and its weights one by one.

    Args:
        model: a transformers model; parameters may be shards, or on the meta device.
        folder: is made; only the main process writes into it.
        dtype: of the floating-point weights that are parameters.
        whole: gives the values of a parameter or buffer by its name in the model; by default those
            that the model has, which may be in their files.
        is_main: whether this process writes.

    Raises:
        OSError: a file could not be written.
    """
    own = model.state_dict()
    with tempfile.TemporaryDirectory() as planned:
        gather = whole or (lambda name: read(own[name]))
        files = _plan(model, Path(planned), own, dtype, gather)
        failed = _write_files(files, Path(planned), folder, is_main)
    if failed is not None:
        raise failed


def _write_files(
    files: list[WeightFile], planned: Path, folder: Path, is_main: bool
) -> OSError | None:
    """Write what was planned, in one process; all take part in gathering, also when it fails.

    Returns:
        Why a file could not be written; the others would wait for ever for an error in between.
    """
    failed: OSError | None = None
    if is_main:
        try:
            shutil.copytree(planned, folder, dirs_exist_ok=True)
        except OSError as error:
            failed = error
    for file in files:
        with contextlib.ExitStack() as opened:
            handle: BinaryIO | None = None
            for origin in _in_order(file):
                if not is_main or failed is not None:
                    _visit(origin)
                    continue
                value = _values(origin)
                try:
                    if handle is None:
                        handle = opened.enter_context((folder / file.name).open("wb"))
                        _write_header(handle, file)
                    handle.write(value)
                except OSError as error:
                    failed = error
    return failed


def _plan(
    model: Any, folder: Path, own: Mapping[str, Tensor], dtype: torch.dtype, gather: Whole
) -> list[WeightFile]:
    """Let transformers write all but the weights, and list the files of these."""
    files: list[WeightFile] = []

    def record(tensors: Any, filename: Any, metadata: Any = None) -> None:
        origins = {name: tensor.origin for name, tensor in tensors.items()}
        files.append(WeightFile(Path(filename).name, origins, dict(metadata or {})))

    stored = _stored(model, own, dtype, gather)
    changed = {"should_save_on_this_rank": lambda *_: True}
    with exchanged(modeling_utils, safe_save_file=record), _with_attributes(model, changed):
        model.save_pretrained(folder, state_dict=stored, max_shard_size=SHARD)
    if not files:
        raise RuntimeError("transformers has written the weights in another way than expected")
    model.config.dtype = dtype  # transformers takes that of the parameters, which may be masters
    model.config.save_pretrained(folder)
    for file in files:
        for origin in file.origins.values():
            for leaf in _leaves(origin):
                leaf.uses[leaf.name] += 1
    return files


def _stored(
    model: Any, own: Mapping[str, Tensor], dtype: torch.dtype, gather: Whole
) -> dict[str, Tensor]:
    """Make a stored tensor for each entry of a state dict; parameters get the dtype of the file."""
    params = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept: dict[str, Tensor] = {}
    uses: Counter[str] = Counter()
    meta = torch.device("meta")  # transformers then finds tied weights by the model's parameters
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        is_cast = name in params and tensor.is_floating_point()
        origin = Gathered(
            tuple(tensor.shape), dtype if is_cast else tensor.dtype, name, gather, kept, uses
        )
        found[name] = StoredTensor.of(origin, meta)
    return found


@contextlib.contextmanager
def _with_attributes(target: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of one object inside the context, over those of its class."""
    vars(target).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(target)[name]


def _leaves(origin: Origin) -> list[Gathered]:
    """List the tensors that an origin is computed from, in the order of their use."""
    if isinstance(origin, Gathered):
        return [origin]
    values = [getattr(origin, field.name) for field in fields(origin)]
    inner = [value for value in tree_leaves(values) if isinstance(value, Origin)]
    return [leaf for part in inner for leaf in _leaves(part)]


def _visit(origin: Origin) -> None:
    """Take part in the gathering of a tensor that another process writes."""
    for leaf in _leaves(origin):
        leaf.whole()


def _in_order(file: WeightFile) -> list[Origin]:
    return [file.origins[name] for name in _order(file.origins)]


def _order(origins: Mapping[str, Origin]) -> list[str]:
    """Order names as safetensors does: larger types first, then by name."""
    return sorted(origins, key=lambda name: (-ORDER.index(NAMES[origins[name].dtype]), name))


def write_safetensors(handle: BinaryIO, file: WeightFile) -> None:
    """Write tensors in the format of safetensors, byte for byte as its own writer does.

    Args:
        handle: of the file, empty.
        file: its tensors and metadata.
    """
    _write_header(handle, file)
    for origin in _in_order(file):
        handle.write(_values(origin))


def _write_header(handle: BinaryIO, file: WeightFile) -> None:
    header: dict[str, Any] = {"__metadata__": dict(file.metadata)} if file.metadata else {}
    end = 0
    for name in _order(file.origins):
        origin = file.origins[name]
        start, end = end, end + math.prod(origin.shape) * origin.dtype.itemsize
        header[name] = {
            "dtype": NAMES[origin.dtype],
            "shape": list(origin.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    handle.write(len(text).to_bytes(8, "little"))
    handle.write(text)


def _values(origin: Origin) -> memoryview:
    """Compute the bytes of a tensor."""
    value = origin.whole().detach()
    if tuple(value.shape) != origin.shape:
        raise RuntimeError(f"got a tensor of shape {list(value.shape)}; need {list(origin.shape)}")
    value = value.to("cpu", origin.dtype).contiguous()
    found: memoryview = value.view(-1).view(torch.uint8).numpy().data
    return found
