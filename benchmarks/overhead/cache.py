"""Random rows a second from a warm cache, and the server's memory as the cache grows.

`python -m benchmarks.overhead.cache FILE READS` prints the memory of a fresh process that opens a cache, splits its
rows and reads some of them, as one JSON line.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.sparse import decode_samples, encode_sample
from mobillm_flower.evaluation.turns import (
    Comparison,
    Report,
    Seconds,
    Threshold,
    compare_seconds,
    run_fresh,
    status_bytes,
    take_turns,
    timed,
)
from mobillm_flower.privacy.ledger import Release
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.sampler import draw_order, split_validation

ROWS_BAR, GROWTH_BAR = 100_000, 1.10
_SHAPE = (1, 12, 1, 768)
_WINDOW, _DEVICES, _DISTINCT = 1000, 20, 1000
_BATCH = 32  # rows a call, as the trainer reads them

Say = Callable[[str], None]
Read = Callable[[Sequence[int]], object]


def bench_cache(
    *,
    pairs: int = 10,
    num_rows: int = 200_000,
    num_few: int = 10_000,
    reads: int = 10_000,
    folder: Path | None = None,
    memory: bool = True,
    say: Say = lambda _text: None,
) -> Report:
    """Read random batches from a cache of 12 × 768 NF4 samples, and compare the memory of a small and a large one.

    Parameters
    ----------
    pairs : int
        Turns.
    num_rows, num_few : int
        Rows of the large and of the small cache; about 5 kB a row on disk, deleted afterwards.
    reads : int
        Rows read in a turn, in batches of 32.
    folder : Path, optional
        Where to put them; by default the system's folder for temporary files.
    memory : bool
        Whether to measure memory too: two fresh processes a turn.

    Returns
    -------
    Report
        Bars `rows_per_s` (`ActivationCache.read`, in turns with one plain SELECT a row) and `rss_growth`: anonymous
        memory (RssAnon) of a fresh process with the large cache over one with the small cache. Each opens the cache,
        splits its rows as the trainer does, and reads; the highest value counts.
    """
    reads = min(reads, num_rows)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        large, few = Path(name) / "large.sqlite", Path(name) / "few.sqlite"
        say(f"writing {num_rows:,} rows")
        blobs = _blobs()
        _fill(large, num_rows, blobs)
        _fill(few, num_few, blobs)
        report = Report(
            "cache",
            {
                "rows": num_rows,
                "rows_few": num_few,
                "shape": list(_SHAPE),
                "codec": "nf4",
                "blob_bytes": len(blobs[0]),
                "file_bytes": large.stat().st_size,
                "reads_a_turn": reads,
                "batch": _BATCH,
                "page_cache": "warm: the file is read as a whole before",
                "threads": 1,
                "pairs": pairs,
            },
        )
        _rows_per_second(report, large, pairs=pairs, reads=reads, say=say)
        _checksums(report, few, pairs=pairs, reads=min(reads, num_few), say=say)
        if not memory:
            report.skipped["memory"] = "not asked for"
        elif not Path("/proc/self/status").exists():
            report.skipped["memory"] = "anonymous memory is a figure of Linux's"
        else:
            _memory(report, large, few, pairs=pairs, reads=reads, say=say)
    return report


def _rows_per_second(report: Report, file: Path, *, pairs: int, reads: int, say: Say) -> None:
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass
    cache, plain = ActivationCache(file), sqlite3.connect(file)
    ids = cache.rows().column("id")
    # other rows in each turn, the same on both sides; the first turn is not counted
    draws = [ids[draw_order(len(ids), seed=0, phase=0, number=i)[:reads]].tolist() for i in range(pairs + 1)]

    def ours(wanted: Sequence[int]) -> None:
        for start in range(0, len(wanted), _BATCH):
            cache.read(wanted[start : start + _BATCH])

    def one_by_one(wanted: Sequence[int]) -> None:
        for number in wanted:
            plain.execute("SELECT activations, target FROM samples WHERE id = ?", (number,)).fetchone()

    sides = {"ours": _reader(ours, draws), "plain": _reader(one_by_one, draws)}
    take_turns(sides, 1)
    say("rows a second")
    found = take_turns(sides, pairs, say=say)
    cache.close()
    plain.close()
    for clock, comparison in compare_seconds(found["ours"], found["plain"], "one plain SELECT a row").items():
        report.comparisons[f"read{clock}"] = comparison
        medians = comparison.to_dict()
        report.figures[f"rows_per{clock}_s"] = reads / medians["ours_median"]
        report.figures[f"plain_rows_per{clock}_s"] = reads / medians["other_median"]
    report.bars["rows_per_s"] = Threshold(report.figures["rows_per_s"], ROWS_BAR, at_most=False)


class _Unchecked(ActivationCache):
    """Reads rows and does not look at their checksums."""

    def read(self, ids: Iterable[int]) -> list[tuple[bytes, bytes]]:
        query = "SELECT samples.id, activations, target FROM json_each(?) AS asked CROSS JOIN samples "
        return [row[:2] for row in self._in_order(f"{query} ON samples.id = asked.value", ids)]


def _checksums(report: Report, file: Path, *, pairs: int, reads: int, say: Say) -> None:
    """Read and decode batches, with the checksum of each row looked at and without."""
    caches = {"checked": ActivationCache(file), "unchecked": _Unchecked(file)}
    ids = caches["checked"].rows().column("id")
    draws = [ids[draw_order(len(ids), seed=0, phase=1, number=i)[:reads]].tolist() for i in range(pairs + 1)]

    def decoding(cache: ActivationCache) -> Read:
        def decode(wanted: Sequence[int]) -> None:
            cache._checked.clear()  # as if each row was read for the first time
            for start in range(0, len(wanted), _BATCH):
                blobs = [activations for activations, _ in cache.read(wanted[start : start + _BATCH])]
                decode_samples(blobs, [_SHAPE[1]] * len(blobs), _SHAPE[3], CODECS["nf4"], 1.0)

        return decode

    sides = {name: _reader(decoding(cache), draws) for name, cache in caches.items()}
    take_turns(sides, 1)
    say("read and decode, with checksums and without")
    found = take_turns(sides, pairs, say=say)
    for cache in caches.values():
        cache.close()
    for clock, comparison in compare_seconds(found["checked"], found["unchecked"], "without checksums").items():
        report.comparisons[f"checked{clock}"] = comparison


def _reader(read: Read, draws: Sequence[Sequence[int]]) -> Callable[[], Seconds]:
    upcoming = iter(draws)

    def side() -> Seconds:
        wanted = next(upcoming)
        return timed(lambda: read(wanted))()

    return side


def _memory(report: Report, large: Path, few: Path, *, pairs: int, reads: int, say: Say) -> None:
    def side(file: Path) -> Callable[[], dict[str, int]]:
        return lambda: run_fresh("benchmarks.overhead.cache", file, reads)

    say("memory, each cache in a fresh process")
    found = take_turns({"large": side(large), "few": side(few)}, pairs, say=say)
    anonymous = {name: [float(one["anonymous_bytes"]) for one in each] for name, each in found.items()}
    comparison = Comparison("bytes", anonymous["large"], anonymous["few"], "the small cache")
    report.comparisons["anonymous_memory"] = comparison
    medians = comparison.to_dict()
    more_rows = report.settings["rows"] - report.settings["rows_few"]
    report.figures["anonymous_bytes_a_row"] = (medians["ours_median"] - medians["other_median"]) / max(1, more_rows)
    report.figures["anonymous_bytes_before_opening"] = float(np.median([one["before_bytes"] for one in found["large"]]))
    report.bars["rss_growth"] = Threshold(comparison.ratio, GROWTH_BAR, at_most=True)


def _blobs() -> list[bytes]:
    """Return distinct samples, really encoded."""
    samples = torch.randn(_DISTINCT, *_SHAPE, generator=torch.Generator().manual_seed(0))
    return [encode_sample(sample, CODECS["nf4"], 1.0) for sample in samples]


def _fill(file: Path, count: int, blobs: Sequence[bytes]) -> None:
    """Commit rows in windows, from devices in turns; blobs come again, each time with another target."""
    cache = ActivationCache(file)
    for start in range(0, count, _WINDOW):
        window = [
            Release(i.to_bytes(16, "big"), 1, blobs[i % len(blobs)], i.to_bytes(24, "big"))
            for i in range(start, min(start + _WINDOW, count))
        ]
        cache.add(f"{start // _WINDOW % _DEVICES:032x}", window, backbone="0" * 64, round_=1)
    cache.close()


def _main(file: Path, reads: int) -> int:
    before = highest = status_bytes("RssAnon")
    cache = ActivationCache(file)
    train, validation = split_validation(cache.rows(), 0.1, 0)
    order = draw_order(len(train), seed=0, phase=0, number=0)[:reads]
    for start in range(0, len(order), _BATCH):
        cache.read(row.id for row in train.take(order[start : start + _BATCH]))
        highest = max(highest, status_bytes("RssAnon"))
    found = {"before_bytes": before, "anonymous_bytes": highest, "rows": len(train) + len(validation)}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
