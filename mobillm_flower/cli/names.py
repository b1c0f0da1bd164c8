"""Names that no registry has, found before Flower is started: only where the app cannot have registered them."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobillm_flower.config import Settings
    from mobillm_flower.core.registry import Registry
    from mobillm_flower.launch import App

_KNOWN = {"datasets", "flwr", "mobillm_flower", "numpy", "torch"}  # these register nothing of ours
_MOST_FILES = 100  # more than an app has: an environment lies there too
_MAY_REGISTER = re.compile(
    r"\b(register|Registry|CODECS|METRICS|PIVOTS|SIDE_NETWORKS|STRATEGIES|TASKS|core|"
    r"importlib|import_module|__import__|runpy|pickle|exec|eval|getattr|globals|vars|sys)\b"
)


def check_names(app: App, settings: Settings) -> None:
    """Look up the names in settings that an app cannot have registered itself.

    The command does not import the app, so it looks at its source: an app that only makes the package's own client and
    strategy, defines no class, and imports nothing but the standard library, Flower and this package, registers
    nothing. Any other app is left to find out when it runs.

    Raises
    ------
    SettingsError
        A name is in no registry; the nearest one is named.
    """
    from mobillm_flower.config import load_settings

    plain = load_settings({"preset": settings.preset})
    if _names(settings) == _names(plain) or not registers_nothing(app):
        return
    from mobillm_flower.core.codecs import CODECS
    from mobillm_flower.core.pivots import PIVOTS
    from mobillm_flower.core.side_networks import SIDE_NETWORKS
    from mobillm_flower.strategies.registry import STRATEGIES
    from mobillm_flower.tasks import METRICS, TASKS, TOKEN_METRICS

    task = TASKS[settings.task.kind]
    metrics: Registry[Any] = TOKEN_METRICS if getattr(task, "per_token", False) else METRICS
    registries: tuple[Registry[Any], ...] = (STRATEGIES, CODECS, CODECS, PIVOTS, SIDE_NETWORKS, TASKS, metrics)
    for registry, name in zip(registries, _names(settings), strict=True):
        if name != "auto":
            registry[name]


def registers_nothing(app: App) -> bool:
    """Whether an app's source shows that it adds nothing to a registry; False where that cannot be told."""
    seen = (file for file in app.folder.rglob("*.py") if not _hidden(file.relative_to(app.folder)))
    files = list(itertools.islice(seen, _MOST_FILES + 1))
    if len(files) > _MOST_FILES:
        return False
    for component in ("serverapp", "clientapp"):
        module = app.components.get(component, "").partition(":")[0]
        if not module or app.folder / f"{module.replace('.', '/')}.py" not in files:
            return False  # it is somewhere else
    own = {file.relative_to(app.folder).parts[0].removesuffix(".py") for file in files}
    allowed = _KNOWN | own | set(sys.stdlib_module_names)
    try:
        texts = [file.read_text("utf-8") for file in files]
        imported = set().union(*map(_imports, texts))
    except (OSError, ValueError, SyntaxError):
        return False
    whole = "\n".join(texts)
    made = "make_strategy" in whole and "SideTuningClient" in whole
    return made and imported <= allowed and not _MAY_REGISTER.search(whole)


def _names(settings: Settings) -> tuple[str, ...]:
    return (
        settings.strategy,
        settings.activations.codec,
        settings.side_network.codec,
        settings.activations.pivot,
        settings.side_network.name,
        settings.task.kind,
        settings.task.metric,
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _imports(source: str) -> set[str]:
    """Return the top-level packages that a module imports; a class, which could be anything, counts as one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ClassDef):
            found.add(f"class {node.name}")
    return found
