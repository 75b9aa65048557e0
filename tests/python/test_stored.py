"""Which stored profile holds: keys, staleness, several machines and writers in one folder."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from pshard.errors import MachineError
from pshard.machine import nvidia, stored
from pshard.machine.machine import load_machine, stored_machine
from pshard.machine.profile import Key, encode_profile, read_profile
from pshard.machine.stored import changes, current_key, find_stored, profile_folder, store, stored_path

KEY = Key(
    cpu="Example CPU",
    n_cores=8,
    n_threads=8,
    ram_bytes=32 << 30,
    kernel="Linux 6.1",
    gpu="GeForce RTX 3060",
    driver="570.86",
    pcie_generation=4,
    pcie_lanes=16,
    power_limit_watts=170.0,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "pshard" / "profiles"


def profile(key=KEY, **fields):
    return replace(load_machine("rtx-3060-12g").profile, key=key, **fields)


def test_the_folder_follows_the_platform(folder):
    assert profile_folder() == folder


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("driver", "580.95", "driver 570.86 is now 580.95"),
        ("kernel", "Linux 6.8", "kernel Linux 6.1 is now Linux 6.8"),
        ("ram_bytes", 64 << 30, "RAM 32.0 GiB is now 64.0 GiB"),
        ("pcie_lanes", 8, "PCIe 4.0 x16 is now 4.0 x8"),
        ("pcie_generation", 3, "PCIe 4.0 x16 is now 3.0 x16"),
        ("power_limit_watts", 120.0, "power limit 170 W is now 120 W"),
    ],
)
def test_what_makes_a_profile_stale(field, value, sentence):
    assert list(changes(KEY, replace(KEY, **{field: value}))) == [sentence]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_threads", 4),  # its own file, and priced with the nearest
        ("driver", None),
        ("power_limit_watts", None),
        ("power_limit_watts", 170.4),
        ("pcie_generation", None),
        ("pcie_lanes", None),
        ("pcie_generation", 5),  # the slot can do more than the link was seen to do
        ("ram_bytes", (32 << 30) - (64 << 20)),  # what another kernel reserves
    ],
)
def test_what_does_not(field, value):
    assert list(changes(KEY, replace(KEY, **{field: value}))) == []


def test_every_field_of_the_key_is_compared_or_chosen_by():
    compared = {"driver", "kernel", "ram_bytes", "pcie_lanes", "pcie_generation", "power_limit_watts"}
    assert set(Key.__struct_fields__) == compared | {"cpu", "n_cores", "gpu", "n_threads"}


def test_a_profile_is_found_again():
    path = store(profile())
    found = find_stored(KEY)
    assert (found.path, found.changes, found.profile) == (path, (), read_profile(path))


@pytest.mark.parametrize("change", [{"cpu": "Other CPU"}, {"n_cores": 4}, {"gpu": "GeForce RTX 4090"}, {"gpu": None}])
def test_machines_that_share_a_folder_keep_their_own(change):
    other = replace(KEY, **change)
    assert len({store(profile()), store(profile(other))}) == 2
    assert find_stored(other).profile.key == other
    assert find_stored(replace(KEY, cpu="Third CPU")) is None


def test_a_new_driver_has_a_file_of_its_own_and_the_old_one_is_stale_until_then():
    store(profile())
    new = replace(KEY, driver="580.95")
    assert find_stored(new).changes == ("driver 570.86 is now 580.95",)
    store(profile(new))
    assert find_stored(new).changes == ()
    assert find_stored(KEY).profile.key == KEY
    assert len(list(profile_folder().glob("*.json"))) == 2


def test_least_changed_is_taken():
    store(profile(replace(KEY, driver="550.1", kernel="Linux 5.15")))
    store(profile(replace(KEY, driver="560.2")))
    assert find_stored(KEY).profile.key.driver == "560.2"


def test_of_several_thread_counts_the_nearest():
    for count in (2, 8):
        store(profile(replace(KEY, n_threads=count)))
    assert [find_stored(replace(KEY, n_threads=n)).profile.key.n_threads for n in (1, 3, 6, 16)] == [2, 2, 8, 8]


def test_a_profile_without_a_key_is_not_stored():
    with pytest.raises(MachineError, match="does not say which machine it is of"):
        store(profile(key=None))


def test_a_broken_file_of_another_machine_is_no_matter_and_ones_own_is_an_error(folder):
    path = store(profile())
    (folder / "other.json").write_text("{")
    assert find_stored(KEY).path == path
    path.write_text("{")
    with pytest.raises(MachineError, match=str(path)):
        find_stored(KEY)


def test_writers_and_readers_at_once_see_whole_profiles(folder):
    profiles = [profile(name=f"run {i}") for i in range(6)]
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            if stored_path(KEY).exists():
                seen.append(find_stored(KEY).profile)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=store, args=(entry,)) for entry in profiles]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    seen.append(find_stored(KEY).profile)
    assert all(entry in profiles for entry in seen)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".lock"}


# --- the machine that this runs on ------------------------------------------------------------------------------------


def test_this_machine_has_a_key_that_survives_a_file():
    import msgspec

    key = current_key()
    assert key.cpu and key.n_cores >= 1 and key.n_threads == key.n_cores and key.ram_bytes > 0
    assert key == current_key()
    assert msgspec.convert(msgspec.to_builtins(key), Key) == key
    assert current_key(3).n_threads == 3


def test_the_key_of_a_gpu_comes_from_driver_and_slot(monkeypatch):
    from types import SimpleNamespace

    from pshard.machine import detect

    device = SimpleNamespace(name="GeForce RTX 3060", pci_bus_id="0000:01:00.0")
    monkeypatch.setattr(nvidia, "devices", lambda: ([device], ""))
    monkeypatch.setattr(nvidia, "state", lambda bus_id: nvidia.State(driver="570.86", power_limit_watts=170.0))
    monkeypatch.setattr(detect, "pcie_slot", lambda bus_id: (4, 8))
    key = current_key()
    assert (key.gpu, key.driver, key.pcie_generation, key.pcie_lanes, key.power_limit_watts) == (
        "GeForce RTX 3060",
        "570.86",
        4,
        8,
        170.0,
    )


def test_a_stale_profile_is_used_with_a_warning():
    from pshard.model.model import read_model
    from pshard.planning.planner import plan

    here = current_key()
    path = store(profile(replace(here, kernel="Linux 2.6.0", gpu=here.gpu)))
    machine = stored_machine()
    change = f"kernel Linux 2.6.0 is now {here.kernel}"
    warning = f"the profile of this machine is stale ({change}); measure again: `pshard profile`."
    assert machine.warnings == (warning,)
    assert machine.notes[-1] == f"Profile of this machine: {path}."
    planned = plan(read_model("llama-3.2-1b:Q4_0"), load_machine(), vram_bytes=0)
    assert warning in planned.to_dict()["warnings"]
    store(profile(here))
    assert load_machine().warnings == ()


def test_profiles_of_other_machines_are_not_used():
    store(profile())
    assert stored_machine() is None
    assert load_machine().reference is not None


def test_no_profile_costs_no_question(monkeypatch):
    def fail(*arguments):
        raise AssertionError

    monkeypatch.setattr(stored, "current_key", fail)
    assert stored_machine() is None


def test_encoded_profiles_leave_out_defaults():
    assert b"samples" not in encode_profile(profile())
    assert b'"n_threads": 8' in encode_profile(profile())
