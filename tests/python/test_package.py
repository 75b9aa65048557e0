"""The installed package: its public names, its compiled half, and what it ships."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, entry_points, requires
from importlib.resources import files
from pathlib import Path

import core_stub
import pytest

import pshard
from pshard import _core

ROOT = Path(__file__).parents[2]


def test_public_names_are_there_and_no_others() -> None:
    assert dir(pshard) == sorted(pshard.__all__)
    for name in pshard.__all__:
        assert getattr(pshard, name) is not None
    assert callable(pshard.read_model)
    assert callable(pshard.load_machine)
    assert callable(pshard.plan)
    assert pshard.__version__ == distribution("pshard").version
    with pytest.raises(AttributeError, match="module 'pshard' has no attribute 'plam'"):
        _ = pshard.plam


def test_every_error_is_one_family() -> None:
    errors = [getattr(pshard, name) for name in pshard.__all__ if name.endswith("Error")]
    assert len(errors) == 7
    assert all(issubclass(error, pshard.PshardError) for error in errors)


def test_import_is_light() -> None:
    code = "import sys, pshard; print([n for n in ('numpy', 'gguf', 'rich', 'pshard._core') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_console_script_is_the_command() -> None:
    (script,) = entry_points(group="console_scripts", name="pshard")
    assert script.value == "pshard.cli:main"


def test_ships_types_and_data() -> None:
    package = files("pshard")
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()
    # what lies beside the modules in the source tree is in the installation too
    for path in (ROOT / "python" / "pshard").rglob("*.json"):
        assert (package / str(path.relative_to(ROOT / "python" / "pshard"))).is_file(), path
    # and nothing of the build
    shipped = {str(path) for path in distribution("pshard").files or [] if "__pycache__" not in str(path)}
    suffixes = {Path(path).suffix for path in shipped if path.startswith("pshard/")}
    assert suffixes <= {".py", ".pyi", ".typed", ".so", ".json"}


def test_run_time_dependencies_are_the_chosen_ones() -> None:
    names = {re.split(r"[^\w-]", text)[0] for text in requires("pshard") or [] if "extra ==" not in text}
    assert names == {
        *("click", "filelock", "gguf", "msgspec", "numpy"),
        *("platformdirs", "prometheus-client", "psutil", "rich", "tomli-w"),
    }


def test_missing_compiled_part_is_explained(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "python" / "pshard", tmp_path / "pshard", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", "from pshard import _core"],  # not through an editable installation
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "The compiled part of pshard cannot be loaded. In the source tree, run: pip install ." in done.stderr


def test_gpu_query_finds_devices_or_says_why_not() -> None:
    query = _core.query_gpus()
    if query.devices:
        assert query.reason == ""
        for device in query.devices:
            assert device.name
            assert 0 < device.free_bytes <= device.total_bytes
            assert device.compute_major >= 3
            assert device.multiprocessors > 0
            assert device.copy_engines >= 1
            assert re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.0", device.pci_bus_id)
    elif _core.built_with_cuda:
        assert re.fullmatch(r"no driver|no device|driver too old \(\d+\.\d+, needs \d+\.\d+\)", query.reason)
        if not Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is None:
            assert query.reason == "no driver"
    else:
        assert query.reason == "built without CUDA"


def test_gpu_query_fields_are_read_only() -> None:
    with pytest.raises(AttributeError):
        _core.query_gpus().reason = "none"


def test_extension_needs_no_cuda_library() -> None:
    """One wheel for machines with and without a GPU: the CUDA runtime is inside, the driver is found at run time."""
    dynamic = subprocess.check_output(["readelf", "--dynamic", str(_core.__file__)], text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert "libc.so.6" in needed
    assert [name for name in needed if re.match(r"lib(cu|nv)", name)] == []


def test_stub_of_the_extension_is_current() -> None:
    kept, fresh = core_stub.STUB.read_text().splitlines(), core_stub.generate().splitlines()
    difference = "\n".join(difflib.unified_diff(kept, fresh, "_core.pyi", "generated", lineterm=""))
    assert kept == fresh, f"run python tests/python/core_stub.py:\n{difference}"


def test_every_bound_argument_has_a_name() -> None:
    """An unnamed argument shows as arg0 in help and stubs, and cannot be passed by keyword."""
    # the generated setters of plain fields and operators take their one value by position
    text = re.sub(r"@\w+\.setter\n\s*def .*|def __\w+__\(.*", "", core_stub.STUB.read_text())
    assert re.findall(r".*\barg\d\b.*", text) == []


def test_readme_carries_the_commands_that_are_checked() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, ending in (("main", "pshard plan "), ("test", "pytest")):
        found = re.search(rf"^<!-- {name} command -->\n+```\w*\n(.+)\n```", readme, re.M)
        assert found is not None, f"README.md: no command behind <!-- {name} command -->"
        assert " && python3 -m venv .venv && .venv/bin/pip install " in found[1]
        assert ending in found[1]


def test_version_is_stated_once() -> None:
    module = importlib.import_module("pshard")
    assert "0.1" not in Path(str(module.__file__)).read_text()
