"""Which vectors of a forward pass serve a solution best for their bytes: six data sets, three backbones.

    .venv/bin/python -m benchmarks.studies.vectors --data FOLDER --backbones BACKBONES \
        --json benchmarks/results/vectors.json

Each text runs forward once, and of every layer (0: the embeddings) a few vectors over its tokens are kept in the work
folder. A variant is a choice of them, coded in NF4, and solved in closed form with 2,048 random features from 1,000 of
1,500 training rows, three draws. Figures are of validation rows; test rows are not read. Results in the file are kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional

from mobillm_flower.backbones import Backbone, load_backbone
from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.layers import sample_layers
from mobillm_flower.core.side_networks import ActivationBatch, ClosedFormSideNetwork, LabelledBatch
from mobillm_flower.core.side_networks.config import AlignmentSpec

_POOL, _ROWS, _CHECKED, _PUBLIC, _DRAWS = 1500, 1000, 800, 200, 3
_QUERIES, _MIXED, _VARIED = 4, 24, 1e-6
OVER_TOKENS = ("first", "last", "mean", "maximum", "deviation")


@dataclass(frozen=True)
class Set:
    """A data set: its folder, columns of text, a prompt for causal models, and its longest text in tokens."""

    folder: str
    texts: tuple[str, ...]
    prompt: str
    max_length: int = 64


SETS = {
    "SST-2": Set("sst2_sentences", ("sentence",), "Review: {}\nSentiment:"),
    "AG News": Set("ag_news_10k", ("text",), "News: {}\nTopic:"),
    "SMS spam": Set("sms_spam", ("text",), "Message: {}\nSpam or not:"),
    "CLINC150": Set("clinc150", ("text",), "Request: {}\nIntent:", 40),
    "CoLA": Set("glue_cola", ("sentence",), "{} Is this good English? Answer:"),
    "MRPC": Set("glue_mrpc", ("sentence1", "sentence2"), "{} {} Do these two say the same? Answer:", 128),
}


@dataclass(frozen=True)
class Kept:
    """What is kept of texts' forward passes, layers l of L + 1.

    Parameters
    ----------
    over_tokens : Tensor
        [N, L + 1, 5, d], see `OVER_TOKENS`.
    inner : Tensor
        [N, L, d_i], mean of what the second matrix of each feed-forward network reads.
    pools : Tensor
        [N, L + 1, 4, d], means of tokens that fixed random queries weigh.
    moments : Tensor
        [N, L + 1, 300], second moments over tokens of 24 random mixtures.
    labels : Tensor
        [N].
    """

    over_tokens: Tensor
    inner: Tensor
    pools: Tensor
    moments: Tensor
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> Kept:
        return Kept(*(value[rows] for value in vars(self).values()))


Group = Callable[[Kept], Tensor]
"""Vectors [N, G, width] of what is kept."""


def of_tokens(layers: Sequence[int], *names: str) -> Group:
    """Return the vectors of these layers and names."""
    places = [OVER_TOKENS.index(name) for name in names]
    return lambda kept: kept.over_tokens[:, list(layers)][:, :, places].flatten(1, 2)


def layers_of(depth: int) -> tuple[list[int], list[int], list[int]]:
    """Return the layers that are sampled by default, their upper two thirds with the embeddings, and three low ones."""
    sampled = list(range(1, depth + 1)) if depth <= 12 else np.linspace(1, depth, 11).round().astype(int)[1:].tolist()
    upper = sampled[len(sampled) // 3 :]
    return sampled, [0, *upper], [0, sampled[len(sampled) // 2], sampled[-1]]


def variants(depth: int) -> dict[str, tuple[Group, ...]]:
    """Return what is tried by name; `chosen by the server` is added apart, since it depends on rows."""
    sampled, upper, three = layers_of(depth)
    few = [layer for layer in upper if layer][-4:]
    return {
        "mean, all": (of_tokens(sampled, "mean"),),
        "mean, 0 and upper": (of_tokens(upper, "mean"),),
        "mean, 0, middle, last": (of_tokens(three, "mean"),),
        "first and mean, all": (of_tokens(sampled, "first", "mean"),),
        "last, all": (of_tokens(sampled, "last"),),
        "last, upper": (of_tokens(upper[1:], "last"),),
        "last, four; mean, 0, middle, last": (of_tokens(few, "last"), of_tokens(three, "mean")),
        "last and mean, 0 and upper": (of_tokens(upper, "last", "mean"),),
        **{
            f"last and mean, {words}": (of_tokens(sample_layers(depth, count), "last", "mean"),)
            for count, words in ((3, "three"), (4, "four"), (5, "five"))
        },
        "last and mean, 0, middle, last": (of_tokens(three, "last", "mean"),),
        "maximum, 0 and upper": (of_tokens(upper, "maximum"),),
        "mean and maximum, 0 and upper": (of_tokens(upper, "mean", "maximum"),),
        "mean and deviation, 0 and upper": (of_tokens(upper, "mean", "deviation"),),
        "inner values, upper": (lambda kept: kept.inner[:, [layer - 1 for layer in upper[1:]]],),
        "mean, 0 and upper; four pools of the last": (
            of_tokens(upper, "mean"),
            lambda kept: kept.pools[:, upper[-1]],
        ),
        "mean, 0 and upper; second moments": (of_tokens(upper, "mean"), lambda kept: kept.moments[:, upper]),
        "last, upper; second moments": (of_tokens(upper[1:], "last"), lambda kept: kept.moments[:, upper]),
    }


def joined(groups: Sequence[Group], kept: Kept, *, normed: bool) -> tuple[Tensor, list[int]]:
    """Return a variant's values [N, D], and the widths of its vectors."""
    parts = [group(kept).float() for group in groups]
    if normed:
        parts = [functional.layer_norm(part, part.shape[2:]) for part in parts]
    widths = [part.shape[2] for part in parts for _ in range(part.shape[1])]
    return torch.cat([part.flatten(1) for part in parts], 1), widths


def extract(backbone: Backbone, texts: list[list[str]], prompt: str, max_length: int) -> list[Tensor]:
    """Return what is kept of texts, in their order: the parts of `Kept` but the labels."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    if prompt:
        cut = [[_cut(backbone, one, max_length // len(columns)) for one in column] for column in columns]
        columns, max_length = [[prompt.format(*row) for row in zip(*cut, strict=True)]], max_length + 32
    second = columns[1] if len(columns) > 1 else None
    samples = backbone.tokenize(columns[0], second, max_length)
    found: dict[int, list[Tensor]] = {}
    for places in backbone.batches(samples):
        inputs = backbone.pad([samples[i] for i in places])
        values = _forward(backbone, inputs)
        for row, place in enumerate(places):
            found[place] = [value[row].half() for value in values]
    ordered = [found[i] for i in range(len(samples))]
    return [torch.stack(value) for value in zip(*ordered, strict=True)]


def _cut(backbone: Backbone, text: str, length: int) -> str:
    tokens = backbone.tokenizer(text, truncation=True, max_length=length, add_special_tokens=False)["input_ids"]
    return str(backbone.tokenizer.decode(tokens))


def _second_matrix(layer: Any) -> Any:
    """Return the matrix of a layer that reads the inner values of its feed-forward network."""
    names = dict(layer.named_modules())
    return next(names[name] for name in ("mlp.down_proj", "fc2", "output.dense") if name in names)


@torch.inference_mode()
def _forward(backbone: Backbone, inputs: dict[str, Tensor]) -> list[Tensor]:
    states: list[Tensor] = []
    inner: list[Tensor] = []

    def before(_layer: Any, values: Any, kwargs: Any) -> None:
        states.append((values[0] if values else kwargs["hidden_states"]).float())

    def after(_layer: Any, _values: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).float())

    hooks = [backbone.stack[0].register_forward_pre_hook(before, with_kwargs=True)]
    for layer in backbone.stack:
        hooks.append(layer.register_forward_hook(after))
        hooks.append(
            _second_matrix(layer).register_forward_pre_hook(lambda _matrix, values: inner.append(values[0].float()))
        )
    try:
        backbone.model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = inputs["attention_mask"].bool()
    shape = tokens.shape
    values = torch.stack(states, 1).view(shape[0], len(states), *shape[1:], -1)  # [B, L + 1, T, d]
    means = torch.stack([_mean(one.view(*shape, -1), tokens) for one in inner], 1)
    return [*_over_tokens(values, tokens), means, *_others(values, tokens)]


def _mean(values: Tensor, tokens: Tensor) -> Tensor:
    return (values * tokens[..., None]).sum(1) / tokens.sum(1)[:, None]


def _over_tokens(values: Tensor, tokens: Tensor) -> list[Tensor]:
    mask, count = tokens[:, None, :, None], tokens.sum(1)[:, None, None]
    mean = (values * mask).sum(2) / count
    deviation = (((values - mean[:, :, None]).square() * mask).sum(2) / count).sqrt()
    last = values[torch.arange(len(values)), :, tokens.sum(1) - 1]
    maximum = values.masked_fill(~mask, -torch.inf).amax(2)
    return [torch.stack([values[:, :, 0], last, mean, maximum, deviation], 2)]


def _others(values: Tensor, tokens: Tensor) -> list[Tensor]:
    """Return pools [B, L + 1, 4, d] and second moments [B, L + 1, 300]."""
    width, generator = values.shape[-1], torch.Generator().manual_seed(0)
    queries = torch.randn(_QUERIES, width, generator=generator)
    mixing = torch.randn(width, _MIXED, generator=generator)
    normed = functional.layer_norm(values, (width,))
    weights = (2 * normed @ queries.T / width**0.5).masked_fill(~tokens[:, None, :, None], -torch.inf).softmax(2)
    pools = weights.transpose(2, 3) @ values
    mixed = (normed @ mixing / width**0.5) * tokens[:, None, :, None]
    products = mixed.transpose(2, 3) @ mixed / tokens.sum(1)[:, None, None, None]
    upper = torch.triu_indices(_MIXED, _MIXED)
    return [pools, products[:, :, upper[0], upper[1]]]


def read(backbone: Backbone, name: str, split: str, data: Path, work: Path, *, prompted: bool) -> Kept:
    """Return what is kept of a split's first texts in a drawn order, computed once."""
    one = SETS[name]
    where = work / f"{backbone.info.name.rsplit('/', 1)[-1]}-{one.folder}-{split}{'-prompted' if prompted else ''}.pt"
    frame = pd.read_parquet(data / one.folder / f"{split}.parquet")
    frame = frame.sample(frac=1, random_state=0).head(_POOL + _PUBLIC if split == "train" else _CHECKED)
    if not where.exists():
        texts = frame[list(one.texts)].to_numpy().tolist()
        torch.save(extract(backbone, texts, one.prompt if prompted else "", one.max_length), where)
    return Kept(*[*torch.load(where), torch.tensor(frame["label"].tolist())])


def chosen_by_server(kept: Kept, depth: int, count: int, *, normed: bool) -> tuple[Group, ...]:
    """Return `count` vectors that together predict public rows best, each left out: forward selection by groups."""
    labels = kept.labels
    targets = functional.one_hot(labels, int(labels.max()) + 1).double()
    targets -= targets.mean(0)
    grams: dict[tuple[int, str], Tensor] = {}
    for layer in range(depth + 1):
        for name in ("first", "last", "mean", "maximum"):
            values, _ = joined((of_tokens([layer], name),), kept, normed=normed)
            values = values.double() - values.double().mean(0)
            gram = values @ values.T
            if gram.diagonal().mean() > _VARIED * values.shape[1]:  # the embedding of a first token is always the same
                grams[layer, name] = gram / gram.diagonal().mean()
    taken: list[tuple[int, str]] = []
    total = torch.zeros(len(labels), len(labels), dtype=torch.double)
    while len(taken) < count:
        errors = {key: _left_out(total + gram, targets) for key, gram in grams.items() if key not in taken}
        best = min(errors, key=errors.__getitem__)
        taken.append(best)
        total = total + grams[best]
    return tuple(of_tokens([layer], name) for layer, name in sorted(taken))


def _left_out(gram: Tensor, targets: Tensor) -> float:
    values, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ targets
    errors = []
    for penalty in np.logspace(-2, 2, 9) * float(gram.diagonal().mean()):
        inverse = vectors * (1 / (values.clamp_min(0) + penalty))
        errors.append(float(((inverse @ turned) / (inverse * vectors).sum(1)[:, None]).square().mean()))
    return min(errors)


def solve(groups: Sequence[Group], train: Kept, check: Kept, metric: str, *, normed: bool) -> dict[str, float]:
    """Return the metric of validation rows, and a sample's bytes."""
    codec = CODECS["nf4"]
    raw, widths = joined(groups, train, normed=False)
    blobs = [codec.encode(row) for row in raw]
    coded = codec.decode(blobs, [raw.shape[1]] * len(raw)).view_as(raw)
    read_rows = [_prepared(rows, widths, normed=normed) for rows in (coded, joined(groups, check, normed=False)[0])]
    if not normed:  # divided by what each vector varies, as the package does
        parts = [list(torch.split(rows, widths, 1)) for rows in read_rows]
        varied = [(part - part.mean(0)).square().mean() for part in parts[0]]
        scales = [torch.where(one > _VARIED, one.sqrt(), 1.0) for one in varied]
        read_rows = [torch.cat([p / s for p, s in zip(part, scales, strict=True)], 1) for part in parts]
    classes = int(max(train.labels.max(), check.labels.max())) + 1
    network = ClosedFormSideNetwork(
        types={"backbone": AlignmentSpec(num_vectors=1, width=raw.shape[1])},
        num_blocks=1,
        num_outputs=classes,
        input_norm=False,
        random_features=2048,
    )
    batch = LabelledBatch(
        ActivationBatch("backbone", read_rows[0][:, None]),
        train.labels,
        base=torch.full((len(raw), classes), 1 / classes),
        targets=functional.one_hot(train.labels, classes) - 1 / classes,
    )
    network.fit([batch])
    with torch.inference_mode():
        predicted = network([ActivationBatch("backbone", read_rows[1][:, None])]).argmax(1)
    scored = matthews_corrcoef if metric == "matthews" else accuracy_score
    return {"metric": float(scored(check.labels, predicted)), "bytes": len(blobs[0])}


def _prepared(rows: Tensor, widths: list[int], *, normed: bool) -> Tensor:
    if not normed:
        return rows
    return torch.cat([functional.layer_norm(part, part.shape[1:]) for part in torch.split(rows, widths, 1)], 1)


def measure(
    backbone: Backbone, prompted: bool, data: Path, work: Path, out: dict[str, Any], save: Callable[[], None]
) -> None:
    """Measure every variant on every set with one backbone."""
    depth, normed = backbone.info.depth, backbone.info.causal
    for name in SETS:
        pool, check = (read(backbone, name, split, data, work, prompted=prompted) for split in ("train", "validation"))
        public, pool = pool[torch.arange(_POOL, len(pool.labels))], pool[torch.arange(min(_POOL, len(pool.labels)))]
        tried = variants(depth)
        count = len(layers_of(depth)[1])
        tried["chosen by the server on 200 public rows"] = chosen_by_server(public, depth, count, normed=normed)
        for variant, groups in tried.items():
            if variant in out.setdefault(name, {}):
                continue
            rows = []
            for seed in range(_DRAWS):
                order = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(seed))[:_ROWS]
                metric = "matthews" if name == "CoLA" else "accuracy"
                rows.append(solve(groups, pool[order], check, metric, normed=normed))
            out[name][variant] = {
                "metric": [round(row["metric"], 4) for row in rows],
                "bytes": rows[0]["bytes"],
            }
            print(backbone.info.name, name, variant, out[name][variant], flush=True)
            save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbones", type=Path, required=True, help="folder with opt-nano-6l-192")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/vectors"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    out: dict[str, Any] = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {}
    small = asked.backbones / "opt-nano-6l-192"
    for label, source, prompted in (
        ("all-MiniLM-L6-v2", "minilm", False),
        ("opt-nano-6l-192, no prompt", str(small), False),
        ("SmolLM2-135M-Instruct, with a prompt", "smollm2", True),
    ):
        precision = "fp32" if source == str(small) else "bf16"
        backbone = load_backbone(source, device="cpu", token_budget=2048, precision=precision)
        measure(
            backbone,
            prompted,
            asked.data,
            asked.work,
            out.setdefault(label, {}),
            lambda: asked.json.write_text(json.dumps(out, indent=1) + "\n", "utf-8") and None,
        )


if __name__ == "__main__":
    main()
