"""The release ledger: what left a device, of which texts and under which ε, and the bytes that wait to be sent.

Everything is counted by *text* (and by row, see `SampleKeys`), whatever a run made of it: another order of the labels,
another column, prompt, cut, split or task buys no second draw.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobillm_flower.errors import ReleaseRefused
from mobillm_flower.privacy.accounting import UNPROTECTED, Guarantee
from mobillm_flower.privacy.counter import Counter
from mobillm_flower.privacy.ledger_file import count, open_ledger
from mobillm_flower.runs.files import transaction

_BESIDE = 32  # bytes of a sample's release id and lengths in a window, rounded up


@dataclass(frozen=True)
class Release:
    """One sample as it leaves the device.

    Parameters
    ----------
    release : bytes
        The release id, 16 bytes.
    tokens : int
        Packed rows T of the sample: 1, or the number of tokens with pivot `all` (of language modelling those in the
        loss, or with `spec.whole_texts` all but the last of each chunk).
    activations, target : bytes
        As encoded.
    """

    release: bytes
    tokens: int
    activations: bytes
    target: bytes

    @property
    def num_bytes(self) -> int:
        """What it counts for in a window of so many bytes at most: both sides count the same."""
        return len(self.activations) + len(self.target) + _BESIDE


@dataclass(frozen=True)
class SampleKeys:
    """Under what a sample is counted, as keyed hashes.

    Parameters
    ----------
    sample : bytes
        Of the sample as a run reads it; part of its release ids.
    texts : tuple of bytes
        Of each of its texts, and of the whole row that it is of: what its releases are charged to.
    """

    sample: bytes
    texts: tuple[bytes, ...]


@dataclass(frozen=True)
class Limits:
    """What a device agrees to, ever, whatever run asks; 0: not bounded.

    Parameters
    ----------
    max_releases : int
        Releases of a text.
    budget : float
        ε that everything released of a text may add up to; 0: what one release takes, where it has an ε.
    max_delta : float
        δ that the releases of a text may add up to.
    max_evaluations : int
        Metrics that the device reports.
    """

    max_releases: int = 0
    budget: float = 0.0
    max_delta: float = 0.0
    max_evaluations: int = 0


class Ledger:
    """A device's ledger and outbox.

    Parameters
    ----------
    file : Path
        The file, from `make_ledger`; one of an earlier version is carried over, see `attribute`.
    limits : Limits
        What the device agrees to.
    counter : Counter or None
        Outside the folder: notices that an older copy of the ledger was put in its place.

    Raises
    ------
    ReleaseRefused
        The file is no ledger, of a later version, or older than the counter says.
    """

    def __init__(self, file: Path, *, limits: Limits, counter: Counter | None = None) -> None:
        self.limits, self._counter = limits, counter
        self._db = open_ledger(file)
        try:
            self._compare_counter()
        except ReleaseRefused:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever released or evaluated."""
        query = "SELECT EXISTS (SELECT 1 FROM releases) OR EXISTS (SELECT 1 FROM evaluated)"
        return not self._db.execute(query).fetchone()[0]

    def attribute(self, samples: Iterable[SampleKeys]) -> None:
        """Say which texts the samples have, so that releases of an earlier version, which names none, count for them.

        While one stays whose text is not known, everything that promises something is refused.
        """
        if self._num_unnamed():
            with transaction(self._db):
                self._db.executemany(
                    "INSERT OR IGNORE INTO texts (text, release) SELECT ?, release FROM releases WHERE sample = ?",
                    [(text, keys.sample) for keys in samples for text in keys.texts],
                )

    def acknowledge(self, held: Iterable[bytes]) -> int:
        """Mark releases as held by the server and delete their bytes; unknown ids are passed over.

        Returns
        -------
        int
            How many were marked that were not before.
        """
        with transaction(self._db):
            cursor = self._db.executemany(
                "UPDATE releases SET held = 1, activations = NULL, target = NULL WHERE release = ? AND held = 0",
                [(release,) for release in held],
            )
        return max(0, cursor.rowcount)

    def held(self) -> set[bytes]:
        """Return the ids that the server has shown to hold."""
        return {row[0] for row in self._db.execute("SELECT release FROM releases WHERE held = 1")}

    def outbox(self, wanted: Sequence[bytes]) -> dict[bytes, Release]:
        """Return prepared releases among `wanted`, byte for byte as they were prepared."""
        prepared: dict[bytes, Release] = {}
        for release in wanted:
            row = self._db.execute(
                "SELECT tokens, activations, target FROM releases WHERE release = ? AND held = 0", (release,)
            ).fetchone()
            if row:
                prepared[release] = Release(release, *row)
        return prepared

    def allowed(
        self, samples: Iterable[tuple[SampleKeys, bytes]], promised: Guarantee = UNPROTECTED
    ) -> Generator[bool, None, None]:
        """Yield of each sample and release id whether it may be released beside those before it; writes nothing.

        Parameters
        ----------
        samples : iterable of (SampleKeys, bytes)
            Samples and the ids of their releases.
        promised : Guarantee
            What each takes of its texts' budget.
        """
        with transaction(self._db, keep=False):
            for keys, release in samples:
                try:
                    self._charge(keys, Release(release, 0, b"", b""), promised)
                except ReleaseRefused:
                    yield False
                else:
                    yield True

    def record(
        self,
        releases: Sequence[tuple[SampleKeys, Release]],
        promised: Guarantee = UNPROTECTED,
        *,
        whole: bool = False,
    ) -> None:
        """Write releases of samples, or of sums, into ledger and outbox, all or none, before anything is sent.

        An id that waits in the outbox already keeps its bytes: what is sent is read back from there. A sum is charged
        to all its texts, under its own id (`sample` is `release`). With `whole`, earlier sums must be of the same texts
        or of none of them: two sums that differ by a sample are that sample.

        Raises
        ------
        ReleaseRefused
            One was released before and the server showed that it held it; the budget of one of its texts is spent; or
            earlier sums are of a part of its texts.
        """
        with transaction(self._db):
            for keys, release in releases:
                if whole:
                    self._check_whole(keys)
                self._charge(keys, release, promised)
            count(self._db, "changes")
        self._write_counter()

    def evaluate(self, texts: Iterable[bytes], *, epsilon: float = 0.0) -> None:
        """Count a metric on these texts, before it is computed.

        Parameters
        ----------
        texts : iterable of bytes
            Of the test rows, as in `SampleKeys`.
        epsilon : float
            ε of the metric's noise for each row; 0: the metric is exact, and no ε can be promised for these texts.

        Raises
        ------
        ReleaseRefused
            The device has reported as many metrics as it agrees to, or a text's budget does not allow this one.
        """
        limits = self.limits
        with transaction(self._db):
            if limits.max_evaluations and self._value("evaluations") >= limits.max_evaluations:
                raise ReleaseRefused(
                    f"this device reported {self._value('evaluations')} metrics; privacy.max-evaluations="
                    f"{limits.max_evaluations} allows no more"
                )
            for text in texts:
                spent = self._spent_on_metrics(text)[1]
                if limits.budget and epsilon and spent + epsilon > limits.budget * (1 + 1e-9):
                    raise ReleaseRefused(
                        f"metrics on a test row took an epsilon of {spent:g}; {epsilon:g} more is beyond "
                        f"privacy.budget={limits.budget:g}"
                    )
                self._db.execute(
                    "INSERT INTO evaluated VALUES (?, ?, ?) ON CONFLICT (text) DO UPDATE SET exact = exact OR "
                    "excluded.exact, epsilon = epsilon + excluded.epsilon",
                    (text, int(not epsilon), epsilon),
                )
            count(self._db, "evaluations")
            count(self._db, "changes")
        self._write_counter()

    def released(self, texts: Iterable[bytes]) -> set[bytes]:
        """Return those of the texts of which something was released."""
        query = "SELECT 1 FROM texts WHERE text = ? LIMIT 1"
        return {text for text in texts if self._db.execute(query, (text,)).fetchone()}

    def _charge(self, keys: SampleKeys, item: Release, promised: Guarantee) -> None:
        row = self._db.execute("SELECT held FROM releases WHERE release = ?", (item.release,)).fetchone()
        if row and row[0]:
            raise ReleaseRefused(
                "this sample was released under these settings before and the server held it; train from that run's "
                "cache, or change what is released"
            )
        if row:
            return
        if promised.epsilon is not None or self.limits != Limits():
            self._check_named()
        for text in keys.texts:
            self._check_text(text, promised.epsilon, promised.delta)
        self._db.execute(
            "INSERT INTO releases (release, sample, tokens, activations, target, epsilon, delta) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (item.release, keys.sample, item.tokens, item.activations, item.target, promised.epsilon, promised.delta),
        )
        self._db.executemany("INSERT INTO texts VALUES (?, ?)", [(text, item.release) for text in set(keys.texts)])

    def _check_text(self, text: bytes, epsilon: float | None, delta: float) -> None:
        """Add up what a text's releases and metrics took (basic composition)."""
        limits = self.limits
        made, protected, spent, spent_delta = self._db.execute(
            "SELECT COUNT(*), COUNT(epsilon), TOTAL(epsilon), TOTAL(delta) FROM texts JOIN releases USING (release) "
            "WHERE text = ?",
            (text,),
        ).fetchone()
        if limits.max_releases and made >= limits.max_releases:
            raise ReleaseRefused(
                f"a text of this sample was released {made} times; privacy.max-releases={limits.max_releases} allows "
                "no more"
            )
        if epsilon is None:
            if limits.budget:
                raise ReleaseRefused(
                    f"privacy.budget={limits.budget!r} allows no release without an epsilon; give "
                    "privacy.joint-epsilon, or take the budget away"
                )
            return
        if made > protected:
            raise ReleaseRefused(
                "a text of this sample was released without protection before; no epsilon can be promised for it any "
                "more"
            )
        exact, measured = self._spent_on_metrics(text)
        if exact:
            raise ReleaseRefused(
                "exact metrics on a text of this sample were reported before; no epsilon can be promised for it any "
                "more"
            )
        spent, allowed = spent + measured, limits.budget or epsilon
        if spent + epsilon > allowed * (1 + 1e-9):
            raise ReleaseRefused(
                f"what was released of a text of this sample took an epsilon of {spent:g}; {epsilon:g} more is beyond "
                f"privacy.budget={allowed:g}"
            )
        if limits.max_delta and spent_delta + delta > limits.max_delta * (1 + 1e-9):
            raise ReleaseRefused(
                f"releases of a text of this sample took a delta of {spent_delta:g}; {delta:g} more is beyond "
                f"{limits.max_delta:g}"
            )

    def _check_whole(self, keys: SampleKeys) -> None:
        texts = set(keys.texts)
        query = "SELECT release FROM texts JOIN releases USING (release) WHERE text = ? AND sample = release"
        sums = {release for text in texts for (release,) in self._db.execute(query, (text,))}
        of_sum = "SELECT text FROM texts WHERE release = ?"
        if any({text for (text,) in self._db.execute(of_sum, (release,))} != texts for release in sums):
            raise ReleaseRefused(
                "sums of a part of these samples, or of them and others, were released before, and the difference "
                "would tell of the few between them; add up the same samples again, or others alone"
            )

    def _spent_on_metrics(self, text: bytes) -> tuple[bool, float]:
        row = self._db.execute("SELECT exact, epsilon FROM evaluated WHERE text = ?", (text,)).fetchone()
        return (bool(row[0]), float(row[1])) if row else (False, 0.0)

    def _check_named(self) -> None:
        if unnamed := self._num_unnamed():
            raise ReleaseRefused(
                f"this device's ledger has {unnamed} releases of an earlier version, which does not say of which "
                "texts; nothing can be promised beside them. Start once under the settings that they were made under, "
                "or move the device folder away and start as a new device"
            )

    def _num_unnamed(self) -> int:
        query = "SELECT COUNT(*) FROM releases WHERE release NOT IN (SELECT release FROM texts)"
        return int(self._db.execute(query).fetchone()[0]) if self._value("carried over") else 0

    def _value(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _compare_counter(self) -> None:
        if self._counter is None:
            return
        changes, seen = self._value("changes"), self._counter.read()
        if seen is None and self._value("counter"):
            raise ReleaseRefused(
                "the counter beside this device's folder is missing; restore it, or start as a new device, which "
                "promises nothing for what was released before"
            )
        if (seen or 0) > changes:
            raise ReleaseRefused(
                f"this device's ledger is older than its counter ({changes} changes, {seen} counted): the folder was "
                "put back; restore the newest copy, or start as a new device, which promises nothing for what was "
                "released before"
            )
        if not self._value("counter"):
            with transaction(self._db):
                count(self._db, "counter")
        self._write_counter()

    def _write_counter(self) -> None:
        """Bring the counter up to date, under the ledger's lock: it never falls behind what another process wrote."""
        if self._counter is not None:
            with transaction(self._db):
                self._counter.write(self._value("changes"))
