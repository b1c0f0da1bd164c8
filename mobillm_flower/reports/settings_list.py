"""The settings of a run, those that differ from the defaults marked."""

from __future__ import annotations

from mobillm_flower.config.describe import describe_settings, plain, value_text
from mobillm_flower.reports.markup import Markup, element, join, paragraph, table
from mobillm_flower.reports.source import ReportSource


def settings_list(source: ReportSource) -> Markup:
    """Return the settings that differ from the defaults, then all of them."""
    if not source.settings:
        return paragraph(f"The run's folder holds no {source.run.folder.settings.name}.")
    known = {description.key: description for description in describe_settings()}
    preset = str(source.settings.get("preset"))
    changed: list[tuple[str, ...]] = []
    rows: list[tuple[str, ...]] = []
    for key, value in source.settings.items():
        shown = value_text(value) or "empty"
        if key not in known:  # of another version
            changed.append((key, shown, "not known to this version"))
            rows.append((element("strong", key), element("strong", shown), "", "not known to this version"))
            continue
        default = value_text(known[key].default) or "empty"
        if shown == default:
            rows.append((key, shown, default, known[key].meaning))
            continue
        by_preset = known[key].presets.get(preset)
        why = f" (preset {preset})" if by_preset is not None and plain(by_preset) == value else ""
        changed.append((key, shown, default + why))
        rows.append((element("strong", key), element("strong", shown), default, known[key].meaning))
    return join(
        table("Settings that differ from the defaults", ("setting", "value", "default"), changed, class_="settings")
        if changed
        else paragraph("All settings are at their defaults."),
        element(
            "details",
            element("summary", f"All {len(rows)} settings"),
            table(
                "All settings, changed ones bold", ("setting", "value", "default", "meaning"), rows, class_="settings"
            ),
        ),
    )
