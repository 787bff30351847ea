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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import modeling_utils

from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.models.stored_file import DTYPES
from rlhf_cli.models.stored_origin import Origin
from rlhf_cli.models.stored_tensor import StoredTensor, read
from rlhf_cli.models.stored_weights import exchanged

SHARD = "4GB"
"""Largest weight file."""

ALIGNMENT = 8
"""Tensors begin at a multiple of these bytes."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

ORDER = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Types in the order of safetensors, which writes the last first."""

Whole = Callable[[str], Tensor]
"""Name of a tensor -> its values; under sharding all ranks call it, in the same order."""


@dataclass(eq=False)
class Gathering:
    """Gathers tensors when they are written, each once.

    Attributes:
        gather: gives the values of a tensor.
        uses: how often the values are still needed, by name.
        kept: values that a later tensor is made of too.
        taken: uses until now.
        is_broken: whether `gather` failed, so that the processes are no longer at the same tensor.
    """

    gather: Whole
    uses: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Tensor] = field(default_factory=dict)
    taken: int = 0
    is_broken: bool = False

    def take(self, name: str) -> Tensor:
        """Gather the values of a tensor, where none before this needed them."""
        found = self.kept.pop(name, None)
        value = self._gather(name) if found is None else found
        self.taken += 1
        self.uses[name] -= 1
        if self.uses[name] > 0:
            self.kept[name] = value
        return value

    def _gather(self, name: str) -> Tensor:
        self.is_broken = True
        value = self.gather(name)
        self.is_broken = False
        return value


@dataclass(frozen=True, eq=False)
class Gathered(Origin):
    """A tensor that is gathered when it is written.

    Attributes:
        name: of the tensor.
        gathering: gives its values.
    """

    name: str
    gathering: Gathering

    def whole(self) -> Tensor:
        """Gather the values."""
        return self.gathering.take(self.name)


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
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Write a model for `from_pretrained`: its configs, and its weights one by one.

    Args:
        model: a transformers model; parameters may be shards, or on the meta device.
        folder: is made; only the main process writes into it.
        dtype: of the floating-point weights that are parameters.
        whole: gives the values of a parameter or buffer by its name in the model; by default those
            that the model has, which may be in their files.
        ranks: the processes that call this together; rank 0 writes.

    Raises:
        OSError: this process could not write a file.
        RankFailed: another process failed.
    """
    own = model.state_dict()
    gathering = Gathering(whole or (lambda name: read(own[name])))
    failed: Exception | None = None
    with contextlib.ExitStack() as opened:
        try:
            planned = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            files = _plan(model, planned, own, dtype, gathering)
            if ranks.is_main:
                shutil.copytree(planned, folder, dirs_exist_ok=True)
        except Exception as error:
            failed = error
        ranks.raise_together(failed)  # before the first weight is gathered
    ranks.raise_together(_write_files(files, folder, gathering, ranks.is_main))


def _write_files(
    files: list[WeightFile], folder: Path, gathering: Gathering, is_main: bool
) -> Exception | None:
    """Write files in one process; all take part in gathering, also when a file cannot be written.

    Returns:
        The first error, which must not be raised while other processes gather.
    """
    failed: Exception | None = None
    for file in files:
        before = gathering.taken
        if is_main and failed is None:
            try:
                with (folder / file.name).open("wb") as handle:
                    write_safetensors(handle, file)
            except Exception as error:
                if gathering.is_broken:
                    raise
                failed = error
        leaves = [leaf for origin in _in_order(file) for leaf in _leaves(origin)]
        for leaf in leaves[gathering.taken - before :]:
            leaf.whole()
    return failed


def _plan(
    model: Any, folder: Path, own: Mapping[str, Tensor], dtype: torch.dtype, gathering: Gathering
) -> list[WeightFile]:
    """Let transformers write all but the weights, and list the files of these."""
    files: list[WeightFile] = []

    def record(tensors: Any, filename: Any, metadata: Any = None) -> None:
        origins = {name: tensor.origin for name, tensor in tensors.items()}
        files.append(WeightFile(Path(filename).name, origins, dict(metadata or {})))

    stored = _stored(model, own, dtype, gathering)
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
                gathering.uses[leaf.name] += 1
    return files


def _stored(
    model: Any, own: Mapping[str, Tensor], dtype: torch.dtype, gathering: Gathering
) -> dict[str, Tensor]:
    """Make a stored tensor for each entry of a state dict; parameters get the dtype of the file."""
    params = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    meta = torch.device("meta")  # transformers then finds tied weights by the model's parameters
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        is_cast = name in params and tensor.is_floating_point()
        found_dtype = dtype if is_cast else tensor.dtype
        origin = Gathered(tuple(tensor.shape), found_dtype, name, gathering)
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
