"""Writing of checkpoints: by all ranks, aside, and renamed when every rank's files are complete.

Each rank writes and flushes its files into `step-000200.tmp`. When all ranks agree that theirs are
written, rank 0 adds the index and the state, and renames the folder. A crash before that leaves the
checkpoint before.

With `train.async_save` the tensors are copied to memory of the host, and a thread of each rank
writes the copies while training goes on. The thread makes no collective calls: after each step the
ranks ask each other whether all threads are done, and rank 0 then completes the checkpoint. A new
one is begun when the one before is complete.
"""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.distributed.shards import ShardLayout, whole
from rlhf_cli.errors import CheckpointError, RankFailed
from rlhf_cli.runs import lock
from rlhf_cli.runs.digest import hash_file
from rlhf_cli.runs.folder import list_checkpoints
from rlhf_cli.train.checkpoint import FOLDER, checkpoint_name, latest_checkpoint, reason
from rlhf_cli.train.checkpoint_files import (
    Own,
    WrittenFiles,
    copy_to_host,
    flush_entries,
    flush_file,
    select_own,
    write_own,
)
from rlhf_cli.train.checkpoint_index import FORMAT, INDEX, RNG, STATE, IndexBuilder
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.rng_state import RngState, read_rng_state


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        step: optimizer steps done.
        optimizer: holds the fp32 masters and moments.
        state: JSON values of everything else: step source, metrics, fingerprint.
        tensors: tensors of the stage.
        layouts: of sharded `tensors`; the others are whole.
    """

    step: int
    optimizer: MasterAdamW
    state: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    layouts: Mapping[str, ShardLayout] = field(default_factory=dict)

    def own(self, ranks: Ranks) -> Own:
        """What this rank writes; of the stage's tensors rank 0 writes the whole ones."""
        layouts = {n: self.layouts.get(n, whole(tensor)) for n, tensor in self.tensors.items()}
        layouts = {
            n: replace(of, writes=ranks.is_main if of.is_whole else of.writes)
            for n, of in layouts.items()
        }
        return select_own(self.optimizer, self.tensors, layouts)


class _Save:
    """One checkpoint on its way to the disk, as one rank sees it.

    Args:
        out: the run folder.
        content: what is saved.
        own: what this rank writes of it.
        writers: per rank, whether it writes any files.
        rng: random states of all ranks.
        keep_step: step whose checkpoint is not dropped, or None.
    """

    def __init__(
        self,
        out: Path,
        content: Checkpoint,
        own: Own,
        writers: list[bool],
        rng: list[RngState],
        keep_step: int | None,
    ) -> None:
        self.folder, self.own, self.writers, self.rng = out / FOLDER, own, writers, rng
        self.final = self.folder / checkpoint_name(content.step)
        self.partial = self.folder / f"{self.final.name}.tmp"
        self.keep_step = keep_step
        self.state = json.dumps(  # now: what it holds may change while a thread writes
            {
                **content.state,
                "format": FORMAT,
                "step": content.step,
                "rng": [of_rank.values for of_rank in rng],
            }
        )
        self.written: WrittenFiles | None = None
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Make an empty folder to write into, and remove what a killed run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob("step-*.tmp"), *self.folder.glob("step-*.old")):
            shutil.rmtree(left, ignore_errors=True)
        self.partial.mkdir()

    def write(self, rank: int) -> None:
        """Write this rank's files; an error is kept in `error`."""
        number, count = sum(self.writers[:rank]), sum(self.writers)
        try:
            if self.own:
                self.partial.mkdir(parents=True, exist_ok=True)  # seen by all clients of a share
            self.written = write_own(self.partial, self.own, number, count)
        except Exception as error:
            self.error = error
            self.written = WrittenFiles(error=f"{socket.gethostname()}: {reason(error)}")
        self.own = {}

    def start(self, rank: int) -> None:
        """Write this rank's files in a thread."""
        self._thread = threading.Thread(
            target=self.write, args=(rank,), name="rlhf-checkpoint", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def complete(self, written: list[WrittenFiles]) -> None:
        """Write index, state and random states, and rename the folder.

        Args:
            written: of all ranks.
        """
        builder, sha256 = IndexBuilder(), dict[str, str]()
        for of_rank in written:
            of_rank.add_to(builder)
            sha256 |= of_rank.sha256
        self._require_shared(sha256)
        states = {
            f"{rank}/{name}": tensor
            for rank, of_rank in enumerate(self.rng)
            for name, tensor in of_rank.tensors.items()
        }
        save_file(states, self.partial / RNG)
        (self.partial / STATE).write_text(self.state, encoding="utf-8")
        sha256 |= {name: hash_file(self.partial / name) for name in (RNG, STATE)}
        (self.partial / INDEX).write_text(builder.build(sha256).to_json(), encoding="utf-8")
        for name in (RNG, STATE, INDEX):
            flush_file(self.partial / name)
        flush_entries(self.partial)
        _remove(self.final)
        self.partial.rename(self.final)
        flush_entries(self.folder)

    def _require_shared(self, files: Mapping[str, str]) -> None:
        for name in files:
            if not (self.partial / name).is_file():
                raise ValueError(
                    f"{name} was written by another process and is not in this folder; "
                    "output_dir must be on a file system that all machines share"
                )


class CheckpointWriter:
    """Writes the checkpoints of a run; all ranks call its methods together.

    Args:
        out: the run folder.
        keep: number of checkpoints to keep, the newest included.
        ranks: ranks of the run.
        background: whether threads write, from copies of the tensors in memory of the host.
    """

    def __init__(
        self, out: Path, keep: int, ranks: Ranks = SINGLE_PROCESS, *, background: bool = False
    ) -> None:
        self.out, self.keep, self.ranks, self.background = out, keep, ranks, background
        self._pending: _Save | None = None

    def save(self, content: Checkpoint, keep_step: int | None = None) -> None:
        """Write `checkpoints/step-<step>` and delete the oldest beyond `keep`.

        In the background it is only begun, after the one before is complete.

        Args:
            content: what is saved.
            keep_step: step whose checkpoint is never dropped, or None.

        Raises:
            CheckpointError: it, or the one before, could not be written, or another process took
                the folder over; the checkpoints before it stand.
            RankFailed: on ranks other than 0 and the first that failed, in the same cases.
        """
        self.wait()
        save = self._begin(content, keep_step)
        if self.background:
            save.own = copy_to_host(save.own)
            save.start(self.ranks.rank)
            self._pending = save
        else:
            save.write(self.ranks.rank)
            self._complete(save)

    def check(self) -> None:
        """Complete a save in the background whose files are all written; call it after each step.

        Raises:
            CheckpointError: as `save`.
            RankFailed: as `save`.
        """
        if self._pending is None:
            return
        own = self._pending.written
        running, failed = int(own is None), int(own is not None and bool(own.error))
        found = torch.tensor([running, failed])
        self.ranks.all_reduce(found)
        if not found[0] or found[1]:
            self.wait()

    def wait(self) -> None:
        """Wait for a save in the background, and complete it.

        Raises:
            CheckpointError: as `save`.
            RankFailed: as `save`.
        """
        save, self._pending = self._pending, None
        if save is not None:
            save.join()
            self._complete(save)

    def _begin(self, content: Checkpoint, keep_step: int | None) -> _Save:
        rng, own = read_rng_state(), content.own(self.ranks)
        tensors = self.ranks.all_gather_tensors(rng.tensors)
        values = self.ranks.all_gather_json(rng.values)
        states = [RngState(*one) for one in zip(tensors, values, strict=True)]
        writers = self.ranks.all_gather_json(bool(own))
        save = _Save(self.out, content, own, writers, states, keep_step)

        def prepare() -> None:
            lock.require_owned(self.out)
            try:
                save.prepare()
            except OSError as error:
                raise self._failed(save, reason(error)) from error

        self.ranks.run_on_main(prepare)
        return save

    def _complete(self, save: _Save) -> None:
        """Complete a checkpoint whose files this rank has written, if all ranks have."""
        assert save.written is not None
        every = [WrittenFiles(**one) for one in self.ranks.all_gather_json(asdict(save.written))]
        failed = {rank: one.error for rank, one in enumerate(every) if one.error}
        if failed:
            self._give_up(save, failed)

        def complete() -> None:
            lock.require_owned(self.out)
            try:
                save.complete(every)
            except (OSError, SafetensorError, ValueError) as error:
                raise self._failed(save, reason(error)) from error
            self._drop_old(save.keep_step)

        self.ranks.run_on_main(complete)

    def _give_up(self, save: _Save, failed: Mapping[int, str]) -> None:
        rank, why = next(iter(failed.items()))
        if not self.ranks.is_main and self.ranks.rank != rank:
            raise RankFailed(f"rank {rank} could not write its files of the checkpoint ({why})")
        if self.ranks.world_size == 1:
            why = why.partition(": ")[2]
        else:
            others = f", and {len(failed) - 1} more ranks" if len(failed) > 1 else ""
            why = f"rank {rank} on {why}{others}"
        raise self._failed(save, why) from save.error

    def _failed(self, save: _Save, why: str) -> CheckpointError:
        if self.ranks.is_main:
            shutil.rmtree(save.partial, ignore_errors=True)
        last = latest_checkpoint(self.out)
        stands = f"{last.name} still stands" if last else "there is none before it"
        return CheckpointError(
            f"{save.final}: the checkpoint could not be written ({why}); {stands}. "
            "Free disk space or choose another output_dir, then give the same command again"
        )

    def _drop_old(self, keep_step: int | None) -> None:
        for old in list_checkpoints(self.out)[: -self.keep]:
            if keep_step is None or old.name != checkpoint_name(keep_step):
                _remove(old)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, renamed first: a half-deleted one must not look complete."""
    if folder.exists():
        doomed = folder.with_suffix(".old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
