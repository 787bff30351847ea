"""Hand-over: give the servers the policy's current weights, under a name that says how old."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from rlhf_cli.console import logger
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import InferenceServerError, RlhfError, first_line
from rlhf_cli.http_client import HTTPFailure, RefusedRequest, RetryableFailure, run_concurrently
from rlhf_cli.rollout.server.api import ServerAPI
from rlhf_cli.rollout.server.connection import Connection
from rlhf_cli.rollout.server.owner import FREE, Owner
from rlhf_cli.rollout.server.requests import Answer

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""

Kind = Literal["weights", "adapter"]


class Writer(Protocol):
    """Writes the policy's current weights to a new folder; all ranks call it together."""

    def __call__(self, folder: Path) -> None:
        """Write them.

        Raises:
            Exception: this process could not.
            RankFailed: another process could not.
        """


class WeightSync:
    """Hands the policy's weights over, and knows which weights answered.

    Whole weights replace the server's, with the requests in flight frozen around it; these go on
    with the new weights, and count as of the old. An adapter gets a new name, since a server keeps
    what it has cached for a name; requests in flight go on with the old one.

    Args:
        write: writes the policy's weights.
        kind: what is written.
        owner: this run.
        folder: for one folder of each version.
        ranks: the processes that train; rank 0 asks the servers.
        kept: versions before the current one that requests in flight may still use: the lag.
    """

    def __init__(
        self,
        write: Writer,
        kind: Kind,
        owner: Owner,
        folder: Path,
        *,
        ranks: Ranks = SINGLE_PROCESS,
        kept: int = 0,
    ) -> None:
        self.write, self.kind, self.owner, self.folder = write, kind, owner, folder
        self.ranks, self.kept = ranks, kept
        self.version: int | None = None
        self._written: list[int] = []
        self._changing: dict[str, threading.Lock] = defaultdict(threading.Lock)
        """Of each server: held while its weights change, which two threads must not do at once."""

    def hand_over(self, version: int, connections: Sequence[Connection]) -> None:
        """Write the weights and give them to all servers; every rank calls it.

        Args:
            version: nothing happens where the servers have it.
            connections: to all servers.

        Raises:
            InferenceServerError: the weights could not be written, or a server did not take them.
            RankFailed: another rank failed.
        """
        if version == self.version:
            return
        self.prepare(version)

        def give_all() -> None:
            def give(connection: Connection) -> None:
                connection.call(partial(self._give, connection.api, version), takes_slot=False)

            run_concurrently(give, connections, len(connections))
            self._forget_old(connections)

        self.ranks.run_on_main(give_all)
        self.version = version

    def write_start(self, folder: Path) -> None:
        """Write weights to start a server with; every rank calls it.

        Raises:
            InferenceServerError: the disk is full or cannot be written.
            RankFailed: another rank failed.
        """
        self.ranks.run_on_main(partial(self._make_room, folder))
        self._write(folder)

    def prepare(self, version: int) -> Path:
        """Write the weights of a version, unless they are; every rank calls it.

        Returns:
            Their folder.

        Raises:
            InferenceServerError: the disk is full or cannot be written.
            RankFailed: another rank failed.
        """
        folder = self._folder(version)
        if version in self._written:
            return folder
        self.ranks.run_on_main(partial(self._make_room, folder))
        self._write(folder)
        self._written.append(version)
        return folder

    def _write(self, folder: Path) -> None:
        try:
            self.write(folder)
        except RlhfError:
            raise
        except Exception as error:  # safetensors has its own kinds for a full disk
            shutil.rmtree(folder, ignore_errors=True)
            raise InferenceServerError(
                f"rollout.sync_folder: {folder}: the weights could not be written "
                f"({first_line(error)}). Free space there, or give another folder, and give the "
                "same command again"
            ) from error

    def _folder(self, version: int) -> Path:
        return self.folder / str(version)

    def _make_room(self, folder: Path) -> None:
        """Create the parent folder, and remove what is in the way."""
        if not self._written:  # what an earlier process of this run has left
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "weights" and not self.kept:  # nothing is in flight that may need them
            self._remove(self._written)
        shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, versions: Sequence[int]) -> None:
        for version in list(versions):
            shutil.rmtree(self._folder(version), ignore_errors=True)
            self._written.remove(version)

    def _give(self, api: ServerAPI, version: int) -> None:
        """Give a server the weights of a version."""
        with self._changing[api.origin]:
            self._load(api, version)

    def _load(self, api: ServerAPI, version: int) -> None:
        """Have a server load the weights of a version, which it may have already."""
        self.require_owned(api)
        name, folder = self.owner.name(version), self._folder(version)
        if self.kind == "weights":
            api.load_weights(folder, name)
            return
        try:
            api.load_adapter(name, folder)
        except RefusedRequest:
            if name not in api.facts(syncs=False, adapters=False).models:
                raise
        api.set_weight_version(name)

    def _forget_old(self, connections: Sequence[Connection]) -> None:
        """Unload adapters that no request uses any more, and remove their files."""
        old = self._written[: -1 - self.kept]
        for version in old if self.kind == "adapter" else []:
            for connection in connections:
                try:
                    connection.api.unload_adapter(self.owner.name(version))
                except HTTPFailure as error:
                    logger.info(f"{connection.origin}: an old adapter is still loaded ({error})")
        self._remove(old)

    def require_owned(self, api: ServerAPI) -> None:
        """Check that a server has not got the weights of another run.

        Raises:
            InferenceServerError: it has.
            HTTPFailure: it does not say.
        """
        name = api.weight_version()
        if self.owner.is_foreign(name):
            raise InferenceServerError(foreign_weights(api, name))

    def restore(self, api: ServerAPI) -> None:
        """Give a server that has failed the current weights again, if it has lost them.

        It may have newer ones: those of a hand-over that other servers have not completed.

        Raises:
            InferenceServerError: it has those of another run.
            HTTPFailure: it does not answer, or another process has to give them.
        """
        with self._changing[api.origin]:
            self.require_owned(api)
            found = self.owner.version(api.weight_version())
            if self.version is None or (found is not None and found >= self.version):
                return
            if not self.ranks.is_main:
                raise RetryableFailure("has other weights than this run's until rank 0 gives them")
            logger.info(f"{api.origin}: has other weights than this run's; handing them over again")
            self._load(api, self.version)

    def target(self, base: str) -> tuple[str, int]:
        """Name of the model to ask, and the version that an answer must have at least.

        Args:
            base: name of the server's model.
        """
        assert self.version is not None, "weights are handed over before the first request"
        if self.kind == "weights":
            return base, self.version
        return self.owner.name(self.version), self.version

    def version_of(self, answer: Answer, version: int) -> int:
        """Version of the oldest weights that an answer was sampled from.

        Args:
            answer: of a server.
            version: that it must have at least.

        Raises:
            RetryableFailure: they are not this run's, or older.
        """
        found = self.owner.version(answer.version)
        if found is None or found < version:
            raise RetryableFailure(
                f"answered with the weights {answer.version or 'without a name'}; need "
                f"{self.owner.name(version)}"
            )
        return version if self.kind == "adapter" else found

    def close(self, connections: Sequence[Connection]) -> None:
        """Give the servers free for other runs, as far as they answer, and remove the files.

        Requests that are still in flight fail, and get no weights for it.
        """
        version, self.version = self.version, None
        if self.ranks.is_main:
            for connection in connections if version is not None else []:
                self._set_free(connection.api)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _set_free(self, api: ServerAPI) -> None:
        try:
            if self.owner.version(api.weight_version()) is None:
                return
            for version in self._written if self.kind == "adapter" else []:
                api.unload_adapter(self.owner.name(version))
            api.set_weight_version(FREE)
            if self.kind == "weights":
                api.resume()  # after a hand-over that broke off
        except HTTPFailure as error:
            logger.info(f"{api.origin}: still has the name of this run's weights ({error})")


def foreign_weights(api: ServerAPI, name: str) -> str:
    """The line about a server that another run trains with."""
    return (
        f"{api.origin}: has the weights of another run ({name}); need a server for each run. End "
        "that run, or, if it has ended, free the server: curl -X POST "
        f"{api.client.url}/update_weight_version -H 'Content-Type: application/json' "
        f"""-d '{{"new_version": "{FREE}"}}'"""
    )


def choose_folder(given: str, owner: Owner) -> Path:
    """Folder for the weights of a run: below the given one, else in memory.

    Args:
        given: `rollout.sync_folder`.
        owner: this run.
    """
    parent = Path(given) if given else MEMORY
    if not given and not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        parent = Path(tempfile.gettempdir())
    return parent / f"rlhf-{owner.token}"
