"""``pshard machines``: the machines that can be planned for by name."""

from __future__ import annotations

import click

from pshard.cli._output import Output, with_output
from pshard.quantities import GIB


@click.command("machines")
@with_output
def command(out: Output) -> None:
    """List the built-in reference machines.

    A GPU's name alone means that GPU in its default host; --gpu, --cpu, --ram and --pcie put together any other, like
    `--gpu rtx-3060-12g --ram 64G@51GB/s --pcie 3x8`. Figures are published specifications; --json has their sources.
    """
    from msgspec import to_builtins

    from pshard.machine.reference_rates import gpu_memory_bytes_per_second
    from pshard.machine.references import MACHINES, default_host, gpus, hosts

    out.json(
        {
            "schema_version": 1,
            "gpus": [
                {
                    **to_builtins(gpu),
                    "reached_memory_bytes_per_second": gpu_memory_bytes_per_second(gpu),
                    "default_host": default_host(gpu).name,
                }
                for gpu in gpus().values()
            ],
            "hosts": [to_builtins(host) for host in hosts().values()],
            "machines": [{"name": name, "gpu": gpu, "host": host} for name, (gpu, host) in MACHINES.items()],
        }
    )
    _print(out)


def _print(out: Output) -> None:
    from pshard.machine.references import MACHINES, default_host, gpus, hosts

    out.table(
        ["GPU", "year", "VRAM GiB", "GB/s", "FP16 TFLOP/s", "INT8 TOP/s", "PCIe", "default host"],
        [
            [
                gpu.name,
                gpu.release_year,
                f"{gpu.vram_bytes / GIB:.0f}",
                f"{gpu.memory_bytes_per_second / 1e9:.0f}",
                f"{gpu.fp16_flop_per_second / 1e12:.1f}",
                f"{gpu.int8_op_per_second / 1e12:.0f}",
                f"{gpu.pcie_generation}x{gpu.pcie_lanes}",
                default_host(gpu).name,
            ]
            for gpu in gpus().values()
        ],
        title="GPUs (peaks; FP16 with FP32 accumulation)",
    )
    out.line()
    out.table(
        ["host", "cores", "RAM GiB", "GB/s", "PCIe", "what it is"],
        [
            [
                host.name,
                host.n_cores,
                f"{host.ram_bytes / GIB:.0f}",
                f"{host.dram_bytes_per_second / 1e9:.1f}",
                f"{host.pcie_generation}x{host.pcie_lanes}",
                host.product,
            ]
            for host in hosts().values()
        ],
        title="Hosts (--cpu)",
    )
    out.line()
    out.table(["machine", "GPU", "host"], [[name, *parts] for name, parts in MACHINES.items()], title="Machines")
    out.line()
    documents = sorted({gpu.source for gpu in gpus().values()} | {host.source for host in hosts().values()})
    out.table(["sources"], [[document] for document in documents])
    out.hint("pshard plan MODEL --gpu rtx-3060-12g --ram 64G@51GB/s --pcie 3x8")
