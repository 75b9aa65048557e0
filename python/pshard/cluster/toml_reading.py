"""A cluster written by hand: ``cluster.toml``. docs/devices.md is its manual.

What a person leaves out comes from the data sheet or the profile that gives the speed; links between a device and its
host, and the rates of links of a known generation, from published figures, marked so.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec.structs import fields, replace

from pshard.cluster.cluster import (
    KINDS,
    LINK_KINDS,
    NO_SPEED,
    Cluster,
    Device,
    Fact,
    Host,
    Link,
    LinkKind,
    Speed,
    cpu_name,
    did_you_mean,
    faults,
)
from pshard.cluster.host_links import slot_facts, with_host_links
from pshard.cluster.link_references import generations, reference_link
from pshard.cluster.toml_lines import Place, toml_lines
from pshard.errors import MachineError, PshardError, SettingError
from pshard.machine.profile import Profile, read_profile
from pshard.machine.references import gpus, hosts, parse_pcie
from pshard.quantities import parse_bytes, parse_rate, parse_seconds

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 2**20
MAX_COUNT = 4096
ORIGIN = "cluster file"

Size = str | int | float
Entry = TypeVar("Entry", bound=msgspec.Struct)
T = TypeVar("T")


class HostEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A ``[[hosts]]`` table."""

    name: str
    product: str | None = None
    memory: Size | None = None
    free: Size | None = None
    cores: int | None = None
    numa_nodes: int = 0
    address: str = ""
    speed: str | None = None


class DeviceEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A ``[[devices]]`` table."""

    name: str
    host: str | None = None
    kind: str | None = None
    product: str | None = None
    memory: Size | None = None
    free: Size | None = None
    numa_node: int | None = None
    speed: str | None = None
    unified_memory: bool = False
    chips: int = 1
    pcie: str | None = None
    count: int | None = None


class LinkEntry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A ``[[links]]`` table."""

    kind: str
    ends: list[str]
    bandwidth: str | None = None
    latency: str | None = None
    generation: str | int | None = None
    count: int = 1


TABLES = ("hosts", "devices", "links")
TOP_KEYS = ("schema_version", "notes", *TABLES)


def read_cluster(path: str | os.PathLike[str]) -> Cluster:
    """Read a ``cluster.toml``.

    Parameters
    ----------
    path : str or path-like
        Profiles that it names are looked for beside it.

    Returns
    -------
    Cluster
        Complete: with the CPU of each host whose memory is known, and a link between each device and its host.

    Raises
    ------
    MachineError
        The file cannot be read, or says what cannot be: every fault with its line, what it is and what to do.
    """
    path = Path(path)
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error), re.DOTALL)
        where, what = (f":{found[2]}:{found[3]}", found[1]) if found else ("", str(error))
        message = f"{path}{where}: not TOML: {what}"
        raise MachineError(message) from None
    reading = _Reading(document, path.parent)
    cluster = reading.cluster()
    if reading.faults:
        lines = toml_lines(text)
        located = sorted({(_line_of(place, lines), message) for place, message in reading.faults})
        raise MachineError("\n".join(f"{path}:{line}: {message}" for line, message in located))
    return with_host_links(cluster)


class _KeyError(SettingError):
    """A key whose value cannot be used."""

    key: str


def _refuse(key: str, message: str) -> NoReturn:
    error = _KeyError(message)
    error.key = key
    raise error


@dataclass(frozen=True, slots=True)
class _Known:
    """What a speed tells of a device, beside its speed."""

    speed: Speed = NO_SPEED
    product: str = ""
    memory_bytes: int | None = None
    n_cores: int = 0


class _Reading:
    """One document on its way to a cluster. Faults are collected, each with its place in the document."""

    def __init__(self, document: dict[str, Any], folder: Path) -> None:
        self.faults: list[tuple[Place, str]] = []
        self._document = document
        self._folder = folder
        self._hosts: list[str] = []  # by name, those with faults too

    def cluster(self) -> Cluster:
        """Build the cluster, without links to hosts; to be used only where there are no faults."""
        self._check_top()
        self._hosts = [str(entry.get("name")) for entry in self._document.get("hosts", ())]
        hosts_read = list(self._each("hosts", HostEntry, self._host))
        devices = [
            *(
                (place, device)
                for place, group in self._each("devices", DeviceEntry, self._devices)
                for device in group
            ),
            *((place, cpu) for place, (_, cpu) in hosts_read if cpu is not None),
        ]
        links = list(self._each("links", LinkEntry, self._link))
        cluster = Cluster(
            hosts=tuple(host for _, (host, _) in hosts_read),
            devices=tuple(device for _, device in devices),
            links=tuple(link for _, link in links),
            notes=tuple(map(str, self._document.get("notes", ()))),
        )
        if not self.faults:
            places = {
                "hosts": [place for place, _ in hosts_read],
                "devices": [place for place, _ in devices],
                "links": [place for place, _ in links],
            }
            for fault in faults(cluster):
                place = (*places[fault.table][fault.entry], fault.key) if fault.table else ()
                self.faults.append((place, fault.message))
        return cluster

    def _check_top(self) -> None:
        document = self._document
        for key in document:
            if key not in TOP_KEYS:
                self.faults.append(((key,), f"there is no key {key!r} here{did_you_mean(key, TOP_KEYS)}"))
        version = document.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            self.faults.append((("schema_version",), f"schema_version {version!r} is not {SCHEMA_VERSION}"))
        for table in TABLES:
            tables = document.get(table, [])
            if not (isinstance(tables, list) and all(isinstance(entry, dict) for entry in tables)):
                self.faults.append(((table,), f"{table} is a list of tables: write [[{table}]] above each"))
                document[table] = []
        if not isinstance(document.get("notes", []), list):
            self.faults.append((("notes",), "notes is a list of sentences"))

    def _each(self, table: str, entry_type: type[Entry], build: Callable[[Entry], T]) -> Iterator[tuple[Place, T]]:
        for i, entry in enumerate(self._document.get(table, ())):
            place = (table, i)
            try:
                yield place, build(msgspec.convert(entry, entry_type))
            except _KeyError as error:
                said = f"{error.key} = {entry[error.key]!r}" if error.key in entry else error.key
                self.faults.append(((*place, error.key), f"{said}: {error}"))
            except msgspec.ValidationError as error:
                self.faults.append(_shape_fault(error, place, entry, [field.name for field in fields(entry_type)]))

    def _host(self, entry: HostEntry) -> tuple[Host, Device | None]:
        known = self._known(entry.speed, _of_host)
        host = Host(name=entry.name, n_numa_nodes=entry.numa_nodes, address=entry.address)
        memory_bytes = _size("memory", entry.memory, known.memory_bytes)
        if memory_bytes is None:
            return host, None
        n_cores, origin = (entry.cores, ORIGIN) if entry.cores else (known.n_cores, known.speed.name)
        return host, Device(
            name=cpu_name(entry.name, len(self._hosts)),
            kind="cpu",
            host=entry.name,
            product=entry.product or known.product or "CPU",
            memory_total_bytes=memory_bytes,
            memory_free_bytes=_size("free", entry.free, None),
            speed=known.speed,
            facts=(Fact(name="n_cores", value=n_cores, origin=origin),) if n_cores else (),
        )

    def _devices(self, entry: DeviceEntry) -> list[Device]:
        known = self._known(entry.speed, _of_gpu)
        device = Device(
            name=entry.name,
            kind=_device_kind(entry.kind or ("nvidia" if known.product else None)),
            host=self._host_of(entry),
            product=entry.product or known.product,
            memory_total_bytes=_device_memory(entry, known),
            memory_free_bytes=_size("free", entry.free, None),
            numa_node=entry.numa_node,
            speed=known.speed,
            unified_memory=entry.unified_memory,
            chips=entry.chips,
            facts=slot_facts(*_parsed("pcie", parse_pcie, entry.pcie), ORIGIN) if entry.pcie is not None else (),
        )
        if entry.count is None:
            return [device]
        if not 1 <= entry.count <= MAX_COUNT:
            _refuse("count", f"a number of equal devices from 1 to {MAX_COUNT}")
        return [replace(device, name=f"{entry.name}{i}") for i in range(entry.count)]

    def _host_of(self, entry: DeviceEntry) -> str:
        if entry.host is None and len(self._hosts) == 1:
            return self._hosts[0]
        if entry.host is None:
            _refuse("host", f"not given; one of {', '.join(self._hosts) or '[[hosts]], of which there are none'}")
        if entry.host not in self._hosts:
            _refuse("host", f"there is no such host{did_you_mean(entry.host, self._hosts)}")
        return entry.host

    def _link(self, entry: LinkEntry) -> Link:
        kind = next((kind for kind in LINK_KINDS if kind == entry.kind), None)
        if kind is None:
            _refuse("kind", f"no kind of link{did_you_mean(entry.kind, LINK_KINDS)}")
        if entry.count < 1:
            _refuse("count", "links side by side, at least 1")
        link = _published(entry, kind)
        if entry.bandwidth is not None:
            rate = entry.count * _parsed("bandwidth", parse_rate, entry.bandwidth)
            origin = f"bandwidth: {ORIGIN}; {link.origin}"
            link = replace(link, bandwidth_bytes_per_second=rate, source="given", origin=origin)
        if entry.latency is not None:
            seconds = _parsed("latency", parse_seconds, entry.latency)
            link = replace(link, latency_seconds=seconds, origin=f"latency: {ORIGIN}; {link.origin}")
        return replace(link, origin=link.origin.removesuffix("; "))

    def _known(self, name: str | None, of_kind: Callable[[str, Profile | None], _Known | None]) -> _Known:
        """Find the data sheet or the profile that a speed names."""
        if name is None:
            return _Known()
        known = of_kind(name, None)
        if known is not None:
            return known
        path = self._folder / name
        if not (path.suffix == ".json" or os.sep in name or path.exists()):
            near = did_you_mean(name, [*gpus(), *hosts()])
            _refuse("speed", f"neither a reference GPU or host ('pshard machines' lists them) nor a profile{near}")
        known = of_kind(str(path), _parsed("speed", read_profile, path))
        if known is None:
            _refuse("speed", "this profile has no GPU")
        return known


def _of_host(name: str, profile: Profile | None) -> _Known | None:
    if profile is not None:
        cpu = profile.cpu
        return _Known(Speed(source="profile", name=name), cpu.name, profile.capacities.ram_bytes, cpu.n_cores)
    if name not in hosts():
        return None
    sheet = hosts()[name]
    return _Known(Speed(source="reference", name=name), sheet.product, sheet.ram_bytes, sheet.n_cores)


def _of_gpu(name: str, profile: Profile | None) -> _Known | None:
    if profile is not None:
        gpu = profile.gpu
        return _Known(Speed(source="profile", name=name), gpu.name, profile.capacities.vram_bytes) if gpu else None
    if name not in gpus():
        return None
    return _Known(Speed(source="reference", name=name), gpus()[name].product, gpus()[name].vram_bytes)


def _device_kind(kind: str | None) -> str:
    if kind is None:
        _refuse("kind", f"not given, and no speed tells it; one of {', '.join(KINDS)}")
    if kind == "cpu":
        _refuse("kind", "a host has its CPU by itself: give the host its memory")
    if kind not in KINDS:
        _refuse("kind", f"no kind of device{did_you_mean(kind, KINDS)}")
    return kind


def _device_memory(entry: DeviceEntry, known: _Known) -> int:
    memory_bytes = _size("memory", entry.memory, known.memory_bytes)
    if memory_bytes is None:
        _refuse("memory", 'not given, and no speed tells it; an example is memory = "24G"')
    if memory_bytes == 0:
        _refuse("memory", "a device without memory holds no layer; leave it out")
    return memory_bytes


def _published(entry: LinkEntry, kind: LinkKind) -> Link:
    """Return the link with published figures, of which what is given is replaced."""
    ends, known = tuple(entry.ends), generations(kind)
    if entry.bandwidth is not None and entry.latency is not None:
        return Link(kind=kind, ends=ends, bandwidth_bytes_per_second=1.0, latency_seconds=0.0, source="given")
    if entry.generation is None and entry.bandwidth is None:
        _refuse("generation", f"give it (known: {', '.join(known)}), or bandwidth and latency")
    # For its latency alone, any generation of the kind will do.
    generation = known[-1] if entry.generation is None else str(entry.generation)
    return _parsed("generation", lambda name: reference_link(kind, name, ends, entry.count), generation)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path}: {error.strerror or error}; 'pshard devices --toml' writes one for this machine"
        raise MachineError(message) from None
    if len(content) > MAX_FILE_BYTES:
        message = f"{path}: longer than {MAX_FILE_BYTES} bytes; that is no cluster file"
        raise MachineError(message)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        message = f"{path}: byte {error.start} is not UTF-8"
        raise MachineError(message) from None


def _line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Line of a place, or of the nearest that holds it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _shape_fault(
    error: msgspec.ValidationError, place: Place, entry: Mapping[str, object], known: list[str]
) -> tuple[Place, str]:
    """Say what msgspec found: a key that does not exist, is missing, or holds the wrong type of value."""
    unknown = next((key for key in entry if key not in known), None)
    if unknown is not None:
        return (*place, unknown), f"[[{place[0]}]] has no key {unknown!r}{did_you_mean(unknown, known)}"
    what, _, path = str(error).partition(" - at `$.")
    key = re.match(r"\w*", path)
    if key is None or not key[0]:
        return place, f"[[{place[0]}]]: {what}"
    return (*place, key[0]), f"{key[0]} = {entry.get(key[0])!r}: {what}"


def _parsed(key: str, parse: Callable[[Any], T], value: object) -> T:
    try:
        return parse(value)
    except PshardError as error:
        _refuse(key, str(error))


def _size(key: str, value: Size | None, default: int | None) -> int | None:
    return default if value is None else _parsed(key, parse_bytes, value)
