"""Configuration of rollouts by inference servers: the group `rollout`."""

import ipaddress
import shlex
from dataclasses import dataclass, fields
from string import Formatter
from typing import Annotated, Literal
from urllib.parse import urlsplit

from rlhf_cli.config.references import public_url
from rlhf_cli.config.schema import Ge, Gt, OutputPath, RuntimeOnly, Unit
from rlhf_cli.rollout.config import SamplingConfig

PLACEHOLDERS = ("model", "port", "name")
"""What `start` may hold in braces: folder of the model, port to listen on, name to serve it by."""

STARTERS = ("vllm", "sglang")
"""Servers whose command is known."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank."""

ADVICE = "Try rollout.server=http://127.0.0.1:8000, or rollout.start=vllm"


@dataclass(kw_only=True)
class ServerConfig:
    """Inference servers that write the responses, in place of the model in this process."""

    server: Annotated[str | list[str], RuntimeOnly()] = ""
    """Address of a vLLM or SGLang server, as `http://127.0.0.1:8000`, or several in a list, which
    share the prompts. Empty: this process writes the responses."""

    start: Annotated[str, RuntimeOnly()] = ""
    """Start a server for this run and stop it at the end: `vllm`, `sglang`, or a command, in which
    `{model}`, `{port}` and `{name}` are filled in, or appended as options of vLLM where it has none
    of them. Its output goes to `server.log` in the run folder."""

    token: Annotated[str, RuntimeOnly()] = ""
    """Key that the servers ask for (`Authorization: Bearer`), as `${oc.env:NAME}`. Needed for a
    server on another machine."""

    timeout: Annotated[float, Gt(0), Unit("seconds"), RuntimeOnly()] = 600.0
    """Time within which a response must be complete."""

    deadline: Annotated[float, Gt(0), Unit("seconds"), RuntimeOnly()] = 300.0
    """Time within which a server that fails must answer again; then the run ends with a
    checkpoint. One that is started may take 15 minutes, or this where it is longer."""

    concurrency: Annotated[int, Ge(1), Unit("requests"), RuntimeOnly()] = 256
    """Requests in flight at once, over all servers; of each process."""

    @property
    def addresses(self) -> list[str]:
        """Addresses of the servers, without a slash at the end; none where they are started."""
        given = [self.server] if isinstance(self.server, str) else self.server
        return [address.rstrip("/") for address in given if address]

    @property
    def is_used(self) -> bool:
        """Whether servers write the responses."""
        return bool(self.addresses or self.start)

    def problems(self) -> list[str]:
        """Config errors, one line each."""
        if not self.is_used:
            return self._unread()
        found = []
        if self.addresses and self.start:
            found.append("rollout.start: given beside rollout.server; need one of the two")
        if self.start and self.token:
            found.append(
                "rollout.token: given with rollout.start, whose server gets a key of its own; "
                "need it left out"
            )
        if not (self.token.isascii() and self.token.isprintable()):
            found.append(
                "rollout.token: has characters that no header can have; need printable ASCII"
            )
        for address in self.addresses:
            found += self._address_problems(address)
        for address in sorted({one for one in self.addresses if self.addresses.count(one) > 1}):
            found.append(f"rollout.server: got {public_url(address)} twice; need each address once")
        return [*found, *_command_problems(self.start)]

    def _unread(self) -> list[str]:
        """Errors of keys that nothing reads without a server."""
        return [
            f"rollout.{item.name}: given without rollout.server or rollout.start, without which "
            f"it has no effect. {ADVICE}"
            for item in fields(self)
            if item.name not in ("server", "start") and getattr(self, item.name) != item.default
        ]

    def _address_problems(self, address: str) -> list[str]:
        shown = public_url(address)
        try:
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            usable = usable and address.isascii() and " " not in address
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment:
            return [f"rollout.server: got {shown}; need an address as http://127.0.0.1:8000"]
        if parts.username is not None:
            return [
                f"rollout.server: got a user before @{shown.partition('://')[2]}; need the key in "
                "rollout.token. Try rollout.token='${oc.env:NAME}'"
            ]
        if not self.token and not is_loopback(parts.hostname or ""):
            return [
                f"rollout.token: none given for {shown}; need the server's key for another machine "
                "than this one. Try rollout.token='${oc.env:NAME}', and start the server with "
                "--api-key"
            ]
        return []


def sampling_problems(sampling: SamplingConfig) -> list[str]:
    """Sampling keys that servers do not follow as this process does, one line each."""
    found = []
    if sampling.cuda_graphs:
        found.append(
            "sampling.cuda_graphs: got true with a server, which has graphs of its own. "
            "Try sampling.cuda_graphs=false"
        )
    if sampling.min_new_tokens and sampling.stop:
        found.append(
            "sampling.min_new_tokens: given with sampling.stop and a server, which looks for stop "
            "strings only after so many tokens; need one of the two. Try sampling.min_new_tokens=0"
        )
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _command_problems(command: str) -> list[str]:
    """Errors of a command that `start` gives."""
    if not command or command in STARTERS:
        return []
    try:
        words = shlex.split(command)
        names = [name for word in words for _, name, _, _ in Formatter().parse(word) if name]
    except ValueError as error:
        return [f"rollout.start: got {command}; need a command as a shell reads it ({error})"]
    unknown = [name for name in names if name not in PLACEHOLDERS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        return [f"rollout.start: got {{{unknown[0]}}} in the command; need one of {known}"]
    return []


@dataclass(kw_only=True)
class RolloutConfig(ServerConfig):
    """Rollouts of training by inference servers, which get the policy's weights each step."""

    sync: Literal["auto", "adapter", "weights", "nccl"] = "auto"
    """How the servers get new weights: `adapter` loads the trained adapter under a new name,
    `weights` reloads all weights, with adapters merged into them. `auto` takes `adapter` where one
    is trained that the server can load, else `weights`."""

    sync_folder: Annotated[str, OutputPath(), RuntimeOnly()] = ""
    """Folder that the servers read new weights from; must be the same on their machines. Empty: one
    of the run's own in memory (/dev/shm), else in the temporary folder."""

    check_steps: Annotated[int, Ge(0), Unit("steps"), RuntimeOnly()] = 10
    """Compare the servers' log-probs with the policy's in the first step and every this many; 0
    never does."""

    check_bound: Annotated[float, Gt(0), Unit("nats"), RuntimeOnly()] = 0.2
    """Largest mean difference of a token's log-prob between server and policy; above it the run
    ends. With bf16 in both it was 0.04 for SmolLM2-135M on a CPU."""

    correction: Literal["auto", "none", "token", "sequence"] = "auto"
    """Importance weights against the difference between the server's and the policy's
    probabilities: of each `token`, or of the whole response (`sequence`). `auto` is `token` in ppo
    and grpo, unless `rollout_logprobs=reuse`, and in distill with a server as teacher."""

    correction_cap: Annotated[float, Gt(1)] = 3.0
    """Largest importance weight; larger ones are cut to it."""

    correction_mask: bool = False
    """Drop tokens or responses with a larger weight than `correction_cap`, in place of cutting the
    weight."""

    lag: Annotated[int, Ge(0), Unit("steps")] = 0
    """Rollouts that are generated while earlier ones are trained on, by weights up to this many
    steps older; 0 is on-policy."""

    @property
    def corrects(self) -> Literal["none", "token", "sequence"]:
        """What gets an importance weight: each `token`, or whole responses (`sequence`)."""
        if self.correction == "auto":
            return "token" if self.is_used else "none"
        return self.correction

    def problems(self) -> list[str]:
        """Config errors, one line each."""
        found = super().problems()
        if not self.is_used:
            return found
        default = RolloutConfig()
        found += self._folder_problems()
        if self.sync == "nccl":
            found.append(_NO_NCCL)
        if not self.check_steps and self.check_bound != default.check_bound:
            found.append(
                "rollout.check_bound: given with rollout.check_steps=0, which compares nothing. "
                f"Try rollout.check_steps={default.check_steps}"
            )
        if self.correction == "none":
            found += self.unweighted_problems(
                "rollout.correction=none, which weighs nothing. Try rollout.correction=token"
            )
        return found

    def unweighted_problems(self, why: str) -> list[str]:
        """Errors of keys of importance weights in a run that computes none, one line each.

        Args:
            why: what the keys are given with, and what to do.
        """
        default = RolloutConfig()
        return [
            f"rollout.{name}: given with {why}"
            for name in ("correction_cap", "correction_mask")
            if getattr(self, name) != getattr(default, name)
        ]

    def _folder_problems(self) -> list[str]:
        """Errors of servers on other machines, which read no folder of this one's memory."""
        if self.sync_folder:
            return []
        hosts = {one: _host(one) for one in self.addresses}
        return [
            f"rollout.sync_folder: none given for {public_url(address)}; need a folder that both "
            "machines see under the same path. Try rollout.sync_folder=/SHARED/FOLDER"
            for address, host in hosts.items()
            if host and not is_loopback(host)
        ]


def _host(address: str) -> str:
    """Host of an address; empty where it is none."""
    try:
        parts = urlsplit(address)
        return (parts.hostname or "") if parts.port != 0 else ""
    except ValueError:
        return ""


_NO_NCCL = (
    "rollout.sync: got nccl, which is not supported; need adapter or weights. "
    "Try rollout.sync=weights, whose folder is in memory"
)
