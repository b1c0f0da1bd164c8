"""Rows that an app's devices load by themselves (`load_data`), brought to one place for what needs them there."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillm_flower.errors import DataError, MobiLLMError, UnsupportedError
from mobillm_flower.launch.app import App

if TYPE_CHECKING:  # what runs and watches an app needs no torch; these load it
    import datasets

    from mobillm_flower.clients.own import LoadData

DEVICE = "mobillm-device"
_FIRST = 1_000_000  # numbers that are in order as texts, too


@contextlib.contextmanager
def gathered(
    app: App, words: Sequence[str], folder: Path | None = None, *, at_most: int | None = None
) -> Iterator[list[str]]:
    """Yield settings that name the rows of an app whose devices load them by themselves; none where they do not.

    The rows of `data.num-devices` devices are asked of the app's own function and written to a folder, a column of
    which says whose they are. Where `words` name a `data.source`, that one is taken.

    Parameters
    ----------
    app : App
        From `read_app`.
    words : sequence of str
        ``key=value``, over the app's own settings.
    folder : Path, optional
        Where the rows are kept; by default in a temporary folder until the end. Readable by its owner alone.
    at_most : int, optional
        How many of the devices are asked; by default all.

    Raises
    ------
    DataError, UnsupportedError
        The function returned no rows, or rows of which nothing names the classes, or needs what only a real device has.
    """
    given = {word.partition("=")[0].strip() for word in words}
    load = None if "data.source" in given else app_loader(app)
    if load is None:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="mobillm-rows-") as made:
        to = folder or Path(made) / "rows"
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True, mode=0o700)
        settings = app.settings(words)
        config = {**app.config, **app.run_config(words)}
        splits = rows_of(app, load, settings.data.num_devices, config, at_most=at_most)
        import datasets

        from mobillm_flower.tasks.data import check_own_classes
        from mobillm_flower.tasks.partitions import no_progress

        check_own_classes(splits["train"], settings)  # as its devices do, of which none knows the others' classes
        with no_progress():
            datasets.DatasetDict(splits).save_to_disk(to)
        yield [
            f"data.source={to}",
            *("data.train-split=train", "data.test-split=test", "data.split-column=", "data.test-share=0"),
            *("data.partition=natural", f"data.partition-column={DEVICE}", "data.max-samples=0", "data.subset="),
        ]


def rows_of(
    app: App, load: LoadData, count: int, run_config: dict[str, Any], *, at_most: int | None = None
) -> dict[str, datasets.Dataset]:
    """Return the train and test rows of so many devices, or the first of them; a column says whose they are."""
    import datasets
    from flwr.app import Context, RecordDict

    from mobillm_flower.tasks import both_splits

    parts: dict[str, list[datasets.Dataset]] = {"train": [], "test": []}
    for number in range(count if at_most is None else min(count, at_most)):
        node: dict[str, bool | float | int | str] = {"partition-id": number, "num-partitions": count}
        context = Context(run_id=0, node_id=number + 1, node_config=node, state=RecordDict(), run_config=run_config)
        try:
            pair = both_splits(load(context))
        except MobiLLMError:
            raise
        except Exception as error:  # the message may hold a text
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f" {error}" if isinstance(error, KeyError) else ""
            raise UnsupportedError(
                f"{app.folder.name}'s devices load their own rows; load_data ended with {type(error).__name__}{key} at "
                f"{Path(place.filename).name}:{place.lineno} for a device whose node config has partition-id and "
                "num-partitions alone. What needs all rows in one place cannot be done so: let load_data serve such "
                "devices too, or name rows with -c data.source=FOLDER"
            ) from None
        for name, rows in zip(parts, pair, strict=True):
            parts[name].append(rows.add_column(DEVICE, [_FIRST + number] * len(rows)))
    try:
        return {
            name: datasets.concatenate_datasets([part for part in of if len(part)] or of[:1])
            for name, of in parts.items()
        }
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{app.folder.name}'s load_data returns columns of other types on other devices; give them one type each"
        ) from error


def app_loader(app: App) -> LoadData | None:
    """Return the `load_data` of an app's ClientApp, None where it has none; the app's module is imported.

    Raises
    ------
    UnsupportedError
        The module cannot be imported.
    """
    module, _, name = app.components.get("clientapp", "").partition(":")
    if not module or not name:
        return None
    package = module.partition(".")[0]
    for known in [key for key in sys.modules if key.partition(".")[0] == package]:
        if not str(getattr(sys.modules[known], "__file__", "") or "").startswith(str(app.folder)):
            del sys.modules[known]  # of another app with the same name
    sys.path.insert(0, str(app.folder))
    try:
        made = getattr(importlib.import_module(module), name, None)
    except MobiLLMError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"{app.folder.name}'s {module} cannot be imported here ({type(error).__name__}: {error})"
        ) from error
    finally:
        sys.path.remove(str(app.folder))
    from mobillm_flower.clients.own import loader_of

    return loader_of(made)
