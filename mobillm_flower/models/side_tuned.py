"""A backbone with a side network: predicts, and is saved and loaded in the manner of a PEFT adapter."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.head import LanguageHead
from mobillm_flower.core.prediction import PredictionRule
from mobillm_flower.core.side_networks import RunsUpperLayers, SideNetworkConfig, state_for
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models import inference
from mobillm_flower.models.card import CardFacts
from mobillm_flower.models.hub import push_folder, saved_folder
from mobillm_flower.models.inference import Predictions, check_parts
from mobillm_flower.models.loading import load_parts
from mobillm_flower.models.saved import save_side_network
from mobillm_flower.privacy.mixing import MixingKey
from mobillm_flower.tasks.extraction import fitted_transform
from mobillm_flower.tasks.metrics import TOKEN_METRICS, TokenScores
from mobillm_flower.tasks.task import TASKS, Samples, measure
from mobillm_flower.tasks.texts import check_texts
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.learned_tasks import LearnedTasks


class SideTunedModel:
    """Backbone plus side network.

    Parameters
    ----------
    backbone : Backbone
        The frozen model, of the type the side network was trained for.
    side_network : nn.Module or None
        None predicts with the base model alone.
    spec : ExtractionSpec
        Sampled layers and pivot.
    contract : TaskContract
        The task.
    rule : PredictionRule
        How scores are formed.
    side_config : SideNetworkConfig, optional
        How the side network was built; needed to save.
    public_text, remembered_in
        `file` and `remembered_in` of `public_transform`.
    mixing : MixingKey, optional
        The devices' secret rotation, where the run had one.
    columns : sequence of int
        First and last but one of the contract's columns in the side network's output, where it has learned several
        tasks; empty: all.
    tasks : LearnedTasks, optional
        Those tasks, see `for_task`.

    Attributes
    ----------
    metrics : dict of str to float
        Of the run that it was loaded from, on the devices' test samples.
    transform : callable or None
        What devices do with activations before they send them, see `fitted_transform`.

    Raises
    ------
    MismatchError
        The backbone is of another type than the side network's, or public text or mixing key are others.
    """

    def __init__(
        self,
        backbone: Backbone,
        side_network: nn.Module | None,
        *,
        spec: ExtractionSpec,
        contract: TaskContract,
        rule: PredictionRule,
        side_config: SideNetworkConfig | None = None,
        public_text: str = "",
        remembered_in: Path | None = None,
        mixing: MixingKey | None = None,
        columns: Sequence[int] = (),
        tasks: LearnedTasks | None = None,
    ) -> None:
        check_parts(spec, backbone, mixing)
        self.backbone = backbone
        self.metrics: dict[str, float] = {}
        self.spec, self.contract, self.rule, self.side_config = spec, contract, rule, side_config
        self.columns, self.tasks = tuple(columns), tasks
        self._spec_of_tasks = spec
        self.side_network = self._ready(side_network)
        self.mixing = mixing
        self.transform = fitted_transform(
            spec, backbone, max_length=contract.max_length, file=public_text, remembered_in=remembered_in
        )

    def predict(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> Predictions:
        """Predict labels of texts, or of text pairs.

        Examples
        --------
        >>> model = SideTunedModel.from_pretrained("runs/demo/side_network")  # doctest: +SKIP
        >>> model.predict("wake me at six").labels  # doctest: +SKIP
        ['alarm']

        Raises
        ------
        DataError, UnsupportedError
            A text is empty; the model predicts tokens: see `generate`.
        """
        if self.contract.per_token:
            raise UnsupportedError("a language model has no labels to predict; use generate")
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else pairs
        samples = Samples(texts, None if pairs is None else list(pairs), torch.zeros(len(texts)))
        check_texts(samples.texts, samples.pairs)
        scores = self.scores(samples)
        numbers = TASKS[self.contract.kind].predictions(scores).tolist()
        names = self.contract.labels
        return Predictions([names[n] for n in numbers] if names else numbers, scores)

    def scores(self, samples: Samples) -> Tensor:
        """Return scores [B, K] float32, from clean activations: nothing is perturbed or quantized on the way."""
        return inference.scores(self, samples)

    def accuracy_among_all(self, samples: Samples) -> float:
        """Return the accuracy on samples of the contract's task when the classes of all tasks are told apart.

        p_b is 1/K: of a text whose task is not known there is no other.
        """
        return inference.accuracy_among_all(self, samples)

    def for_task(self, name: str) -> SideTunedModel:
        """Return the model of one of the tasks that the side network has learned; empty: of all together.

        Of a task, its own classes are predicted and p_b takes part. Of all together, every class of every task; p_b is
        then 1/K. A backbone with a prediction of its own (label words, a trained head) predicts the classes that it was
        loaded for: load the model anew, with `from_pretrained(task=…)`.

        Raises
        ------
        MismatchError
            No task has this name.
        UnsupportedError
            All together, where the tasks' prompts, lengths or kinds differ.
        """
        if self.tasks is None:
            raise UnsupportedError("the side network has learned one task; leave out the task's name")
        other = copy.copy(self)
        other.contract = self.tasks.predicted(name)
        other.columns = self.tasks.columns_of(name)
        other.spec = self._spec_of_tasks if name else dataclasses.replace(self.spec, constant_base=True)
        return other

    @cached_property
    def language_model(self) -> Any:
        """Transformers' causal model with the side network in it, weights shared: for `generate` and pipelines.

        Examples
        --------
        >>> from transformers import pipeline  # doctest: +SKIP
        >>> write = pipeline("text-generation", model=model.language_model, tokenizer=model.tokenizer)  # doctest: +SKIP
        """
        from mobillm_flower.models.language import tuned_language_model  # loads transformers

        return tuned_language_model(self)

    @property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer."""
        return self.backbone.tokenizer

    @overload
    def generate(self, texts: str, *, max_new_tokens: int = 64, **options: Any) -> str: ...
    @overload
    def generate(self, texts: Sequence[str], *, max_new_tokens: int = 64, **options: Any) -> list[str]: ...
    def generate(self, texts: str | Sequence[str], *, max_new_tokens: int = 64, **options: Any) -> str | list[str]:
        """Continue texts, or respond to prompts, by transformers' `generate` with its key-value cache.

        Parameters
        ----------
        texts : str or sequence of str
            What the task's prompt and the tokenizer's chat template are filled with; the beginnings of plain texts.
        max_new_tokens : int
            Most tokens of a response.
        options
            What else `generate` takes: `do_sample`, `num_beams`, `streamer`, …

        Returns
        -------
        str or list of str
            Without the prompt and without special tokens.

        Raises
        ------
        DataError
            A prompt is empty, or the model's positions end before the last new token: nothing is cut.
        UnsupportedError
            The backbone has no language-model head.

        Examples
        --------
        >>> model.generate("A: Are you in? B: Yes, come up.")  # doctest: +SKIP
        >>> from transformers import TextStreamer  # doctest: +SKIP
        >>> model.generate("…", streamer=TextStreamer(model.tokenizer, skip_prompt=True))  # doctest: +SKIP
        """
        from mobillm_flower.models.language import generate

        made = generate(self, [texts] if isinstance(texts, str) else texts, max_new_tokens=max_new_tokens, **options)
        return made[0] if isinstance(texts, str) else made

    def suggest(self, text: str, *, num: int = 5) -> list[tuple[str, float]]:
        """Return the most likely next words of a text, as a keyboard shows them, each with its probability.

        The most likely tokens that begin a word, each completed by the most likely tokens up to the word's end; the
        probability is that of the whole word.

        Raises
        ------
        DataError
            The text has no token, or more than the model has positions.
        UnsupportedError
            The backbone has no language-model head.

        Examples
        --------
        >>> model.suggest("wake me up at", num=3)  # doctest: +SKIP
        [('seven', 0.21), ('six', 0.18), ('half', 0.12)]
        """
        from mobillm_flower.models.language import suggest

        return suggest(self, text, num=num)

    def with_network(self, side_network: nn.Module | None) -> SideTunedModel:
        """Return the same with another side network of its shape, or with none."""
        other = copy.copy(self)
        other.__dict__.pop("language_model", None)
        other.side_network = self._ready(side_network)
        return other

    def _ready(self, network: nn.Module | None) -> nn.Module | None:
        """Return a side network that can predict."""
        running: object = network
        if isinstance(running, RunsUpperLayers):
            running.attach(inference.upper_layers(self))
        return None if network is None else network.eval()

    def evaluate(self, samples: Samples) -> float:
        """Return the contract's metric on labelled samples, or on prompts with responses."""
        if self.contract.per_token:
            return TOKEN_METRICS[self.contract.metric](self.token_scores(samples))
        return measure(self.scores(samples), samples.labels, self.contract)

    def token_scores(self, samples: Samples) -> TokenScores:
        """Return how well the model predicts texts: language modelling, a few texts at a time."""
        from mobillm_flower.models.language import token_scores

        return token_scores(self, samples)

    @property
    def head(self) -> LanguageHead:
        """The backbone's language-model head; raises UnsupportedError where it has none."""
        if self.backbone.head is None:
            raise UnsupportedError("the backbone was loaded without its language-model head, or the task has labels")
        return self.backbone.head

    def tuned_states(self, rows: Tensor, sequences: Tensor) -> Tensor:
        """Return h_L + s(A)/c, [N, d_b], of activations [N, M, d_b] of texts of so many tokens, [S]."""
        return inference.tuned_states(self, rows, sequences)

    def save_pretrained(
        self, folder: str | Path, *, facts: CardFacts | None = None, where: str = "this folder"
    ) -> None:
        """Write safetensors, config.json and a model card; the backbone's weights are not part of it.

        Parameters
        ----------
        folder : path
            Made where it is missing.
        facts : CardFacts, optional
            What the card says of license, data sets and metrics.
        where : str
            What the card's example loads.
        """
        if self.side_network is None or self.side_config is None:
            raise UnsupportedError("there is no side network to save; train one, or pass side_config")
        save_side_network(
            folder,
            state=state_for(self.side_network.state_dict(), self.spec.backbone),
            side_config=self.side_config,
            specs={self.spec.backbone: self._spec_of_tasks},
            backbones={self.spec.backbone: self.backbone.info},
            contract=self.tasks.in_order[-1] if self.tasks else self.contract,
            tasks=self.tasks,
            rule=self.rule,
            facts=facts or CardFacts(metrics=self.metrics),
            where=where,
        )

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = True,
        token: str | None = None,
        message: str = "A side network",
        license: str = "",
        datasets: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's address.

        Parameters
        ----------
        name : str
            "user/name".
        token : str, optional
            By default that of `hf auth login`.
        license, datasets, metrics
            What the card says, see `CardFacts`; metrics by default those of the run that was loaded.

        Raises
        ------
        UnsupportedError
            There is no side network, or the hub did not take it.

        Examples
        --------
        >>> model.push_to_hub("user/intents", license="apache-2.0")  # doctest: +SKIP
        """
        facts = CardFacts(license, datasets, self.metrics if metrics is None else metrics)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, facts=facts, where=name)
            return push_folder(Path(folder), name, private=private, token=token, message=message)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: Backbone | str = "",
        precision: str = "",
        device: str = "auto",
        token_budget: int = 4096,
        public_text: str = "",
        mixing_key: str | Path = "",
        revision: str = "",
        task: str | None = None,
    ) -> SideTunedModel:
        """Load a side network and the backbone it belongs to.

        Parameters
        ----------
        folder : path
            From `save_pretrained`, or a run's `side_network`; or "user/name" on the Hugging Face hub.
        backbone : Backbone or str
            A loaded backbone, or where to find one (hub id, folder); by default the one named in the config. In a
            folder trained for several types it chooses among them; NAME@LAYERS where they differ in depth.
        precision, device, token_budget
            As in `load_backbone`; precision defaults to the trained one's.
        public_text : str
            The run's `activations.public-text`, where it had one.
        mixing_key : path
            The devices' `privacy.mixing-key`, where the run had one.
        revision : str
            On the hub: a branch, a tag or a commit.
        task : str, optional
            Of a side network that has learned several tasks, the one to predict, or "" for all together; see
            `for_task`. By default the last.

        Raises
        ------
        MismatchError
            The backbone's fingerprint is none of those the side network was trained for.
        UnsupportedError
            The folder holds no side network, or one of a newer format.
        """
        how: dict[str, Any] = {"precision": precision, "device": device, "token_budget": token_budget, "task": task}
        parts = load_parts(saved_folder(folder, revision), backbone, **how)
        model = cls(
            parts.backbone,
            parts.network,
            spec=parts.spec,
            contract=parts.contract,
            rule=parts.rule,
            side_config=parts.side_config,
            public_text=public_text,
            mixing=MixingKey.read(mixing_key) if mixing_key else None,
            columns=parts.tasks.columns_of(parts.tasks.names[-1]) if parts.tasks else (),
            tasks=parts.tasks,
        )
        model.metrics = parts.metrics
        return model if task is None else model.for_task(task)
