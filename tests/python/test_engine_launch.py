"""Lines for llama.cpp over RPC and for vLLM: the plan's layers, in options that the engines document."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from sharding_cases import accelerators, cluster, strategies, two_hosts

from pshard import _core, read_model
from pshard.errors import EngineError
from pshard.launch.line import parse_launch_line
from pshard.sharding.engine_launch import launch
from pshard.sharding.sharding import plan_sharding
from pshard.sharding.types import ShardParameters

MIB = 1 << 20
GIB = 1 << 30
GPU = _core.LayerPlacement(_core.Where.pinned)


OPTIONS = json.loads((Path(__file__).parents[1] / "data" / "engine_options.json").read_text())


def documented(argv: tuple[str, ...]) -> bool:
    """Every option of a line is one that the engine's documentation names."""
    program = next(name for name in OPTIONS if list(argv[: len(name.split())]) == name.split())
    return all(word in OPTIONS[program]["options"] for word in argv if word.startswith("-") and not word[1:].isdigit())


def test_llama_cpp_lines_put_the_layers_where_the_plan_has_them(tmp_path: Path) -> None:
    name = "llama-3.3-70b:Q4_K_M"
    here = two_hosts(tmp_path, "rtx-3060-12g", "rtx-3060-12g")
    plan = plan_sharding(read_model(name), here)
    lines = launch(plan, "llama-rpc", name)
    servers, main = lines.lines[:-1], lines.lines[-1]
    assert [line.host for line in servers] == ["b"]
    assert servers[0].argv == ("ggml-rpc-server", "-H", "10.0.0.2", "-p", "50052", "-d", "CUDA0,CUDA1")
    assert all(documented(line.argv) for line in lines.lines)
    argv = list(main.argv)
    assert argv[argv.index("--rpc") + 1] == "10.0.0.2:50052"
    parse_launch_line(argv)
    names = argv[argv.index("-dev") + 1].split(",")
    shares = [float(share) for share in argv[argv.index("-ts") + 1].split(",")]
    pipeline = strategies(plan)["pipeline_parallel"]
    places = _core.layer_places(80, -1, shares)
    for index, (device, shard) in enumerate(zip(names, pipeline.shards, strict=True)):
        assert device.startswith("RPC" if shard.device.host == "b" else "CUDA")
        assert [i for i in range(80) if places[i] == _core.pinned_on(index)] == list(
            range(shard.first_layer, shard.last_layer + 1)
        )
    assert places[80] == _core.pinned_on(len(names) - 1)


def test_vllm_lines_carry_the_sizes_and_ray_addresses(tmp_path: Path) -> None:
    here = two_hosts(tmp_path, "rtx-3090-24g", "rtx-3090-24g")
    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), here, ShardParameters(users=8))
    assert plan.chosen is not None
    lines = launch(plan, "vllm", "llama")
    assert all(documented(line.argv) for line in lines.lines)
    if plan.chosen.strategy == "tensor_and_pipeline_parallel":
        head, worker, serve = lines.lines
        assert head.argv[:3] == ("ray", "start", "--head")
        assert worker.argv[2:4] == ("--address", head.argv[head.argv.index("--node-ip-address") + 1] + ":6379")
        assert serve.argv[serve.argv.index("--tensor-parallel-size") + 1] == "2"
        counts = [int(n) for n in dict(serve.environment)["VLLM_PP_LAYER_PARTITION"].split(",")]
        assert sum(counts) == 80
        assert {name for name, _ in serve.environment} <= set(OPTIONS["vllm serve"]["environment"])
    else:
        pytest.fail("this cluster is meant for ranks in hosts and stages across them")


def test_engines_refuse_what_they_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    from pshard.cli import main

    plan = plan_sharding(read_model("llama-3.3-70b:Q4_K_M"), cluster("rtx-4090-24g"))
    with pytest.raises(EngineError, match="pshard map"):
        launch(plan, "llama-rpc", "m")
    with pytest.raises(EngineError, match="a CPU has layers"):
        launch(plan, "vllm", "m")
    with pytest.raises(EngineError, match="of kind gaudi"):
        launch(plan_sharding(read_model("qwen3-0.6b:Q8_0"), accelerators("gaudi", 1, 1, 32)), "llama-rpc", "m")
    for engine in ("vllm", "llama-rpc"):
        line = ["shard", "llama-3.3-70b:Q4_K_M", "--devices", "rtx-4090-24g", "--ram", "128G"]
        assert main([*line, "--emit", engine]) == 1
        shown = capsys.readouterr()
        assert f"--emit {engine}" in shown.err
        assert "strategy  pipeline" in shown.out


def test_ray_places_copies_of_vllm_on_several_hosts(tmp_path: Path) -> None:
    name, here = "llama-3.1-8b:Q4_K_M", two_hosts(tmp_path, "rtx-3090-24g", "rtx-3090-24g")
    plan = plan_sharding(read_model(name), here, ShardParameters(users=16))
    copies = strategies(plan)["data_parallel"]
    lines = launch(dataclasses.replace(plan, chosen=copies, others=()), "vllm", name)
    assert all(documented(line.argv) for line in lines.lines)
    head, worker, serve = lines.lines
    assert (head.argv[:3], worker.argv[:2]) == (("ray", "start", "--head"), ("ray", "start"))
    argv = serve.argv
    assert argv[argv.index("--data-parallel-backend") + 1] == "ray"
    local = {shard.replica for shard in copies.shards if shard.device.host == "a"}
    assert int(argv[argv.index("--data-parallel-size-local") + 1]) == len(local) == copies.n_replicas // 2
    assert "--distributed-executor-backend" not in argv


def test_each_copy_of_vllm_takes_its_own_users() -> None:
    name, here = "llama-3.1-8b:Q4_K_M", cluster("2xrtx-4090-24g")
    plan = plan_sharding(read_model(name), here, ShardParameters(users=9, type_k="q8_0"))
    copies = strategies(plan)["data_parallel"]
    assert copies.users_of_replicas == (5, 4)
    lines = launch(dataclasses.replace(plan, chosen=copies, others=()), "vllm", name)
    argv = lines.lines[-1].argv
    assert argv[argv.index("--max-num-seqs") + 1] == "5"
    assert argv[argv.index("--data-parallel-size") + 1] == "2"
    assert any("q8_0 (K) and f16 (V)" in note for note in lines.notes)
