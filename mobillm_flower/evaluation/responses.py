"""What a trained language model does, beside the one without its side network: responses, and each speaker's texts.

Both need test texts in one place: for simulations and examples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobillm_flower.config import Partition, Settings, load_settings
from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.side_tuned import SideTunedModel
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.tasks import TASKS, TOKEN_METRICS, load_central_data, load_splits
from mobillm_flower.tasks.task import predicts_tokens

ROUGE = ("rouge1", "rouge2", "rougeL")
SPEAKERS = 30
"""Most values of `data.partition-column` that are measured: those with the most test texts."""

SHOWN = ("cross-entropy", "next-word-top-1", "next-word-top-3")
"""Metrics of each speaker's texts, beside the run's own."""


def measure_language(run_path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Let a finished run's model respond to test prompts, and measure it on each speaker's test texts.

    Parameters
    ----------
    run_path : Path
        A completed run of language modelling.
    overrides : sequence of str
        ``key=value`` over the run's settings.

    Returns
    -------
    dict
        Where `task.responses` is above 0, `responses`: `num`, the F-measures `base` and `tuned` by `ROUGE`, and with
        `task.show-responses` the first prompts under `shown`, each with `prompt`, `reference`, `base` and `tuned`. With
        `data.partition=natural`, `speakers`: `column`, `rows` of (value, test texts, base, tuned) in the run's
        metric, under `metrics` of each of `SHOWN` [base, tuned] by value, and `unseen`, the values without train texts.

    Raises
    ------
    UnsupportedError
        Responses are to be measured without the extra `text`.
    """
    run = RunFolder(run_path)
    settings = load_settings(file=run.settings, overrides=overrides)
    if not predicts_tokens(settings):
        return {}
    private = settings.activations.public_text, settings.privacy.mixing_key
    model = SideTunedModel.from_pretrained(run.side_network, public_text=private[0], mixing_key=private[1])
    result = {}
    if settings.task.responses and settings.data.pair_column:
        result["responses"] = _responses(model, settings)
    if settings.data.partition == Partition.natural:
        result["speakers"] = _speakers(model, settings)
    return result


def rouge(references: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """Return the mean F-measures of `ROUGE`, with stemming, as Google's rouge-score has them.

    Raises
    ------
    UnsupportedError
        rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UnsupportedError("ROUGE needs the extra `text`: pip install 'mobillm-flower[text]'") from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(true, made) for true, made in zip(references, responses, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}


def _responses(model: SideTunedModel, settings: Settings) -> dict[str, Any]:
    test = load_central_data(settings).test
    assert test.pairs is not None
    prompts, references = (list(texts[: settings.task.responses]) for texts in (test.texts, test.pairs))
    made = {name: _generate(one, prompts) for name, one in (("base", model.with_network(None)), ("tuned", model))}
    result: dict[str, Any] = {"num": len(prompts)}
    result |= {name: rouge(references, texts) for name, texts in made.items()}
    if shown := settings.task.show_responses:
        rows = list(zip(prompts, references, made["base"], made["tuned"], strict=True))[:shown]
        result["shown"] = [dict(zip(("prompt", "reference", "base", "tuned"), row, strict=True)) for row in rows]
    return result


def _generate(model: SideTunedModel, prompts: Sequence[str]) -> list[str]:
    longest = max(1, model.contract.max_length // 4)
    parts = [prompts[start : start + 8] for start in range(0, len(prompts), 8)]
    return [text for part in parts for text in model.generate(part, max_new_tokens=longest)]


def _speakers(model: SideTunedModel, settings: Settings) -> dict[str, Any]:
    train, test = load_splits(settings.data)
    places: dict[str, list[int]] = {}
    for i, value in enumerate(_texts_of(test, settings)):
        places.setdefault(value, []).append(i)
    most = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))[:SPEAKERS]
    base, rows, metrics = model.with_network(None), [], {name: {} for name in SHOWN}  # type: Any, list[Any], Any
    for name, members in most:
        samples = TASKS[settings.task.kind].samples(test.select(members), settings, model.contract)
        scores = [one.token_scores(samples) for one in (base, model)]
        for metric in SHOWN:
            metrics[metric][name] = [TOKEN_METRICS[metric](of_model) for of_model in scores]
        rows.append([name, len(members), *(TOKEN_METRICS[model.contract.metric](of_model) for of_model in scores)])
    seen = set(_texts_of(train, settings))
    return {
        "column": settings.data.partition_column,
        "rows": rows,
        "unseen": [name for name, _ in most if name not in seen],
        "metrics": metrics,
    }


def _texts_of(rows: Any, settings: Settings) -> list[str]:
    return [str(value) for value in rows[settings.data.partition_column][:]]
