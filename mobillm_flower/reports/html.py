"""`report.html`: one self-contained page, made from the run's folder alone.

No script, no external resource, no time of making: the same folder gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from mobillm_flower import __version__
from mobillm_flower.errors import RunFailed
from mobillm_flower.reports.audit import audit_section
from mobillm_flower.reports.confusion import confusion
from mobillm_flower.reports.fleet import fleet
from mobillm_flower.reports.language import responses, speakers
from mobillm_flower.reports.markup import Markup, document, element, join, paragraph, says
from mobillm_flower.reports.not_protected import not_protected
from mobillm_flower.reports.quality import gates, learning, memory, results
from mobillm_flower.reports.settings_list import settings_list
from mobillm_flower.reports.source import ReportSource, read_source
from mobillm_flower.reports.tasks import tasks
from mobillm_flower.reports.units import bytes_text, seconds_text, time_text
from mobillm_flower.runs.events import Epoch, Finished, Prepared, Started

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_path: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, completed or not, and return where it is.

    Parameters
    ----------
    run_path : path
        The run's folder.
    out : path, optional
        The file; by default report.html in the run's folder.

    Raises
    ------
    RunFailed
        The folder holds no events, one of its files is damaged, or the report cannot be written.
    """
    source = read_source(run_path)
    file = Path(out).expanduser() if out else source.run.folder.report
    try:
        content = page(source)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunFailed(
            f"{source.run.folder.path}: a file holds something else than a run writes ({type(error).__name__}); move "
            f"{source.run.folder.results.name} or {source.run.folder.audit.name} away, or see `mobillm --debug report`"
        ) from error
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, "utf-8")
    except OSError as error:
        raise RunFailed(f"{file} cannot be written: {error.strerror}; name another file with --out") from error
    return file


def page(source: ReportSource) -> str:
    """Return the whole page."""
    name = f"Run {source.run.folder.path.resolve().name}"
    parts = [
        ("results", "Results", results(source)),
        ("tasks", "Tasks one after another", tasks(source)),
        ("learning", "Learning curve", learning(source)),
        ("responses", "Responses", responses(source)),
        ("speakers", "Each one's texts", speakers(source)),
        ("confusion", "Confusion matrix", confusion(source)),
        ("devices", "Devices", fleet(source)),
        ("memory", "Device memory", memory(source)),
        ("gates", "Gates", gates(source)),
        ("audit", "What a server could learn", audit_section(source.audit)),
        ("protection", "What is not protected", _protection(source)),
        ("settings", "Settings", settings_list(source)),
    ]
    there = [(key, title, content) for key, title, content in parts if content]
    return document(
        f"{name}: {source.run.outcome}",
        element("header", element("h1", name), _state(source), _facts(source), _tiles(source)),
        element("nav", [element("a", title, href=f"#{key}") for key, title, _ in there], aria_label="On this page"),
        element("main", [element("section", element("h2", title), text, id=key) for key, title, text in there]),
        element("footer", paragraph(f"Made by mobillm-flower {__version__} from the run's folder.")),
        meta=[
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        ],
    )


def _state(source: ReportSource) -> Markup:
    """Return how the run ended, or how far it is."""
    run = source.run
    finished = run.session.last(Finished)
    if finished:
        text = f"in {seconds_text(finished.seconds)}"
        if finished.outcome == "failed":
            text = finished.reason or "no reason was given"
    else:
        last = run.events[-1]
        text = f"{_progress(source)} The last event ({last.kind}) is of {time_text(last.time)}; a run that was killed "
        text += "looks the same."
    class_ = f"state {run.outcome.replace(' ', '-')}"
    return paragraph(element("strong", run.outcome), " ", text, class_=class_)


def _progress(source: ReportSource) -> str:
    """Return in words what a run without an end has reached."""
    prepared, epoch = source.run.last(Prepared), source.run.last(Epoch)
    if not prepared:
        return f"{len(source.devices)} devices were met; nothing is uploaded yet."
    if epoch:
        return f"Training: epoch {epoch.epoch} of at most {source.setting('trainer.epochs')} is done."
    held = sum(device.samples for device in source.devices)
    return f"Devices upload: {held:,} of {prepared.num_train:,} samples are held."


def _facts(source: ReportSource) -> Markup:
    """Return what the run is."""
    run = source.run
    labels = source.labels
    kind = str(source.setting("task.kind"))
    started, prepared = run.last(Started), run.last(Prepared)
    backbones = sorted({f"{device.backbone}, {device.layers} layers" for device in source.devices if device.backbone})
    facts = [
        ("Strategy", started.strategy if started else ""),
        ("Task", f"{kind}, {len(labels)} classes" if labels else kind),
        ("Data", str(source.setting("data.source"))),
        ("Backbone", "; ".join(backbones) or str(source.setting("backbone.name"))),
        (
            "Side network",
            f"{prepared.parameters:,} parameters, {prepared.num_blocks} blocks, width {prepared.width}"
            if prepared
            else "not made yet",
        ),
        ("Upload", f"{source.setting('loss.objective')}, {source.setting('activations.codec')}"),
        ("Started", time_text(run.events[0].time)),
    ]
    sessions = len(run.all(Started))
    if sessions > 1:
        facts.append(("Sessions", f"{sessions}: it was interrupted and went on"))
    items = [element("div", element("dt", name), element("dd", value)) for name, value in facts if value]
    return element("dl", items, class_="facts")


def _tiles(source: ReportSource) -> Markup:
    """Return the figures that one looks for first."""
    devices = source.devices
    samples = sum(device.samples for device in devices)
    tiles = []
    tuned = source.reference("tuned")
    if tuned is not None:
        tiles.append((f"{tuned:.4f}", f"{source.references.get('metric', 'metric')}, test split"))
    tiles.append((f"{samples:,}", f"samples from {len(devices):,} devices"))
    if samples:
        up = sum(device.bytes_up for device in devices)
        tiles.append((bytes_text(up / len(devices)), "up, a device"))
        seconds = sum(device.forward_seconds for device in devices)
        tiles.append((seconds_text(seconds / len(devices)), "of computing, a device"))
    memory_ratio = (source.references.get("memory") or {}).get("ratio")
    if memory_ratio:
        tiles.append((f"× {memory_ratio:.2f}", "memory of plain inference"))
    return element(
        "ul",
        [element("li", element("strong", figure), element("span", what)) for figure, what in tiles],
        class_="tiles",
    )


def _protection(source: ReportSource) -> Markup:
    intro = "True to the settings of this run. Nothing here hides labels or texts from the server by itself."
    return join(paragraph(intro), says(not_protected(source)))
