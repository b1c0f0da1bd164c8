"""Devices of a run: bytes, seconds, a table, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mobillm_flower.reports.charts import Bar, column_chart
from mobillm_flower.reports.markup import Markup, element, join, paragraph, table
from mobillm_flower.reports.source import ReportSource
from mobillm_flower.reports.units import bytes_text, bytes_unit, seconds_text, time_text
from mobillm_flower.runs.device_events import Dropped, Failure, NodeRefused, Rejected
from mobillm_flower.runs.devices import DeviceRecord, device_of
from mobillm_flower.runs.events import CacheFull

_MOST_COLUMNS = 200  # of a chart; more devices are drawn as evenly spaced ones among the sorted
_MOST_ROWS = 500  # of a table
_TROUBLE = (NodeRefused, Failure, Rejected, Dropped, CacheFull)


def fleet(source: ReportSource) -> Markup:
    """Return charts and table of the devices."""
    devices = source.devices
    if not devices:
        return join(paragraph("No device has been met."), _trouble(source))
    charts = [
        _bytes(devices, "bytes up", lambda device: device.bytes_up),
        _bytes(devices, "bytes down", lambda device: device.bytes_down or 0),
        _columns(devices, "device seconds", lambda device: device.forward_seconds, "s", seconds_text),
    ]
    note = "Bytes are the records of the messages, without Flower's framing. Seconds are tokenizing and forward pass; "
    simulated = source.run.folder.devices.is_dir()
    note += "the devices of this simulation shared one machine." if simulated else "each device measures its own."
    return join(
        element("div", [chart for chart in charts if chart], class_="charts"),
        paragraph(note),
        _table(devices),
        _trouble(source),
    )


def _bytes(devices: Sequence[DeviceRecord], name: str, value: Callable[[DeviceRecord], float]) -> Markup | None:
    unit, size = bytes_unit(max(value(device) for device in devices))
    return _columns(devices, name, lambda device: value(device) / size, unit, lambda shown: bytes_text(shown * size))


def _columns(
    devices: Sequence[DeviceRecord],
    name: str,
    value: Callable[[DeviceRecord], float],
    unit: str,
    text: Callable[[float], str],
) -> Markup | None:
    """Return a chart of one figure, largest first; None where it is 0 everywhere."""
    ordered = sorted(devices, key=value, reverse=True)
    values = [value(device) for device in ordered]
    if not values[0]:
        return None
    step = max(1.0, len(ordered) / _MOST_COLUMNS)
    shown = [ordered[int(i * step)] for i in range(int(len(ordered) / step))]
    median = values[len(values) // 2]
    return column_chart(
        [Bar(device.name, value(device), text(value(device))) for device in shown],
        x_label=f"{len(devices):,} devices, largest first",
        y_label=f"{name}, {unit}",
        summary=f"{name} by device: most {text(values[0])}, median {text(median)}, least {text(values[-1])}",
    )


def _table(devices: Sequence[DeviceRecord]) -> Markup:
    ordered = sorted(devices, key=lambda device: (not device.troubled, -device.bytes_up, device.device))
    listed = ordered[:_MOST_ROWS]
    caption = "Devices, those with trouble first"
    if len(listed) < len(ordered):
        caption += f"; {len(ordered) - len(listed):,} more are in the run's log"
    rows = [_row(device) for device in listed]
    if len({(device.backbone, device.layers) for device in devices}) == 1:  # it is named at the top of the page
        rows = [{**row, "backbone": ""} for row in rows]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    total = {
        "device": f"all {len(devices):,}",
        "samples": f"{sum(device.samples for device in devices):,}",
        "windows": f"{sum(device.windows for device in devices):,}",
        "bytes up": bytes_text(sum(device.bytes_up for device in devices)),
        "bytes down": _known(sum(device.bytes_down or 0 for device in devices) or None),
        "seconds": seconds_text(sum(device.forward_seconds for device in devices)),
        "strikes": f"{sum(device.strikes.total() for device in devices):,}",
        "failures": f"{sum(device.failures for device in devices):,}",
        "refused": f"{sum(device.refused for device in devices):,}",
        "dropped": f"{sum(bool(device.dropped) for device in devices):,}",
        "loss": f"{sum(device.outlier for device in devices):,} far above",
    }
    note = (
        "Samples: held by the server, of those the device has. Peak memory: of the device's whole process, as it says. "
        "Strikes: packets rejected, by rule. Failures: errors and late answers. Refused: samples it declines to "
        "release. A dash: known when the run has ended."
    )
    if "loss" in columns:
        note += (
            " Loss and agreement: of the trained side network on the device's cached samples; a loss far above the "
            "others' may mean wrong labels, or data unlike the others'. Samples that are not trained on: those of the "
            "other devices contradict them, or make them doubtful and there are many (trainer.judge-devices)."
        )
    listing = table(
        caption,
        columns,
        [[row[name] for name in columns] for row in rows],
        numeric=[i for i, name in enumerate(columns) if name not in ("device", "dropped", "backbone", "chosen")],
        total=[total.get(name, "") for name in columns],
        class_="devices",
    )
    return join(listing, paragraph(note, class_="note"))


def _row(device: DeviceRecord) -> dict[str, str]:
    """Return a device's cells by column; a column that is empty for all devices is left out."""
    strikes = ", ".join(f"{rule} × {count}" for rule, count in sorted(device.strikes.items()))
    far = " (far above)" if device.outlier else ""
    unused = device.held - device.used if device.used is not None else 0
    not_used = f", {unused:,} not trained on" if unused > 0 else ""
    return {
        "device": device.name,
        "samples": f"{device.samples:,} of {device.num_train:,}{not_used}",
        "windows": f"{device.windows:,}",
        "bytes up": bytes_text(device.bytes_up),
        "bytes down": _known(device.bytes_down),
        "seconds": seconds_text(device.forward_seconds),
        "peak memory": _known(device.peak_memory_bytes),
        "strikes": strikes or "0",
        "failures": f"{device.failures:,}",
        "refused": f"{device.refused:,}",
        "dropped": device.dropped or "no",
        "loss": "" if device.loss is None else f"{device.loss:.4f}{far}",
        "agreement": "" if device.agreement is None else f"{device.agreement:.4f}",
        "backbone": f"{device.backbone}, {device.layers} layers" if device.backbone else "unknown",
        "chosen": device.chosen,
    }


def _known(size: float | None) -> str:
    return "–" if size is None else bytes_text(size)


def _trouble(source: ReportSource) -> list[Markup]:
    """Return the events in which something went wrong, the last ones where there are many."""
    events = [event for event in source.run.events if isinstance(event, _TROUBLE)]
    if not events:
        return []
    rows = []
    for event in events[-_MOST_ROWS:]:
        node = getattr(event, "node", "")
        who = device_of(event)[:8] or (f"node {node}" if node else "")
        rows.append((time_text(event.time), event.kind, who, event.reason))
    caption = "What went wrong" + (f", the last {len(rows):,} of {len(events):,}" if len(rows) < len(events) else "")
    return [element("h3", "What went wrong"), table(caption, ("when", "what", "who", "reason"), rows, class_="trouble")]
