"""Print `docs/reference/settings.md` from the settings' dataclasses: `python docs/generate_settings.py > …`.

What is said there is from `mobillm_flower/config/describe.py`, which `mobillm settings` shows too.
"""

from __future__ import annotations

import sys

from mobillm_flower.config.describe import describe_settings, part_summaries, value_text

INTRODUCTION = """\
# Settings

Generated from `mobillm_flower/config/parts/`; do not edit it by hand:

    python docs/generate_settings.py > docs/reference/settings.md

Write a setting as `key=value`, in kebab-case or snake_case. A list is written with commas: `task.labels=no,yes`. Two
more keys may stand in Flower's run config: `settings-file`, a YAML file with nested settings, and `settings`, an inline
string of `key=value` words. From weakest to strongest: default, preset, settings file, run config, inline string. On a
device, dotted keys of the node config override those of the run config. Which values are allowed is checked when the
settings are loaded; names of pivots, codecs, tasks, metrics, side networks and strategies when they are looked up.

`mobillm settings` shows the same, and with `--run RUN`, `--file YAML`, `--preset NAME` or `-c key=value` what is in
force and why ([command line](command-line.md#mobillm-settings)).
"""


def generate() -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Preset and strategy\n", _table("")]
    for name, summary in part_summaries().items():
        parts += [f"## {name}\n", f"{summary}\n", _table(name)]
    return "\n".join(parts)


def _table(part: str) -> str:
    rows = ["| setting | type | default | presets | meaning |", "|---|---|---|---|---|"]
    for setting in describe_settings():
        if setting.part == part:
            default = value_text(setting.default)
            cells = (
                f"`{setting.key}`",
                setting.type,
                f"`{default}`" if default else "empty",
                ", ".join(f"{preset}: `{value}`" for preset, value in setting.presets.items()),
                setting.meaning.replace("|", "\\|"),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(generate())
