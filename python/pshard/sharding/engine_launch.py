"""A sharding plan as launch lines of engines that run on several machines: llama.cpp with RPC, vLLM with Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pshard.errors import EngineError
from pshard.mapping.llama_map import LLAMA_CPP_NAMES

if TYPE_CHECKING:
    from pshard.cluster.cluster import Device
    from pshard.sharding.types import Priced, Shard, ShardingPlan

RPC_PORT = 50052  # the default of llama.cpp's RPC server
RAY_PORT = 6379  # Ray's


@dataclass(frozen=True, slots=True)
class Line:
    """One command on one host; `environment` in front of it."""

    host: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """The lines of a launch, in the order in which they are started, and what to know about them."""

    engine: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def launch(plan: ShardingPlan, engine: str, model: str) -> Launch:
    """Write the launch lines of a plan.

    Parameters
    ----------
    plan : ShardingPlan
    engine : {"llama-rpc", "vllm"}
    model : str
        What the engine is to load.

    Returns
    -------
    Launch

    Raises
    ------
    EngineError
        The engine can run none of the plan's strategies; the message says why.
    """
    return _LlamaRpc(plan, model).launch() if engine == "llama-rpc" else _Vllm(plan, model).launch()


def _address(plan: ShardingPlan, host: str) -> str:
    """Where other hosts reach a host: its address, else its name."""
    return plan.cluster.host(host).address or host


def _of_kind(plan: ShardingPlan, kinds: Sequence[str]) -> Priced | None:
    candidates = [] if plan.chosen is None else [plan.chosen, *plan.others]
    return next((priced for priced in candidates if priced.strategy in kinds), None)


class _LlamaRpc:
    """llama.cpp splits whole layers over its own devices and those of RPC servers: one pipeline."""

    def __init__(self, plan: ShardingPlan, model: str) -> None:
        self._plan = plan
        self._model = model
        self._main = plan.cluster.hosts[0].name

    def launch(self) -> Launch:
        priced = _of_kind(self._plan, ("none", "pipeline_parallel"))
        if priced is None:
            message = (
                "--emit llama-rpc: llama.cpp gives whole layers to devices, and no such strategy is possible here."
            )
            raise EngineError(message)
        notes = []
        if priced is not self._plan.chosen:
            notes.append(f"llama.cpp gives devices whole layers: this is the {priced.description}.")
        shards = priced.shards
        used = {shard.device.host for shard in shards}
        remote = [host for host in self._plan.cluster.host_names if host in used and host != self._main]
        local_cpu = next((shard for shard in shards if shard.device.is_cpu and shard.device.host == self._main), None)
        if local_cpu is not None:
            message = (
                f"--emit llama-rpc: {local_cpu.device.name} has layers, and llama.cpp gives its own CPU the first "
                "ones; `pshard map` writes such a line."
            )
            raise EngineError(message)
        lines: list[Line] = []
        names: dict[str, str] = {}
        with_layers = {shard.device.name for shard in shards}
        for host in remote:
            own = [device for device in self._plan.cluster.devices_of(host) if device.name in with_layers]
            for device in own:
                names[device.name] = f"RPC{len(names)}"
            lines.append(
                Line(
                    host,
                    (
                        "ggml-rpc-server", "-H", _address(self._plan, host), "-p", str(RPC_PORT),
                        "-d", ",".join(self._local_name(device) for device in own),
                    ),
                )
            )  # fmt: skip
        for shard in shards:
            names.setdefault(shard.device.name, self._local_name(shard.device))
        lines.append(Line(self._main, tuple(self._server(shards, names, remote))))
        if remote:
            notes.append("Start the RPC servers first, on a network that nobody else can reach: they check nobody.")
        return Launch("llama.cpp", tuple(lines), tuple(notes))

    def _server(self, shards: Sequence[Shard], names: dict[str, str], remote: Sequence[str]) -> list[str]:
        parameters, model = self._plan.parameters, self._plan.model
        argv = ["llama-server", "-m", self._model]
        if remote:
            argv += ["--rpc", ",".join(f"{_address(self._plan, host)}:{RPC_PORT}" for host in remote)]
        counts = [shard.last_layer - shard.first_layer + 1 for shard in shards]
        counts[-1] += 1 + model.n_layer_nextn  # the output, and layers that are not loaded, count as layers
        argv += ["-dev", ",".join(names[shard.device.name] for shard in shards)]
        argv += ["-ts", ",".join(map(str, counts))] if len(shards) > 1 else []
        argv += ["-ngl", "all", "--fit", "off", "-c", str(parameters.max_seq_len * parameters.users)]
        argv += ["-np", str(parameters.users), "-ub", str(parameters.n_ubatch), "-fa", "on"]
        argv += ["-ctk", parameters.type_k] if parameters.type_k != "f16" else []
        argv += ["-ctv", parameters.type_v] if parameters.type_v != "f16" else []
        return argv

    def _local_name(self, device: Device) -> str:
        """Return llama.cpp's name of a device on its own host, numbered by kind."""
        if device.is_cpu:
            return "CPU"
        prefix = LLAMA_CPP_NAMES.get(device.kind)
        if prefix is None:
            message = f"--emit llama-rpc: llama.cpp cannot use {device.name}, of kind {device.kind}."
            raise EngineError(message)
        same = [
            other.name
            for other in self._plan.cluster.devices_of(device.host)
            if LLAMA_CPP_NAMES.get(other.kind) == prefix
        ]
        return f"{prefix}{same.index(device.name)}"


class _Vllm:
    """vLLM divides evenly: ranks of one size in every stage; stages may have different numbers of layers."""

    def __init__(self, plan: ShardingPlan, model: str) -> None:
        self._plan = plan
        self._model = model

    def launch(self) -> Launch:
        candidates = [] if self._plan.chosen is None else [self._plan.chosen, *self._plan.others]
        priced = next((priced for priced in candidates if self._why_not(priced) == ""), None)
        if priced is None:
            reasons = "; ".join(f"{p.description}: {self._why_not(p)}" for p in candidates) or "there is no plan"
            message = f"--emit vllm: vLLM can run none of the strategies ({reasons})."
            raise EngineError(message)
        notes = []
        if priced is not self._plan.chosen and self._plan.chosen is not None:
            notes.append(
                f"vLLM cannot run the {self._plan.chosen.description} ({self._why_not(self._plan.chosen)}): this is "
                f"the {priced.description}."
            )
        hosts = list(dict.fromkeys(shard.device.host for shard in priced.shards))
        lines = []
        head = _address(self._plan, hosts[0])
        if len(hosts) > 1:
            start = ("ray", "start", "--head", "--node-ip-address", head, "--port", str(RAY_PORT))
            lines.append(Line(hosts[0], start))
            lines += [Line(host, ("ray", "start", "--address", f"{head}:{RAY_PORT}")) for host in hosts[1:]]
        parameters = self._plan.parameters
        argv = ["vllm", "serve", self._model, "--tensor-parallel-size", str(priced.n_ranks)]
        argv += ["--pipeline-parallel-size", str(priced.n_stages)]
        hosts_of = [{s.device.host for s in priced.shards if s.replica == i} for i in range(priced.n_replicas)]
        spans_hosts = any(len(of_copy) > 1 for of_copy in hosts_of)
        if priced.n_replicas > 1:
            argv += ["--data-parallel-size", str(priced.n_replicas)]
        if priced.n_replicas > 1 and len(hosts) > 1:
            # Ray places the copies; where each is on one host, so many are on the host of the API server.
            argv += ["--data-parallel-backend", "ray"]
            local = sum(of_copy == {hosts[0]} for of_copy in hosts_of)
            argv += [] if spans_hosts else ["--data-parallel-size-local", str(local)]
        if spans_hosts:
            argv += ["--distributed-executor-backend", "ray"]
        argv += ["--max-model-len", str(parameters.max_seq_len)]
        # Each engine of a data-parallel launch has its own scheduler, and so its own limit.
        argv += ["--max-num-seqs", str(max(priced.users_of_replicas))]
        stages = [shard for shard in priced.shards if shard.rank == 0 and shard.replica == 0]
        counts = [shard.last_layer - shard.first_layer + 1 for shard in stages]
        uneven = len(set(counts)) > 1
        environment = [("VLLM_PP_LAYER_PARTITION", ",".join(map(str, counts)))] if uneven else []
        environment += [("VLLM_RAY_DP_PACK_STRATEGY", "span")] if priced.n_replicas > 1 and spans_hosts else []
        lines.append(Line(hosts[0], tuple(argv), tuple(environment)))
        if (parameters.type_k, parameters.type_v) != ("f16", "f16"):
            notes.append(
                f"The plan's KV cache is {parameters.type_k} (K) and {parameters.type_v} (V); vLLM has types of "
                "its own (--kv-cache-dtype), of other sizes."
            )
        notes.append("vLLM loads its own formats: name the model's repository; bytes and speeds here are a GGUF's.")
        return Launch("vLLM", tuple(lines), tuple(notes))

    def _why_not(self, priced: Priced) -> str:
        """Say why vLLM cannot run a strategy; empty where it can."""
        if any(shard.device.is_cpu for shard in priced.shards):
            return "a CPU has layers"
        if len({shard.n_ranks for shard in priced.shards}) > 1:
            return "its stages have different numbers of ranks"
        if any(abs(shard.weight_share * shard.n_ranks - 1) > 0.02 for shard in priced.shards):
            return "its ranks have different sizes"
        sizes = {
            tuple((s.stage, s.first_layer) for s in priced.shards if s.replica == replica)
            for replica in range(priced.n_replicas)
        }
        return "its copies are cut differently" if len(sizes) > 1 else ""
