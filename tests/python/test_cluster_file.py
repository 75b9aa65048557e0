"""cluster.toml: what it says, what is filled in, and on which line it is wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from pshard.cluster.cluster import Cluster
from pshard.cluster.device_list import parse_devices
from pshard.cluster.link_references import generations, link_sheets, reference_link
from pshard.cluster.toml_lines import toml_lines
from pshard.cluster.toml_reading import MAX_FILE_BYTES, read_cluster
from pshard.cluster.toml_writing import cluster_toml
from pshard.errors import MachineError, SettingError
from pshard.machine.profile import write_profile
from pshard.machine.reference_rates import build_profile, link_bytes_per_second
from pshard.machine.references import find_gpu, hosts, join
from pshard.quantities import parse_bytes, parse_rate, parse_seconds

GIB = 2**30

TWO_HOSTS = """\
schema_version = 1
notes = ["the lab"]

[[hosts]]
name = "alpha"
speed = "desktop-16c"
numa_nodes = 2
address = "10.0.0.1"

[[hosts]]
name = "beta"
memory = "64G"
cores = 12

[[devices]]
name = "gpu"
host = "alpha"
speed = "rtx-3090-24g"
count = 2

[[devices]]
name = "card"
host = "beta"
kind = "amd"
product = "Radeon RX 7900 XT"
memory = "20464M"
free = 19.5
pcie = "3x8"
numa_node = 1

[[devices]]
name = "slice"
host = "beta"
kind = "tpu"
memory = "64G"
chips = 4

[[links]]
kind = "nvlink"
ends = ["gpu0", "gpu1"]
generation = "3-geforce"
count = 4

[[links]]
kind = "ethernet"
ends = ["alpha", "beta"]
bandwidth = "10Gbit/s"
latency = "25us"
"""


@pytest.fixture
def read(tmp_path: Path):
    def from_text(text: str) -> Cluster:
        path = tmp_path / "cluster.toml"
        path.write_text(text)
        return read_cluster(path)

    return from_text


def test_two_hosts(read) -> None:
    cluster = read(TWO_HOSTS)
    assert cluster.notes[0] == "the lab"
    assert [(d.name, d.host, d.kind, d.memory_total_bytes) for d in cluster.devices] == [
        ("gpu0", "alpha", "nvidia", 24 * GIB),
        ("gpu1", "alpha", "nvidia", 24 * GIB),
        ("card", "beta", "amd", 20464 << 20),
        ("slice", "beta", "tpu", 64 * GIB),
        ("alpha-CPU", "alpha", "cpu", 128 * GIB),
        ("beta-CPU", "beta", "cpu", 64 * GIB),
    ]
    card = cluster.device("card")
    assert (card.memory_free_bytes, card.numa_node, card.product) == (int(19.5 * GIB), 1, "Radeon RX 7900 XT")
    assert (cluster.device("gpu1").speed.source, cluster.device("gpu1").speed.name) == ("reference", "rtx-3090-24g")
    assert cluster.device("slice").chips == 4
    assert cluster.cpu_of("alpha").fact("n_cores") == 16
    assert cluster.cpu_of("beta").fact("n_cores") == 12
    assert (cluster.host("alpha").n_numa_nodes, cluster.host("alpha").address) == (2, "10.0.0.1")


def test_links_given_and_filled_in(read) -> None:
    cluster = read(TWO_HOSTS)
    bridge = cluster.link("gpu0", "gpu1")
    # NVIDIA's GA102 whitepaper: 56.25 GB/s each way over four links; NCCL reckons with 12 of 14 GB/s of each.
    assert bridge.bandwidth_bytes_per_second == pytest.approx(56.25e9 * 0.85)
    assert (bridge.source, bridge.latency_seconds) == ("reference", 0.6e-6)
    network = cluster.link("alpha", "beta")
    assert (network.bandwidth_bytes_per_second, network.latency_seconds, network.source) == (1.25e9, 25e-6, "given")
    slot = cluster.link("gpu0", "alpha")
    sheet = join(find_gpu("rtx-3090-24g"), hosts()["desktop-16c"])
    assert slot.bandwidth_bytes_per_second == pytest.approx(link_bytes_per_second(sheet))  # as the plan of that machine
    assert cluster.link("card", "beta").bandwidth_bytes_per_second == pytest.approx(0.83 * 8 * 0.9846e9)
    assert cluster.notes[1:] == ('slice: nothing tells the slot; taken as PCIe 4.0 x16. Give pcie = "4x16".',)


def test_a_profile_gives_speed_memory_and_link(read, tmp_path: Path) -> None:
    profile = build_profile(join(find_gpu("rtx-4070-12g"), hosts()["desktop-8c"]), 8)
    write_profile(profile, tmp_path / "mine.json")
    cluster = read('[[hosts]]\nname = "a"\nspeed = "mine.json"\n[[devices]]\nname = "g"\nspeed = "mine.json"\n')
    gpu, cpu = cluster.devices
    assert gpu.speed.source == cpu.speed.source == "profile"
    assert Path(gpu.speed.name) == tmp_path / "mine.json"
    assert (gpu.kind, gpu.memory_total_bytes) == ("nvidia", profile.capacities.vram_bytes)
    assert cpu.memory_total_bytes == profile.capacities.ram_bytes
    link = cluster.link("g", "a")
    assert link.bandwidth_bytes_per_second == max(profile.link.up.bytes_per_second)
    assert link.source == "reference"  # of a profile that was not measured


def test_latency_alone_comes_from_the_kind_and_bandwidth_alone_from_the_generation(read) -> None:
    head = '[[hosts]]\nname = "a"\nmemory = 8\n[[hosts]]\nname = "b"\nmemory = 8\n[[links]]\nends = ["a", "b"]\n'
    link = read(head + 'kind = "infiniband"\nbandwidth = "200Gb/s"\n').links[0]
    assert (link.bandwidth_bytes_per_second, link.latency_seconds, link.source) == (25e9, 2.7e-6, "given")
    link = read(head + 'kind = "infiniband"\ngeneration = "hdr"\nlatency = "1us"\ncount = 2\n').links[0]
    assert (link.bandwidth_bytes_per_second, link.latency_seconds, link.source) == (48e9, 1e-6, "reference")


HOST = '[[hosts]]\nname = "a"\nmemory = 8\n'
DEVICE = '[[devices]]{}\nname = "d"\n'
LINK = HOST + DEVICE.format("") + 'speed = "rtx-3090-24g"\n[[links]]{}\n'

# "# here" is on the line that the error must name; without it, that of the table.
FAULTY = [
    ("[[host]]  # here\n", "there is no key 'host' here; did you mean hosts?"),
    ("\nschema_version = 2  # here\n", "schema_version 2 is not 1"),
    ("\nhosts = 1  # here\n", "hosts is a list of tables: write [[hosts]] above each"),
    ('notes = "one"  # here\n', "notes is a list of sentences"),
    ('[[hosts]]\nname = "a"\n\n\nmemory = "24Q"  # here\n', "memory = '24Q': '24Q' is not a size; examples: 12G"),
    ('[[hosts]]\nname = "a"\nmemry = "24G"  # here\n', "[[hosts]] has no key 'memry'; did you mean memory?"),
    ("\n[[hosts]]  # here\nmemory = 24\n", "[[hosts]]: Object missing required field `name`"),
    ('[[hosts]]\nname = "a"\ncores = "8"  # here\n', "cores = '8': Expected `int | null`, got `str`"),
    ('[[hosts]]\nname = "a"\nspeed = "desktop-8"  # here\n', "speed = 'desktop-8': neither a reference GPU or host"),
    ('[[hosts]]\nname = "a"\n[[hosts]]\nname = "a"  # here\nmemory = 1\n', "host 'a': a host has this name"),
    ('[[hosts]]\nname = "a"\nmemory = 4\nfree = 5  # here\n', "bytes free of"),
    ('[[hosts]]  # here\nname = "a"\n', "the cluster has no device; give each host its memory, or a device"),
    ("# here\n", "the cluster has no host"),
]
FAULTY_DEVICES = [
    ('kind = "nvidia"\n', "memory: not given, and no speed tells it"),
    ('kind = "nvidia"\nmemory = 0  # here\n', "memory = 0: a device without memory holds no layer; leave it out"),
    ('kind = "nvdia"  # here\nmemory = 1\n', "kind = 'nvdia': no kind of device; did you mean nvidia?"),
    ('kind = "cpu"  # here\nmemory = 1\n', "kind = 'cpu': a host has its CPU by itself: give the host its memory"),
    ("memory = 1\n", "kind: not given, and no speed tells it; one of cpu, nvidia"),
    (
        'speed = "rtx-9999"  # here\n',
        "speed = 'rtx-9999': neither a reference GPU or host ('pshard machines' lists them)",
    ),
    ('speed = "missing.json"  # here\n', "missing.json"),
    ('kind = "amd"\nmemory = 1\nhost = "b"  # here\n', "host = 'b': there is no such host; one of a"),
    ('kind = "amd"\nmemory = 1\npcie = "9x9"  # here\n', "pcie = '9x9': --pcie '9x9' is not GENERATIONxLANES"),
    ('kind = "amd"\nmemory = 1\ncount = 0  # here\n', "count = 0: a number of equal devices from 1 to 4096"),
    ('kind = "amd"\nmemory = 1\nchips = 0  # here\n', "device 'd': 0 chips; there is at least one"),
    ('kind = "amd"\nmemory = true  # here\n', "memory = True: Expected `int | float | str | null`, got `bool`"),
]
FAULTY_LINKS = [
    ('kind = "nvlnk"  # here\nends = ["d", "a"]\n', "kind = 'nvlnk': no kind of link; did you mean nvlink"),
    ('kind = "nvlink"\nends = ["d", "a"]\n', "generation: give it (known: 1, 2, 3, 3-geforce, 4, 5), or bandwidth"),
    ('kind = "nvlink"\nends = ["d", "a"]\ngeneration = 9  # here\n', "no published figures for nvlink generation '9'"),
    (
        'kind = "nvlink"\nends = [  # here\n  "d",\n  "x",\n]\ngeneration = 3\n',
        "it leads to 'x', which is neither a device",
    ),
    ('kind = "nvlink"\nends = ["d"]  # here\ngeneration = 3\n', "a link has two or more, all different"),
    (
        'kind = "pcie"\nends = ["d", "a"]\nbandwidth = "10gb/s"  # here\n',
        "bandwidth = '10gb/s': '10gb/s' is not a rate",
    ),
    ('kind = "pcie"\nends = ["d", "a"]\nbandwidth = "0GB/s"  # here\n', "bandwidth of 0 bytes/s is not above 0"),
    (
        'kind = "pcie"\nends = ["d", "a"]\nbandwidth = "1GB/s"\nlatency = "5"  # here\n',
        "latency = '5': '5' is not a time",
    ),
    (
        'kind = "pcie"\nends = ["d", "a"]\ngeneration = 4\ncount = 0  # here\n',
        "count = 0: links side by side, at least 1",
    ),
    ('kind = "pcie"\nends = "d"  # here\n', "ends = 'd': Expected `array`, got `str`"),
]


def marked(frame: str, text: str) -> str:
    return frame.format("" if "# here" in text else "  # here") + text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *FAULTY,
        *((HOST + marked(DEVICE, text), message) for text, message in FAULTY_DEVICES),
        *((marked(LINK, text), message) for text, message in FAULTY_LINKS),
    ],
)
def test_a_fault_is_told_with_its_line(read, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MachineError) as caught:
        read(text)
    line = next(i for i, line in enumerate(text.splitlines(), 1) if "# here" in line)
    assert f"{tmp_path / 'cluster.toml'}:{line}: " in str(caught.value)
    assert message in str(caught.value)


def test_all_faults_are_told_at_once_in_the_order_of_lines(read) -> None:
    host = '[[hosts]]\nname = "a"\nmemory = "1Q"\n'
    device = '[[devices]]\nname = "d"\nkind = "x"\nmemory = 1\n'
    with pytest.raises(MachineError) as caught:
        read(f'{host}{device}[[links]]\nkind = "y"\nends = []\n')
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["3", "6", "9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[hosts]\n", ":1:8: not TOML:"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), "that is no cluster file"),
        (b"a = " + b"[" * 10_000, "not TOML"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    with pytest.raises(MachineError) as caught:
        read_cluster(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No such file or directory; 'pshard devices --toml' writes one"):
        read_cluster(tmp_path / "none.toml")


# --- what is written is read again -----------------------------------------------------------------------------------


def test_what_is_written_is_read_as_the_same_cluster(read) -> None:
    cluster = read(TWO_HOSTS)
    again = read(cluster_toml(cluster))
    kept = ("name", "kind", "host", "product", "memory_total_bytes", "numa_node", "speed", "chips", "unified_memory")
    assert [[getattr(d, name) for name in kept] for d in again.devices] == [
        [getattr(d, name) for name in kept] for d in cluster.devices
    ]
    assert [(k.kind, k.ends) for k in again.links] == [(k.kind, k.ends) for k in cluster.links]
    for before, after in zip(cluster.links, again.links, strict=True):
        assert after.bandwidth_bytes_per_second == pytest.approx(before.bandwidth_bytes_per_second, rel=1e-6)
        assert after.latency_seconds == pytest.approx(before.latency_seconds, rel=1e-6)
    assert again.hosts == cluster.hosts
    assert "# free = " in cluster_toml(cluster)


# --- devices on a command line ---------------------------------------------------------------------------------------


def test_sizes_are_devices_of_this_machine() -> None:
    cluster = parse_devices("24G, 2x12288M", ram="64G@51GB/s")
    assert [(d.name, d.kind, d.memory_total_bytes) for d in cluster.devices] == [
        ("CUDA0", "gpu", 24 * GIB),
        ("CUDA1", "gpu", 12 * GIB),
        ("CUDA2", "gpu", 12 * GIB),
        ("CPU", "cpu", 64 * GIB),
    ]
    assert cluster.device("CUDA1").memory_free_bytes == 12 * GIB
    assert cluster.device("CPU").fact("memory_peak_bytes_per_second") == 51e9
    assert "CUDA0, CUDA1, CUDA2: nothing tells the slot" in cluster.notes[0]


def test_reference_gpus_come_with_their_host() -> None:
    cluster = parse_devices("rtx-4090-24g,rtx-3060-12g")
    assert [d.speed.name for d in cluster.devices] == ["rtx-4090-24g", "rtx-3060-12g", "desktop-8c"]
    assert cluster.device("CPU").memory_total_bytes == 64 * GIB
    assert cluster.notes == ()
    servers = parse_devices("8xh100-sxm-80g")
    assert len(servers.accelerators) == 8
    assert servers.cpu_of("host").speed.name == "server-32c"
    assert [d.name for d in parse_devices("none").devices] == ["CPU"]


@pytest.mark.parametrize("text", ["", "24Q", "rtx-3060", "0x24G", "rtx-9999", "24G,,12G", "24G;12G"])
def test_what_is_neither_a_size_nor_a_reference_gpu(text: str) -> None:
    with pytest.raises(SettingError):
        parse_devices(text)


# --- quantities, references of links, lines --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24G", 24 * GIB),
        ("12GiB", 12 * GIB),
        ("24576M", 24 * GIB),
        ("11.5", int(11.5 * GIB)),
        (8, 8 * GIB),
        ("1.5t", 1536 * GIB),
        ("4097B", 4097),
    ],
)
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("300GB/s", 300e9),
        ("300 GB/s", 300e9),
        ("100Gbit/s", 12.5e9),
        ("100Gb/s", 12.5e9),
        ("2.5Gbps", 312.5e6),
        ("5MB/s", 5e6),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "seconds"), [("2us", 2e-6), ("0.1ms", 1e-4), ("300ns", 3e-7), ("1.5 µs", 1.5e-6)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-15)


@given(st.text(max_size=12))
def test_quantities_are_read_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_rate, parse_seconds):
        with suppress(SettingError):
            assert parse(text) >= 0


def test_published_figures_of_links() -> None:
    # H100: 18 links of 25 GB/s each way are the 900 GB/s of the data sheet, both ways together.
    sheets = {(sheet.kind, sheet.generation): sheet for sheet in link_sheets()}
    assert 2 * 18 * sheets["nvlink", "4"].bytes_per_second == 900e9
    assert 2 * 18 * sheets["nvlink", "5"].bytes_per_second == 1800e9
    assert 2 * 12 * sheets["nvlink", "3"].bytes_per_second == 600e9
    assert 2 * 4 * sheets["ici", "v5e"].bytes_per_second == 400e9  # Google: 400 GB/s both ways, 4 ports
    assert 2 * 6 * sheets["ici", "v5p"].bytes_per_second == 1200e9
    assert 21 * sheets["gaudi", "3"].bytes_per_second == 525e9  # Intel: 525 GB/s each way over 21 ports
    assert all(0 < sheet.reached <= 1 and sheet.source and sheet.latency_seconds > 0 for sheet in sheets.values())
    assert generations("pcie") == ("1", "2", "3", "4", "5", "6")
    assert reference_link("nvswitch", "3", ("a", "b", "c")).bandwidth_bytes_per_second == pytest.approx(370.8e9)
    with pytest.raises(SettingError, match="known: fdr, edr, hdr, ndr, xdr"):
        reference_link("infiniband", "qdr", ("a", "b"))


def test_lines_of_keys_and_tables() -> None:
    text = 'a = 1\n\n[[x]]\nb = """\n1\n"""\nc = [\n  1,\n]\n[[y]]\n[[x]]\nb = {d = 1}\n[z.w]\n"q.r" = 1\n'
    lines = toml_lines(text)
    assert {place: lines[place] for place in lines if place[0] != "x"} == {
        ("a",): 1, ("y", 0): 10, ("z", "w"): 13, ("z", "w", "q.r"): 14,
    }  # fmt: skip
    assert (lines["x", 0], lines["x", 0, "b"], lines["x", 0, "c"], lines["x", 1]) == (3, 4, 7, 11)


VALUES = st.text(max_size=8) | st.integers(-9, 9) | st.booleans() | st.lists(st.text(max_size=5), max_size=4)
NAMES = st.sampled_from(["name", "memory", "a b", "ends", "#", "x.y", "="])


@given(
    st.dictionaries(NAMES, VALUES, max_size=3),
    st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_line_is_the_one_that_begins_with_its_key(top: dict, tables: list[dict], has_carriage_returns: bool) -> None:
    text = tomli_w.dumps(top) + "\n" + "".join(f"[[t]]  # {i}\n{tomli_w.dumps(t)}\n" for i, t in enumerate(tables))
    lines = toml_lines(text.replace("\n", "\r\n") if has_carriage_returns else text)
    written = text.split("\n")
    assert {place[-1] for place in lines if len(place) == 1} == set(top)
    assert {place[1] for place in lines if len(place) == 2} == set(range(len(tables)))
    assert {place[1:] for place in lines if len(place) == 3} == {(i, key) for i, t in enumerate(tables) for key in t}
    for place, line in lines.items():
        key = f"[[t]]  # {place[1]}" if len(place) == 2 else str(place[-1])
        assert written[line - 1].startswith((key, f'"{key}"'))


def test_a_statement_without_end_does_not_take_forever() -> None:
    lines = toml_lines("a = 1\nb = [\n" + "1,\n" * 5000 + "]\nc = 1\n")
    assert lines == {("a",): 1}
