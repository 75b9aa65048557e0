"""Maps: nothing overflows, the fastest is the fastest, and llama.cpp's flags say the same."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import oracle
import projector_cases
import pytest
from msgspec.structs import replace

from pshard import _core, estimate_memory, read_model
from pshard.cluster.cluster import Cluster
from pshard.cluster.device_list import parse_devices
from pshard.errors import NoFeasiblePlanError, SettingError
from pshard.fleet.device_speeds import device_speeds
from pshard.fleet.usable_devices import reserve_bytes
from pshard.launch.line import parse_launch_line
from pshard.mapping.device_map import MapParameters, map_model
from pshard.mapping.llama_map import llama_placement
from pshard.mapping.problem import MapProblem, Run, is_looked_up_on_gpu
from pshard.mapping.types import Goal, LayerMap
from pshard.memory.launch_memory import line_memory

MIB = 1 << 20
GIB = 1 << 30


def cluster(text: str, ram: str = "64G") -> Cluster:
    """Devices of one host; "cpu": a reference host without any."""
    here = parse_devices("rtx-4060-8g" if text == "cpu" else text, ram=ram)
    return replace(here, devices=here.devices[-1:], links=()) if text == "cpu" else here


def value(layers: LayerMap, load: str) -> float:
    found = layers.slowest_seconds if load == "pipelined" else layers.seconds
    assert found is not None
    return found


def check_layers(layers: LayerMap, n_layer: int) -> None:
    """Every layer once, in order, and no device beyond what it may hold."""
    by_name = {mapped.device.name: mapped for mapped in layers.devices}
    done = 0
    for name in layers.order:
        assert by_name[name].first_layer == done
        done += by_name[name].n_layer
    assert done == n_layer == sum(layers.counts)
    for mapped in layers.devices:
        if mapped.n_layer:
            assert mapped.used_bytes <= mapped.capacity_bytes


@pytest.mark.parametrize("goal", ["memory", "decode", "prefill"])
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("llama-3.3-70b:Q4_K_M", "rtx-4090-24g,rtx-3060-12g"),
        ("llama-3.3-70b:Q4_K_M", "rtx-3060-12g,rtx-4060-8g,rtx-4090-24g,rtx-3090-24g"),
        ("qwen3-30b-a3b:Q4_K_M", "rtx-4060-8g,rtx-3060-12g"),
        ("gemma-3-27b:Q4_K_M", "rtx-4060-8g,rtx-4060-8g"),
        ("qwen3-0.6b:Q8_0", "rtx-4060-8g,rtx-4060-8g"),
        ("falcon-h1-7b:Q4_K_M", "cpu"),
    ],
)
def test_no_device_overflows_and_no_speed_map_loses_to_filling_in_order(name: str, devices: str, goal: Goal) -> None:
    model = read_model(name)
    found = map_model(model, cluster(devices), goal=goal)
    check_layers(found.layers, model.n_layer)
    assert found.greedy is not None
    check_layers(found.greedy, model.n_layer)
    assert value(found.layers, found.load) <= value(found.greedy, found.load)
    assert found.llama_cpp is not None
    check_layers(found.llama_cpp.layers, model.n_layer)


@pytest.mark.parametrize("goal", ["memory", "decode", "prefill"])
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("llama-3.3-70b:Q4_K_M", "rtx-4090-24g,rtx-3090-24g"),  # all on GPUs
        ("llama-3.3-70b:Q4_K_M", "rtx-4090-24g,rtx-3060-12g"),  # some on the CPU
        ("llama-3.1-8b:Q8_0", "rtx-4060-8g,rtx-3060-12g"),  # an embedding that a GPU looks up
        ("glm-4.5-air:Q4_K_M", "rtx-4090-24g,rtx-4090-24g,rtx-3060-12g,rtx-3060-12g"),  # a layer that is not loaded
        ("gemma-3-27b:Q4_K_M", "rtx-3060-12g,rtx-3060-12g"),  # tied head, windows
    ],
)
def test_pshard_memory_finds_the_same_bytes_for_the_llama_cpp_line(name: str, devices: str, goal: Goal) -> None:
    model = read_model(name)
    here = cluster(devices)
    found = map_model(model, here, goal=goal)
    assert found.llama_cpp is not None
    line = parse_launch_line(["llama-server", "-m", name, *found.llama_cpp.argv])
    free = tuple(device.memory_total_bytes for device in here.accelerators)
    report = line_memory(line, free)
    for mapped, memory in zip(found.llama_cpp.layers.devices, report.devices, strict=False):
        said = (mapped.weights_bytes, mapped.cache_bytes, mapped.compute_bytes)
        assert said == (memory.model_bytes, memory.context_bytes, memory.compute_bytes)


def multi_gpu_rows() -> list[tuple[str, oracle.Row]]:
    """Launches on two and four GPUs with everything offloaded, as llama.cpp itself split them."""
    return [
        (name, row)
        for name in oracle.names()
        for row in oracle.rows(name)
        if len(row.devices) in (2, 4) and not row.ot and row.ngl > 90 and row.offload_kqv and row.fa >= 0
    ]


def test_flags_for_the_split_that_llama_cpp_made_give_the_bytes_that_it_took() -> None:
    n_checked = 0
    for name, row in multi_gpu_rows():
        model = oracle.model(name)
        places = _core.layer_places(model.n_layer + model.n_layer_nextn, row.ngl, [float(d) for d in row.devices])
        runs = []
        for gpu, group in itertools.groupby(places[: model.n_layer], key=_core.gpu_of):
            begin = runs[-1].end if runs else 0
            runs.append(Run(gpu, begin, begin + len(list(group))))
        if places[-1] != places[model.n_layer - 1]:
            continue  # the head alone on the last GPU, which a map of layers does not do
        problem = MapProblem(
            model, cluster(",".join(f"{d}M" for d in row.devices)), MapParameters(max_seq_len=row.n_ctx_actual),
            "memory", "stream", None, allow_swap=False,
        )  # fmt: skip
        placement = llama_placement(problem, runs, "last")
        n_tokens = min(row.n_ctx_actual, row.n_batch, row.n_ubatch)
        report = _core.memory(model.core, placement, row.context(), n_tokens)
        assert [gpu.weights_bytes for gpu in report.gpus] == row.gpu_model, (name, row)
        assert [gpu.cache_bytes for gpu in report.gpus] == row.gpu_context, (name, row)
        assert [gpu.compute_bytes for gpu in report.gpus] == row.gpu_compute, (name, row)
        n_checked += 1
    assert n_checked > 80


@pytest.mark.parametrize("goal", ["decode", "prefill"])
def test_no_split_of_a_small_model_is_faster(goal: Goal) -> None:
    model = read_model("qwen3-0.6b:Q8_0")
    here = cluster("rtx-4060-8g,rtx-3060-12g", ram="32G")
    # So little memory that both GPUs and the CPU are needed.
    devices = tuple(
        device if device.is_cpu else replace(device, memory_free_bytes=700 * MIB + 180 * MIB * i)
        for i, device in enumerate(here.devices)
    )
    here = replace(here, devices=devices)
    found = map_model(model, here, goal=goal)
    problem = MapProblem(model, here, MapParameters(), goal, found.load, None, allow_swap=False)
    best = float("inf")
    n = model.n_layer
    for first, second in itertools.combinations_with_replacement(range(n + 1), 2):
        runs = [Run(d, a, b) for d, (a, b) in enumerate([(0, first), (first, second), (second, n)]) if b > a]
        for head in ("first", "last"):
            layout = problem.measure(runs, head)
            if any(problem.used(layout, run.device) > problem.capacity[run.device] for run in runs):
                continue
            timed = problem.seconds_of(layout)
            assert timed is not None
            best = min(best, timed[4] if found.load == "pipelined" else timed[2])
    assert value(found.layers, found.load) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("n_tokens", [1, 16, 512])
@pytest.mark.parametrize("n_cpu", [0, 5, 28])
def test_stages_cost_what_the_cost_model_says_of_the_whole_pass(n_tokens: int, n_cpu: int) -> None:
    model = read_model("qwen3-0.6b:Q8_0")
    here = cluster("rtx-4060-8g")
    machine = device_speeds(here, here.devices)["CUDA0"].core
    context = _core.ContextParameters()
    pass_ = _core.tier_pass(model.core, context, _core.Workload(1000, 1000), n_tokens)
    gpu = _core.device_costs(model.core, machine, pass_, True)
    cpu = _core.device_costs(model.core, machine, pass_, False)
    placement = _core.Placement()
    placement.patterns = [_core.LayerPlacement(_core.Where.cpu), _core.LayerPlacement(_core.Where.pinned)]
    placement.layer_pattern = [0] * n_cpu + [1] * (28 - n_cpu)
    placement.head = _core.Where.pinned if n_cpu < 28 else _core.Where.cpu
    stages = sum(cost.seconds for cost in (*cpu.layers[:n_cpu], *gpu.layers[n_cpu:]))
    stages += (gpu if n_cpu < 28 else cpu).head.seconds + cpu.embedding.seconds
    if n_cpu < 28:
        stages += machine.handoff_to_gpu_seconds
        stages += sum(
            curve.latency_seconds + n_bytes / max(curve.bytes_per_second)
            for curve, n_bytes in (
                (machine.up, gpu.hidden_bytes), (machine.up, gpu.input_bytes), (machine.down, gpu.logits_bytes)
            )
        )  # fmt: skip
    whole = _core.price_pass(model.core, machine, pass_, placement).seconds
    assert stages == pytest.approx(whole, rel=0.02)


def test_missing_bytes_are_named_and_make_it_fit() -> None:
    model = read_model("llama-3.1-8b:Q8_0")
    here = cluster("4G,3G", ram="1G")
    with pytest.raises(NoFeasiblePlanError) as caught:
        map_model(model, here)
    message = str(caught.value)
    assert caught.value.missing_bytes > 0
    assert str(caught.value.missing_bytes) in message
    for part in ("CUDA0 may hold 3584.0 MiB", "CUDA1 may hold", "CPU", "--allow-swap"):
        assert part in message, message
    grown = [
        replace(device, memory_total_bytes=device.memory_total_bytes + caught.value.missing_bytes)
        if device.is_cpu
        else device
        for device in here.devices
    ]
    check_layers(map_model(model, replace(here, devices=tuple(grown))).layers, 32)
    assert map_model(model, here, allow_swap=True).layers.counts[2] > 0


def test_a_device_that_takes_no_layer_is_warned_of_and_the_rest_goes_on() -> None:
    found = map_model(read_model("llama-3.1-8b:Q4_K_M"), cluster("0.6G,12G"))
    assert found.layers.counts[0] == 0
    assert found.layers.devices[1].non_mapped == ("embedding", "head")
    warning = next(text for text in found.warnings if text.startswith("CUDA0 can take no layer"))
    assert "--max-seq-len" in warning


@pytest.mark.parametrize(
    ("free", "reserve"), [(100 * GIB, 2 * GIB), (24 * GIB, 512 * MIB), (300 * MIB, 300 * MIB), (0, 0)]
)
def test_the_reserve_is_the_larger_of_a_share_and_a_floor_and_at_most_all(free: int, reserve: int) -> None:
    device = replace(cluster("24G").devices[0], memory_free_bytes=free)
    assert reserve_bytes(device, free) == reserve
    assert reserve_bytes(cluster("24G").devices[-1], free) == 0


def test_paged_caches_are_rounded_to_blocks_and_fall_back_where_the_cpu_has_layers() -> None:
    model = read_model("llama-3.1-8b:Q4_K_M")
    parameters = MapParameters(max_seq_len=1000, paged_block=48)
    paged = map_model(model, cluster("24G"), parameters=parameters)
    per_cell = sum(model.kv_bytes_per_cell(layer) for layer in range(model.n_layer))
    assert paged.cache_policy == "paged"
    assert paged.layers.devices[0].cache_bytes == 1008 * per_cell
    assert paged.llama_cpp is not None
    assert paged.llama_cpp.layers.devices[0].cache_bytes == 1024 * per_cell
    fallback = map_model(model, cluster("4G"), parameters=parameters)
    assert fallback.paged_fallback
    assert fallback.cache_policy == "contiguous"
    assert sum(mapped.cache_bytes for mapped in fallback.layers.devices) == 1024 * per_cell


def test_unified_memory_is_not_counted_twice() -> None:
    model = read_model("llama-3.1-8b:Q8_0")
    here = cluster("12G", ram="12G")
    shared = replace(here, devices=(replace(here.devices[0], kind="apple", unified_memory=True), here.devices[1]))
    found = map_model(model, shared)
    capacity = [mapped.capacity_bytes for mapped in found.layers.devices]
    assert sum(capacity) <= 12 * GIB
    parameters = MapParameters(max_seq_len=65536)
    assert map_model(model, here, parameters=parameters).layers.counts[1] > 0
    with pytest.raises(NoFeasiblePlanError):
        map_model(model, shared, parameters=parameters)


def test_a_projector_is_on_the_first_device_and_makes_the_parameters_a_vision_models() -> None:
    model = read_model("gemma-3-4b:Q4_K_M")
    projector = projector_cases.projector("gemma3-4b")
    found = map_model(model, cluster("12G,12G"), projector=projector)
    plain = map_model(model, cluster("12G,12G"))
    first = found.layers.devices[0]
    assert "projector" in first.non_mapped
    assert first.projector_bytes >= projector.memory("CUDA0").model_bytes
    assert found.layers.devices[1].projector_bytes == 0
    assert found.to_dict()["parameters"]["kind"] == "vision"
    assert plain.to_dict()["parameters"]["kind"] == "text"
    assert found.activation_bytes[1] >= plain.activation_bytes[1]


def test_larger_images_need_no_less() -> None:
    projector = projector_cases.projector("qwen25vl-7b")
    sizes = [projector.image_bytes(side, side, on_gpu=True)[0] for side in (256, 1024, 1536, 4096)]
    assert sizes == sorted(sizes)
    assert (
        sizes[0] < sizes[-1] <= projector.memory("CUDA0").largest_compute_bytes + projector.memory("CUDA0").model_bytes
    )


def test_speed_objectives_want_speeds() -> None:
    with pytest.raises(SettingError, match="no speed is known"):
        map_model(read_model("qwen3-0.6b:Q8_0"), cluster("24G,12G"), goal="decode")
    assert map_model(read_model("qwen3-0.6b:Q8_0"), cluster("24G,12G")).layers.seconds is None


def test_devices_without_order_or_memory_are_random_and_never_overflow() -> None:
    rng = random.Random(5)
    names = ["rtx-4090-24g", "rtx-3060-12g", "rtx-4060-8g", "rtx-5060ti-16g"]
    model = read_model("qwen3-32b:Q4_K_M")
    for _ in range(12):
        here = cluster(",".join(rng.choices(names, k=rng.randint(1, 4))))
        devices = tuple(
            device if device.is_cpu else replace(device, memory_free_bytes=rng.randint(1, device.memory_total_bytes))
            for device in here.devices
        )
        goal = rng.choice(["memory", "decode", "prefill"])
        parameters = MapParameters(max_seq_len=rng.choice([512, 4096, 20000]), max_batch_size=rng.choice([1, 3]))
        found = map_model(model, replace(here, devices=devices), goal=goal, parameters=parameters)
        check_layers(found.layers, model.n_layer)
        assert found.llama_cpp is None or check_layers(found.llama_cpp.layers, model.n_layer) is None


def test_file_of_a_cluster_may_be_mapped(tmp_path: Path) -> None:
    from pshard.cli import main

    path = tmp_path / "cluster.toml"
    path.write_text(
        '[[hosts]]\nname = "box"\nmemory = "64G"\nspeed = "desktop-8c"\n'
        '[[devices]]\nname = "a"\nspeed = "rtx-4090-24g"\n[[devices]]\nname = "b"\nspeed = "rtx-3060-12g"\n'
    )
    assert main(["map", "qwen3-32b:Q4_K_M", "--cluster", str(path), "--objective", "decode", "--json"]) == 0
    assert main(["map", "llama-3.3-70b:F16", "--cluster", str(path)]) == 3
    assert main(["map", "qwen3-32b:Q4_K_M", "--cluster", str(path), "--ram", "4G"]) == 2


@pytest.mark.parametrize("name", ["llama-3.1-8b:Q4_K_M", "llama-3.1-8b:Q8_0"])
def test_the_embedding_is_where_cuda_can_look_it_up(name: str) -> None:
    assert "embedding" in map_model(read_model(name), cluster("24G,24G")).layers.devices[0].non_mapped


@pytest.mark.parametrize(
    ("type_name", "n_embd", "on_gpu"),
    [("Q6_K", 4096, True), ("IQ4_NL", 4096, True), ("IQ4_NL", 4128, False), ("TQ1_0", 4096, False)],
)
def test_rows_that_cuda_cannot_look_up_stay_in_host_memory(type_name: str, n_embd: int, on_gpu: bool) -> None:
    assert is_looked_up_on_gpu(type_name, n_embd) == on_gpu


def test_estimate_memory_agrees_on_one_gpu() -> None:
    model = read_model("llama-3.1-8b:Q4_K_M")
    found = map_model(model, cluster("24G"))
    overrides = [(r"^token_embd\.weight", "CUDA0")]
    report = estimate_memory(model, n_ctx=4096, n_outputs_max=1, devices=[24 * GIB], tensor_overrides=overrides)
    mapped = found.layers.devices[0]
    assert (mapped.weights_bytes, mapped.cache_bytes, mapped.compute_bytes) == (
        report.devices[0].model_bytes,
        report.devices[0].context_bytes,
        report.devices[0].compute_bytes,
    )


def test_hosts_that_no_link_joins_do_not_share_a_model(tmp_path: Path) -> None:
    from pshard.cluster.toml_reading import read_cluster

    path = tmp_path / "cluster.toml"
    text = "".join(
        f'[[hosts]]\nname = "{host}"\nmemory = "64G"\nspeed = "desktop-8c"\n'
        f'[[devices]]\nname = "{host}0"\nhost = "{host}"\nspeed = "rtx-3060-12g"\n'
        for host in ("a", "b")
    )
    path.write_text(text)
    for goal in ("memory", "decode"):
        found = map_model(read_model("qwen3-32b:Q4_K_M"), read_cluster(path), goal=goal)
        assert set(found.layers.order) == {"a0", "a-CPU"}
        assert any(note.startswith("b0 is left out") for note in found.notes)
    path.write_text(text + '[[links]]\nkind = "ethernet"\nends = ["a", "b"]\ngeneration = "25g"\n')
    found = map_model(read_model("qwen3-32b:Q4_K_M"), read_cluster(path), goal="decode")
    assert set(found.layers.order) == {"a0", "b0"}


def test_exact_is_claimed_only_where_no_buffer_overflowed() -> None:
    def found(mib: int) -> tuple[bool, tuple[int, ...]]:
        here = cluster("rtx-4090-24g,rtx-3060-12g")
        gpus = tuple(replace(gpu, memory_free_bytes=mib * MIB) for gpu in here.accelerators)
        mapped = map_model(
            read_model("qwen3-0.6b:Q8_0"), replace(here, devices=(*gpus, here.devices[-1])), goal="decode"
        )
        return mapped.exact, mapped.layers.counts

    assert found(4000) == (True, (28, 0, 0))
    exact, counts = found(1440)
    assert not exact
    assert counts[1] > 0
