"""A device: its backbone, its samples, its folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

from torch import Tensor

from mobillm_flower.backbones import Backbone
from mobillm_flower.backbones.choose import Choice, choose
from mobillm_flower.backbones.load import load_with
from mobillm_flower.backbones.memory import keep_few_kernels
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.streaming.memory_plan import plan_within
from mobillm_flower.config import Settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Limits, SampleKeys
from mobillm_flower.privacy.mixing import MixingKey, mixing_key
from mobillm_flower.privacy.noisy_metric import noisy_accuracy
from mobillm_flower.tasks import LocalData, Samples, with_tokens
from mobillm_flower.tasks.extraction import extraction_spec, fitted_transform
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.messages import MAX_CHOSEN, DeviceDescription

logger = logging.getLogger(__name__)


class Device:
    """One device of a fleet.

    Parameters
    ----------
    settings : Settings
        The device's own; a server's request must agree with them.
    data : LocalData
        What it holds.
    folder : DeviceFolder
        Its secret and ledger, and which backbone it chose.
    partition : int
        Its number in a simulation, for `backbone.name=by-partition`.
    trusts_server : bool
        Whether the ledger counts the ε of noise that the server says it adds to sums.
    """

    def __init__(
        self,
        settings: Settings,
        data: LocalData,
        folder: DeviceFolder,
        *,
        partition: int = 0,
        trusts_server: bool = True,
    ) -> None:
        self.settings, self.folder, self.partition = settings, folder, partition
        self.trusts_server = trusts_server
        self._read = data

    @cached_property
    def data(self) -> LocalData:
        """What it holds and its tokenizer can read."""
        return with_tokens(self._read, self.backbone, self.settings)

    @cached_property
    def choice(self) -> Choice:
        """Which backbone it runs; decided once, and remembered in its folder."""
        contract = self._read.contract
        return choose(
            self.settings.backbone,
            file=self.folder.path / "backbone.json",
            partition=self.partition,
            max_length=contract.max_length,
            pivot=self.settings.activations.pivot,
            task=contract,
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model, loaded once per process and settings."""
        budget_mib = self.settings.backbone.memory_budget_mib
        return _shared_backbone(self.choice.options, budget_mib, self._read.contract.max_length)

    @cached_property
    def sample_ids(self) -> list[bytes]:
        """Keyed hashes of the samples; equal samples are told apart by how often they occurred before."""
        seen: dict[str, int] = {}
        ids = []
        for i in range(len(self.data.train)):
            content = self.data.train.content(i)
            key = json.dumps(content, sort_keys=True)
            seen[key] = seen.get(key, 0) + 1
            ids.append(self.folder.sample_id({**content, "occurrence": seen[key]}))
        return ids

    @cached_property
    def sample_keys(self) -> list[SampleKeys]:
        """Under what each sample is counted in the ledger: its texts, whatever else a run made of it, and its row."""
        texts = self._text_ids(self.data.train, self.data.train_rows)
        keys_of = [SampleKeys(sample, of_row) for sample, of_row in zip(self.sample_ids, texts, strict=True)]
        self.folder.ledger.attribute(keys_of)
        return keys_of

    def _text_ids(self, samples: Samples, rows: Sequence[bytes]) -> list[tuple[bytes, ...]]:
        """Return, of each sample, the ids of its texts and of the row that they are of."""
        pairs = samples.pairs or [""] * len(samples)
        return [
            (*self.folder.text_ids((text, pair)), self.folder.row_id(row))
            for text, pair, row in zip(samples.texts, pairs, rows or _own_digests(samples), strict=True)
        ]

    @property
    def promises(self) -> bool:
        """Whether anything is promised of what leaves the device."""
        private, limits = self.settings.privacy, self.folder.ledger.limits
        named = private.joint_epsilon, private.activation_epsilon, private.label_epsilon, private.central_epsilon
        return any(named) or limits != Limits()

    @property
    def exact_metrics(self) -> bool:
        """Whether metrics without noise may leave the device: nothing is promised, of metrics neither."""
        return not (self.promises or self.settings.privacy.metric_epsilon)

    @cached_property
    def test(self) -> Samples:
        """What it is evaluated on: its test samples; where anything is promised, none of whose text it learns from.

        That is any that it holds as a training sample now, and any of which something was ever released.
        """
        return self.data.test.take(self._tested) if len(self._tested) < len(self.data.test) else self.data.test

    @cached_property
    def _tested(self) -> list[int]:
        """Numbers of the test samples that it is evaluated on."""
        if not self.promises:
            return list(range(len(self.data.test)))
        learnt = {text for keys_of in self.sample_keys for text in keys_of.texts}
        others = {text for of_row in self._test_text_ids for text in of_row} - learnt
        learnt |= self.folder.ledger.released(others)
        return [i for i, of_row in enumerate(self._test_text_ids) if not learnt & set(of_row)]

    def measure(self, model: SideTunedModel) -> float:
        """Return the model's metric on the test samples: counted first and, where settings say so, noised.

        Raises
        ------
        ReleaseRefused
            The device has reported as many metrics as it agrees to.
        """
        epsilon = self.settings.privacy.metric_epsilon
        texts = {text for i in self._tested for text in self._test_text_ids[i]}
        self.folder.ledger.evaluate(texts, epsilon=epsilon)
        value = model.evaluate(self.test)
        return noisy_accuracy(value, len(self.test), epsilon=epsilon) if epsilon else value

    @cached_property
    def _test_text_ids(self) -> list[tuple[bytes, ...]]:
        return self._text_ids(self.data.test, self.data.test_rows)

    @cached_property
    def data_fingerprint(self) -> str:
        """Keyed hash of the set of samples."""
        return self.folder.data_fingerprint(self.sample_ids)

    def describe(self) -> DeviceDescription:
        """Say what the device is; rows that take no part are logged, in numbers.

        Raises
        ------
        SettingsError
            A mixing key that its settings name is not there, or noise is asked for on another metric than accuracy.
        """
        _ = self.mixing  # at the first meeting, not with the first sample
        metric, noise = self.data.contract.metric, self.settings.privacy.metric_epsilon
        if noise and metric != "accuracy":
            raise SettingsError(
                f"privacy.metric-epsilon={noise!r} is for the metric accuracy, not {metric}; give task.metric=accuracy"
            )
        if said := str(self.data.left_out):
            logger.warning("device %s leaves out %s", self.folder.pseudonym[:8], said)
        return DeviceDescription(
            pseudonym=self.folder.pseudonym,
            backbone=self.backbone.info,
            contract=self.data.contract,
            num_train=len(self.data.train),
            num_test=len(self.test),
            chosen="; ".join(filter(None, (self.choice.reason, str(self.backbone.plan or ""))))[:MAX_CHOSEN],
            left_out=self.data.left_out.counts,
        )

    def agree(self, contract: TaskContract, spec: ExtractionSpec) -> None:
        """Check that a request asks for exactly what this device's own settings say.

        The number of blocks, and what `activations.sampling=auto` means, are the server's to choose: it knows the types
        of the fleet.

        Raises
        ------
        MismatchError
            Task or extraction differ; every differing field is named.
        """
        self.data.contract.require_same(contract, mine="on this device", theirs="at the server")
        num_blocks = self.settings.activations.num_blocks or len(spec.layers)
        mine = extraction_spec(
            self.backbone.info,
            self.settings,
            num_blocks=num_blocks,
            num_outputs=self.data.contract.num_outputs,
            scheme=spec.scheme,
        )
        mine.require_same(spec, mine="on this device", theirs="at the server")

    @cached_property
    def mixing(self) -> MixingKey | None:
        """The fleet's secret rotation, where its settings name one.

        Raises
        ------
        SettingsError
            The key is not there, or is another than the one named.
        """
        private = self.settings.privacy
        return mixing_key(private.mixing, private.mixing_key)

    def transform(self, spec: ExtractionSpec) -> Callable[[Tensor], Tensor] | None:
        """Return what is applied to activations before anything private is done to them, see `fitted_transform`."""
        return fitted_transform(
            spec,
            self.backbone,
            max_length=self.data.contract.max_length,
            file=self.settings.activations.public_text,
            remembered_in=self.folder.path,
        )

    def shaping(self, spec: ExtractionSpec) -> str:
        """Return, canonically, everything beside the sample that shapes a release.

        The metric is left out: it shapes no byte, and must not buy a fresh draw of the noise.
        """
        return json.dumps(
            {
                "contract": replace(self.data.contract, metric="").to_json(),
                "extraction": spec.to_json(),
                "precision": self.backbone.info.precision,
                "engine": self.backbone.computed_by(spec.layers, spec.pivot),
                "schema": keys.SCHEMA_VERSION,
            },
            sort_keys=True,
        )


def _own_digests(samples: Samples) -> list[bytes]:
    """Return a digest of each sample's content, where it is not known of which row it is."""
    content = (json.dumps(samples.content(i), sort_keys=True) for i in range(len(samples)))
    return [hashlib.sha256(text.encode()).digest() for text in content]


@lru_cache(maxsize=4)
def _shared_backbone(options: LoadOptions, memory_budget_mib: int, max_length: int) -> Backbone:
    """Return a backbone that this process's devices share, within its memory budget (0: none)."""
    keep_few_kernels()
    if memory_budget_mib:
        plan = plan_within(options, budget_mib=memory_budget_mib, max_length=max_length)
        logger.info("%s: %s", options.name, plan)
        options = replace(options, plan=plan)
    return load_with(options)
