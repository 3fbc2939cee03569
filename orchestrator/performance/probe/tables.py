"""Probes as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from orchestrator.performance.results.engine import EngineRates
from orchestrator.performance.results.probe import Probes, Spread

Rows = Iterator[tuple[str, ...]]


def tables(found: Probes) -> Iterator[Table]:
    """Tables of devices, model files, links, and messages by size; empty ones are left out."""
    sending = _sending(found)
    for heads, rows in (
        (("node", "device", "memory", "matrix", "operation"), _devices(found)),
        (("node", "model's file", "read", "loaded"), _storage(found)),
        (("link", "network", "interfaces", "negotiated", "TCP", "one way"), _links(found)),
        (("message", "TCP, slowest link", *sending), _messages(found)),
    ):
        table = Table(*heads, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        if table.row_count:
            yield table


def engine_table(found: EngineRates) -> Table:
    heads = ("prompt", "at once", "first token", "further token", "step of all", "all, tokens/s")
    table = Table(*heads, box=None, pad_edge=False)
    for each in sorted(found.cells, key=lambda cell: (cell.prompt_tokens, cell.concurrency)):
        table.add_row(
            str(each.prompt_tokens),
            str(each.concurrency),
            _time(each.ttft_s),
            _time(each.tpot_s),
            _time(each.step_s),
            f"{each.output_tokens_per_s.median:.4g}",
        )
    return table


def _devices(found: Probes) -> Rows:
    for each in found.devices:
        matrix = (f"{k} {v.median / 1e9:.4g}" for k, v in each.matrix_flops_per_s.items())
        yield (
            each.node,
            f"{each.device}, {each.threads} threads: {each.name}",
            _rate(each.memory_bytes_per_s),
            f"{', '.join(matrix)} GFLOP/s",
            _time(each.operation_s),
        )


def _storage(found: Probes) -> Rows:
    for each in found.storage:
        where = "" if each.uncached else ", in memory"
        file = f"{each.bytes / 1e6:.4g} MB on {each.file_system or '?'}{where}"
        yield each.node, file, _rate(each.read_bytes_per_s), _rate(each.load_bytes_per_s)


def _links(found: Probes) -> Rows:
    for each in found.links:
        agreed = (f"{n / 1e9:.3g} Gb/s" if n else "-" for n in each.negotiated_bits_per_s)
        yield (
            f"{each.a}, {each.b}",
            each.network,
            ", ".join(name or "?" for name in each.interfaces),
            ", ".join(agreed),
            f"{each.bytes_per_s.median * 8 / 1e6:.4g} Mb/s",
            _time(each.latency_s),
        )


def _sending(found: Probes) -> dict[str, Mapping[int, Spread]]:
    """Times by size of what was measured of collectives, by their columns' heads."""
    columns: dict[str, Mapping[int, Spread]] = {}
    for each in found.collectives:
        kinds = {"all-reduce": each.all_reduce_s, "send": each.send_s, "launch": each.launch_s}
        columns |= {f"{kind}, {each.backend}": times for kind, times in kinds.items() if times}
    return columns


def _messages(found: Probes) -> Rows:
    columns = list(_sending(found).values())
    every = [each.by_size_s for each in found.links]
    for size in sorted({size for each in (*every, *columns) for size in each}):
        slowest = max((each[size] for each in every if size in each), key=_median, default=None)
        yield f"{size} bytes", _time(slowest), *(_at(each, size) for each in columns)


def _median(figure: Spread) -> float:
    return figure.median


def _at(times: Mapping[int, Spread], size: int) -> str:
    return _time(times.get(size))


def _time(figure: Spread | None) -> str:
    """A time with the spread of its repeats."""
    if figure is None:
        return ""
    unit, scale = ("µs", 1e6) if figure.median < 1e-3 else ("ms", 1e3)
    return f"{figure.median * scale:.3g} {unit} {_off(figure)}".rstrip()


def _rate(figure: Spread) -> str:
    return f"{figure.median / 1e9:.3g} GB/s {_off(figure)}".rstrip()


def _off(figure: Spread) -> str:
    """Half the distance between lowest and highest, as a share; empty for a single figure."""
    return f"±{figure.relative / 2:.0%}" if figure.n > 1 else ""
