"""A plan as people read it, from the same document that ``--json`` prints."""

from __future__ import annotations

import math
import shlex
import shutil
import textwrap
from typing import Any

from pshard.cli._output import SEPARATOR, Output, format_bytes
from pshard.planning.document import TIE
from pshard.quantities import GIB

Document = dict[str, Any]

# Batches up to this generate or verify; larger ones are prompts, of which people want the seconds.
LARGEST_DECODE_BATCH = 511

LANES = {
    "gpu": "GPU",
    "cpu": "CPU",
    "up": "PCIe up",
    "down": "PCIe down",
    "host_memory": "host memory",
    "handoff": "hand-offs",
}
PLACES = {"pinned": "pinned", "streamed": "streamed", "cpu": "on CPU"}
FFN = ("ffn_up", "ffn_gate", "ffn_down")
EXPERTS = ("experts_up", "experts_gate", "experts_down")
# What the table of tiers fits into.
TABLE_COLUMNS = 80
# A space where no line ends, until the text is wrapped.
TIED = "\N{NO-BREAK SPACE}"


def print_plan(out: Output, document: Document) -> None:
    """Print header, tiers, comparison and launch lines.

    Parameters
    ----------
    out : Output
    document : dict
        What `Plan.to_dict` returns.
    """
    _print_header(out, document)
    out.line()
    _print_tiers(out, document)
    out.line()
    if is_priced(document):
        _print_comparison(out, document)
        out.line()
    for sentence in verdicts(document):
        _paragraph(out, sentence)
    _print_launch_lines(out, document)


def is_priced(document: Document) -> bool:
    """Whether the machine has speeds; without, a plan goes by bytes alone."""
    return document["stock_fit"]["basis"] is not None


# --- header -----------------------------------------------------------------------------------------------------------


def _print_header(out: Output, document: Document) -> None:
    model, machine, workload = document["model"], document["machine"], document["workload"]
    size = f"{model['n_parameters'] / 1e9:.1f} B parameters, {model['n_layer']} layers"
    tokens = f"{workload['prompt_tokens']} prompt tokens, {workload['generate_tokens']} generated"
    facts = [f"-c {workload['n_ctx']}", f"-fa {'on' if workload['flash_attn'] else 'off'}"]
    facts += [f"KV {' / '.join(dict.fromkeys([workload['type_k'], workload['type_v']]))}", f"-t {machine['n_threads']}"]
    if workload["n_seq_max"] > 1:
        facts.append(f"{workload['n_seq_max']} sequences")
    budget = format_bytes(document["budget_bytes"])
    if machine["vram_bytes"]:
        budget += f" of VRAM (the GPU has {format_bytes(machine['vram_bytes'])}"
        free = machine["free_vram_bytes"]
        budget += f", {format_bytes(free)} free)" if free is not None else ")"
    else:
        budget = "no GPU"
    rows = {
        "model": f"{model['name']}: {model['architecture']}, {size}, {format_bytes(model['file_bytes'])}",
        "machine": f"{machine['name']}, {format_bytes(machine['ram_bytes'])} of RAM",
        "budget": budget,
        "workload": f"{tokens}; {', '.join(facts)}",
    }
    if workload["strategy"]:
        rows["strategy"] = f"{workload['strategy']}, forced"
    for name, text in rows.items():
        _paragraph(out, text, label=f"{name:<10}")
    for note in machine["notes"]:
        _paragraph(out, note, label=f"{'note':<10}")


# --- tiers ------------------------------------------------------------------------------------------------------------


def _print_tiers(out: Output, document: Document) -> None:
    names = ("batch", "placement", "tokens/s", "GiB of VRAM")
    rows = [
        (str(tier["batch_size"]), _placement_cell(tier, document), _speed_cell(tier, document), _memory_cell(tier))
        for tier in document["tiers"]
    ]
    others = [(names[i], *(line for row in rows for line in row[i].split("\n"))) for i in (0, 2, 3)]
    width = TABLE_COLUMNS - 3 * SEPARATOR - sum(max(map(len, lines)) for lines in others)
    out.table(names, [(batch, _wrapped(text, width), *figures) for batch, text, *figures in rows])


def _wrapped(text: str, width: int) -> str:
    """Wrap lines; what is tied together stays so where it fits."""
    lines = []
    for tied in text.split("\n"):
        for line in textwrap.wrap(tied, width, break_on_hyphens=False, break_long_words=False):
            lines += textwrap.wrap(line.replace(TIED, " "), width, break_on_hyphens=False)
    return "\n".join(lines)


def _placement_cell(tier: Document, document: Document) -> str:
    if not tier["viable"]:
        return f"does not fit: {format_bytes(tier['missing_bytes'])} missing"
    texts = [strategy_words(tier["strategy"]), placement_words(tier, document["model"]["n_layer"])]
    if is_priced(document):
        limit = f"limited by {LANES[tier['bottleneck']]}".replace(" ", TIED)
        texts.append("; ".join([limit, *_others(tier)]))
    return "\n".join(texts)


def _speed_cell(tier: Document, document: Document) -> str:
    if not tier["viable"]:
        return ""
    if not is_priced(document):
        return "not known"
    low, high = tier["batch_size"] / tier["seconds_high"], _rate(tier["batch_size"], tier["seconds_low"])
    speed = [figure(tier["tokens_per_second"]), f"{figure(low)} to {figure(high) if high else '?'}", tier["basis"]]
    if tier["batch_size"] > LARGEST_DECODE_BATCH:
        speed.append(f"{figure(tier['seconds'])} s")
    return "\n".join(speed)


def _memory_cell(tier: Document) -> str:
    if not tier["viable"]:
        return ""
    parts = (("all", "vram"), ("weights", "weights"), ("KV", "kv"), ("compute", "compute"))
    return "\n".join(f"{part:<8}{tier[f'{key}_bytes'] / GIB:>6.2f}" for part, key in parts)


def placement_words(placed: Document, n_layer: int) -> str:
    """Say what lies where: ``"21 layers pinned; 59: attention streamed, FFN on CPU; head on CPU"``.

    Parameters
    ----------
    placed : dict
        A tier or ``llama_cpp``: anything with `layers` and `output_on_gpu`.
    n_layer : int
        Layers of the model.
    """
    counts: dict[str, int] = {}
    for stretch in placed["layers"]:
        words = _stretch_words(stretch)
        counts[words] = counts.get(words, 0) + stretch["count"]
    order = list(PLACES.values())
    ranked = sorted(counts, key=lambda words: order.index(words) if words in order else 0.5)
    parts = []
    for i, words in enumerate(ranked):
        whole = words in order
        count = f"all {n_layer} layers" if len(counts) == 1 else f"{counts[words]}"
        if i == 0 and len(counts) > 1:
            count += " layer" if counts[words] == 1 else " layers"
        parts.append(f"{count} {words}" if whole else f"{count}: {words}")
    head = "head pinned" if placed["output_on_gpu"] else "head on CPU"
    return "; ".join([*parts, head])


def _stretch_words(stretch: Document) -> str:
    """Where the groups of some layers lie, in words; routers and shared experts go with the attention side."""
    groups = {group: place for place in PLACES for group in stretch[place]}
    used = {place for place in PLACES if stretch[place]}
    if len(used) == 1:
        return PLACES[used.pop()]
    rest = [place for group, place in groups.items() if group not in FFN + EXPERTS]
    main = max(dict.fromkeys(rest), key=rest.count) if rest else "pinned"
    by_place = {place: [group for group in FFN + EXPERTS if groups.get(group) == place] for place in PLACES}
    parts = [f"attention {PLACES[main]}"]
    for place, moved in by_place.items():
        if moved and place != main:
            parts.append(f"{_ffn_words(moved, [group for group in FFN + EXPERTS if group in groups])} {PLACES[place]}")
    return ", ".join(parts)


def _ffn_words(moved: list[str], present: list[str]) -> str:
    """`FFN`, `experts`, or the matrices of them by name."""
    experts_only = all(group in EXPERTS for group in moved)
    name = "experts" if experts_only else "FFN"
    whole = moved == present or moved == [group for group in present if group in EXPERTS]
    matrices = list(dict.fromkeys(group.partition("_")[2] for group in moved))
    return name if whole else f"{name} {' and '.join(matrices)}"


def _others(tier: Document) -> list[str]:
    """Name the runner-up and stock fit, with what they lose."""
    others = sorted(
        (c for c in tier["candidates"] if c["viable"] and c["strategy"] != tier["strategy"]), key=lambda c: c["loss"]
    )
    shown = others[:1] + [c for c in others[1:] if c["strategy"] == "STOCK_FIT"]
    said = [f"{strategy_words(c['strategy'])} {_loss(c['loss'])}".replace(" ", TIED) for c in shown]
    return [f"next: {said[0]}", *said[1:]] if said else ["no other strategy fits"]


def strategy_words(strategy: str) -> str:
    """Name a strategy by its stable key, but stock llama.cpp's own decision by its flag."""
    return "stock --fit" if strategy == "STOCK_FIT" else strategy


def _loss(loss: float) -> str:
    if loss < 0.005:
        return "as fast"
    return f"+{100 * loss:.0f} %" if loss < 1 else f"{1 + loss:.1f} x as long"


# --- the workload under each engine -----------------------------------------------------------------------------------


def _print_comparison(out: Output, document: Document) -> None:
    fit, stock, runtime = document["stock_fit"], document["llama_cpp"], document["pshard_runtime"]
    rows = [
        _engine_row("stock --fit", fit, document) if fit["viable"] else ["stock --fit", "does not fit", *[None] * 5]
    ]
    if stock is not None and not stock["is_stock_fit"]:
        rows.append(_engine_row("stock, this plan", stock, document))
    if runtime is not None:
        rows.append(_engine_row("pshard runtime", runtime, document))
    workload = document["workload"]
    title = (
        f"Seconds for {workload['prompt_tokens']} prompt tokens, then {workload['generate_tokens']} generated "
        f"({fit['basis']} figures)"
    )
    out.table(["with", "prompt", "generated", "total", "range", "tokens/s", "limited by"], rows, title=title)
    decided = " ".join("..." if "=" in flag else flag for flag in fit["flags"])
    out.line(f"stock --fit decides {decided} at -ub {fit['n_ubatch']}")


def _engine_row(name: str, engine: Document, document: Document) -> list[object]:
    prompt, switch, generate = engine["prompt_seconds"], engine.get("switch_seconds", 0.0), engine["generate_seconds"]
    rate = _rate(document["workload"]["generate_tokens"], generate)
    seconds = [figure(prompt + switch), figure(generate), figure(prompt + switch + generate)]
    seconds.append(f"{figure(engine['seconds_low'])} to {figure(engine['seconds_high'])}")
    return [name, *seconds, figure(rate) if rate else None, LANES[engine["bottleneck"]]]


def verdicts(document: Document) -> list[str]:
    """Say what a person gains with each engine, and what limits it."""
    fit, stock, runtime = document["stock_fit"], document["llama_cpp"], document["pshard_runtime"]
    if not is_priced(document):
        whole = f"It all fits, {format_bytes(document['baseline_vram_bytes'] or 0)}: just run this."
        return [whole if document["pshard_disabled"] else "Without speeds nothing says which engine is faster."]
    said = []
    if stock is None:
        said.append("Stock llama.cpp cannot hold this model in the budget.")
    elif document["budget_bytes"] == 0:
        said.append(f"All on the CPU; {_limits(stock)}.")
    elif document["pshard_disabled"]:
        said.append(f"It all fits, {format_bytes(document['baseline_vram_bytes'])}: just run this.")
    elif not fit["viable"]:
        said.append(f"Stock llama.cpp: its own --fit does not fit, this plan does; {_limits(stock)}.")
    elif stock["is_stock_fit"]:
        said.append(f"Stock llama.cpp: its own --fit is as good as any placement: use it; {_limits(stock)}.")
    else:
        gain = f"{stock['speedup_over_stock_fit']:.2f} times stock --fit for your workload"
        said.append(f"Stock llama.cpp with this plan: {gain}; {_limits(stock)}.")
    if runtime is not None and not document["pshard_disabled"]:
        gain = f"{runtime['speedup_over_stock_fit']:.2f} times stock --fit for your workload"
        if runtime["speedup_over_stock_fit"] <= 1 + TIE:
            gain = "no faster than stock --fit for your workload"
        said.append(f"pshard runtime: {gain}; {_limits(runtime)}.")
    return said


def _limits(engine: Document) -> str:
    n_bytes = engine["link_bytes_per_token"]
    limit = f"limited by {LANES[engine['bottleneck']]}"
    if n_bytes == 0:
        return limit
    moved = f"{figure(n_bytes / 1e9)} GB" if n_bytes >= 1e9 else f"{figure(n_bytes / 1e6)} MB"
    return f"{moved} over PCIe per token; {limit}"


def _print_launch_lines(out: Output, document: Document) -> None:
    stock, runtime = document["llama_cpp"], document["pshard_runtime"]
    if stock is not None:
        out.line()
        placement = placement_words(stock, document["model"]["n_layer"])
        assumed = f"; prices assume --load-mode {stock['load_mode']}" if is_priced(document) else ""
        _paragraph(out, f"Stock {stock['engine']}{assumed}; {placement}:")
        out.line(shlex.join(stock["argv"]))
    if runtime is not None and not document["pshard_disabled"]:
        out.line()
        tiers = f"tier {runtime['prompt_tier']} for the prompt, {runtime['decode_tier']} for tokens"
        _paragraph(out, f"Needs the pshard runtime (llama.cpp pull request #22692); {tiers}:")
        out.line(shlex.join(runtime["argv"]))


# --- words and figures ------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Write a number with three digits that count: ``"0.0123"``, ``"1.83"``, ``"155"``."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def _rate(n_tokens: int, seconds: float) -> float | None:
    return n_tokens / seconds if seconds > 0 and n_tokens > 0 else None


def _paragraph(out: Output, text: str, *, label: str = "") -> None:
    """Print a sentence, wrapped under its label at the terminal's width; at 100 columns where there is no terminal."""
    columns = min(100, shutil.get_terminal_size((100, 24)).columns)
    for line in textwrap.wrap(
        text, columns, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    ):
        out.line(line)
