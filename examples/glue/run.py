"""Run GLUE tasks by name, from the hub or from local folders, and print their table.

    python examples/glue/run.py mrpc
    python examples/glue/run.py mrpc --backbone facebook/opt-125m
    python examples/glue/run.py sst2 mrpc cola stsb rte --data FOLDER --backbone minilm --backbone FOLDER_OF_A_MODEL

Local data are folders `glue_TASK` with files train and validation (parquet). Each run is `mobillm run examples/glue`
with the settings that are printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import AutoConfig

from mobillm_flower.backbones import resolve_folder
from mobillm_flower.backbones.describe import is_causal
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.launch import read_app, run_app
from mobillm_flower.models.fine_tuned import baseline_model
from mobillm_flower.reports.comparison import Report
from mobillm_flower.tasks import load_central_data

APP = Path(__file__).parent
LORA = ["strategy=fed-lora", "peer.local-epochs=3", "peer.learning-rate=1e-3"]
"""Of the reference that is trained in one place; `-c peer.KEY=VALUE` wins."""
COLUMNS = {
    "majority": "majority",
    "base": "base",
    "logistic_regression": "logistic regression",
    "tuned": "side-tuned",
    "centralized": "side-tuned, centralized",
    "lora": "LoRA, centralized",
}


@dataclass(frozen=True)
class Task:
    """A GLUE task.

    Parameters
    ----------
    texts : tuple of str
        Column of the sentence, or of both sentences.
    labels : tuple of str
        Class names in order; none for STS-B, whose scores go from 0 to 5.
    metric : str
        GLUE's own; F1 where it has two.
    prompt : str
        What a causal model reads.
    words : tuple of str
        A word a label that may follow the prompt.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    prompt: str
    words: tuple[str, ...] = ()


_SAME = "{text} {text_pair} Do these two say the same? Answer:"
_FOLLOWS = "{text} Does it follow that {text_pair} Answer:"
TASKS = {
    "sst2": Task(
        ("sentence",), ("negative", "positive"), "accuracy", "{text} All in all it was", ("terrible", "great")
    ),
    "cola": Task(
        ("sentence",), ("unacceptable", "acceptable"), "matthews", "{text} Is this good English? Answer:", ("no", "yes")
    ),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "f1", _SAME, ("no", "yes")),
    "stsb": Task(("sentence1", "sentence2"), (), "spearman", "{text} {text_pair} How alike are these two? Answer:"),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), "f1", _SAME, ("no", "yes")),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        _FOLLOWS,
        ("yes", "maybe", "no"),
    ),
    "qnli": Task(
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        "accuracy",
        "{text} {text_pair} Is that an answer? Answer:",
        ("yes", "no"),
    ),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment"), "accuracy", _FOLLOWS, ("yes", "no")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment"), "accuracy", _FOLLOWS, ("no", "yes")),
}


def settings(name: str, *, data: Path | None, backbone: str, causal: bool) -> list[str]:
    """Return a task's settings as `key=value` words."""
    task = TASKS[name]
    found: dict[str, str] = {
        "backbone.name": backbone,
        "data.source": "nyu-mll/glue",
        "data.subset": name,
        "data.test-split": "validation_matched" if name == "mnli" else "validation",
        "data.text-column": task.texts[0],
        "data.label-column": "label",
        "task.kind": "classification",
        "task.labels": ",".join(task.labels),
        "task.metric": task.metric,
    }
    if len(task.texts) == 2:
        found |= {"data.pair-column": task.texts[1], "task.kind": "pairs"}
        if not causal:
            found |= {"activations.bi-encoder": "true", "activations.pivot": "mean"}
    if not task.labels:
        found |= {"task.kind": "regression", "task.label-range": "0,5"}
    if data is not None:
        folder = (data / f"glue_{name}").resolve()
        columns = pq.read_schema(next(folder.glob("train*.parquet"))).names
        found |= {"data.source": str(folder), "data.subset": "", "data.test-split": "validation"}
        found["data.label-column"] = "label" if "label" in columns else "score"
    if causal:
        found |= {"task.prompt": task.prompt, "task.label-words": ",".join(task.words)}
    return [f"{key}={value}" for key, value in found.items() if value or key == "data.subset"]  # the app names one


def run(words: list[str], config: list[str], path: Path) -> dict[str, Any]:
    """Run a task's words and what else was asked for, unless the folder holds that run; return its metrics."""
    words, results = [*words, *config], path / "glue.json"
    if not results.exists():
        print("mobillm run examples/glue " + " ".join(f"-c {shlex.quote(word)}" for word in words), flush=True)
        run_app(read_app(APP), words, run_path=path, on_event=lambda _event: None)
        found = measure_references(path) | {"lora": lora(words), "config": config}
        results.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    loaded: dict[str, Any] = json.loads(results.read_text("utf-8"))
    return loaded


def lora(words: list[str]) -> float:
    """Train LoRA (r = 8 on query and value) and a linear head on the run's rows in one place; return the metric."""
    settings = read_app(APP).settings([*LORA, *words])
    data, peer = load_central_data(settings), settings.peer
    model = baseline_model(settings, data.contract)
    model.fit(
        data.train,
        epochs=peer.local_epochs,
        batch_size=peer.batch_size,
        learning_rate=peer.learning_rate,
        seed=settings.run.seed,
    )
    return model.evaluate(data.test)


def table(found: list[dict[str, Any]]) -> str:
    """Return the runs as a table."""
    lines = [["task", "metric", "backbone", "samples", *COLUMNS.values()]]
    lines.append(["---"] * len(lines[0]))
    for one in found:
        cells = ["–" if one.get(column) is None else f"{one[column]:.3f}" for column in COLUMNS]
        lines.append([one["task"], one["metric"], one["backbone"], f"{one['num_train']:,}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--backbone", action="append", help="minilm, a hub id or a folder; may be given several times")
    parser.add_argument("--data", type=Path, help="folder of local data sets; without it from the hub")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/glue"), help="folder of the runs; finished ones are kept"
    )
    parser.add_argument("--json", type=Path, help="write the table's figures there, too")
    parser.add_argument("-c", "--config", action="append", default=[], help="another setting, key=value")
    asked = parser.parse_args()
    rows = []
    for name in asked.tasks:
        for backbone in asked.backbone or ["minilm"]:
            folder = resolve_folder(backbone)
            causal = is_causal(AutoConfig.from_pretrained(folder, trust_remote_code=False))
            where = str(folder) if Path(backbone).expanduser().is_dir() else backbone
            words = settings(name, data=asked.data, backbone=where, causal=causal)
            found = run(words, asked.config, asked.out.resolve() / f"{name}-{Path(backbone).name}")
            rows.append({"task": name, "backbone": Path(backbone).name} | found)
    print("\n" + table(rows))
    if asked.json:
        report = Report("glue", {"tasks": asked.tasks}, figures={"runs": rows})
        asked.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
