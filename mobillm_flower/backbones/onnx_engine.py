"""ONNX Runtime in the place of transformers' own code: graphs that leave nothing but pivots, exported once.

A graph is made for a backbone, its sampled layers and pivot, compared with transformers' own code on a few texts of
other shapes than those it was traced with, and kept in the user's cache folder. Where there can be none, torch computes
instead: a warning says why, and so does the release id.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from mobillm_flower.backbones.backbone import Backbone
from mobillm_flower.backbones.engine import Engine, TorchEngine
from mobillm_flower.backbones.kept import cache_folder
from mobillm_flower.backbones.options import LoadOptions
from mobillm_flower.backbones.public import public_text
from mobillm_flower.core.pivots import Pivot
from mobillm_flower.errors import UnsupportedError

TOLERANCE = {"fp32": 1e-3, "int8": 0.25}
"""By precision: largest difference of a graph's pivots from torch's fp32 over their norm, with which it is used."""

_MADE_BY = ("torch", "transformers", "onnx", "onnxruntime", "mobillm-flower")
_GRAPH, _WHY_NOT = "graph.onnx", "unsupported.txt"
logger = logging.getLogger(__name__)
Load = Callable[[LoadOptions], Backbone]


def onnx_backbone(options: LoadOptions, load: Load) -> Backbone:
    """Return a backbone that ONNX Runtime computes, or one that torch does where that is not installed.

    Its weights are in memory once: those of the torch model are let go, but for a language model, whose head and
    generation need them. They are loaded again, for a while, where a graph is to be exported.

    Parameters
    ----------
    options : LoadOptions
        With precision fp32, or int8: weights by output channel; activations with one scale a batch and product,
        computed as it runs. `check_engine` refuses others, and devices other than the CPU.
    load : callable
        Loads a backbone with torch's engine.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read as it is imported; on otherwise
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning(
            "backbone.engine=onnx: %s not installed, torch computes; pip install 'mobillm-flower[onnx]'",
            " and ".join(missing),
        )
        return load(replace(options, engine="torch"))
    backbone = load(_in_torch(options))
    backbone.info = replace(backbone.info, precision=options.precision)
    backbone.engine = OnnxEngine(load, options, fingerprint=backbone.info.fingerprint)
    if backbone.language_model is None:
        (backbone.predictor or backbone.model).to("meta")
    return backbone


def _in_torch(options: LoadOptions) -> LoadOptions:
    """Return the options of the torch model that a graph is exported from and compared with."""
    return replace(options, engine="torch", precision="fp32", device="cpu")


class OnnxEngine(Engine):
    """ONNX Runtime on the CPU, with as many threads as torch has.

    Parameters
    ----------
    load : callable
        As in `onnx_backbone`: what a graph is exported from and compared with, and what computes where there is none.
    options : LoadOptions
        As in `onnx_backbone`.
    fingerprint : str
        Of the backbone, for the cache.
    """

    name = "onnx"

    def __init__(self, load: Load, options: LoadOptions, *, fingerprint: str) -> None:
        self._load, self._options, self._fingerprint = load, options, fingerprint
        self._ready: dict[tuple[tuple[int, ...], Pivot], Engine] = {}

    def prepare(self, layers: Sequence[int], select: Pivot) -> Engine:
        """Open the graph, exported first where it is not in the cache; torch's engine where there can be none."""
        key = tuple(layers), select
        if key not in self._ready:
            try:
                self._ready[key] = self._graph(*key)
            except Exception as error:  # exporter and runtime raise whatever they like
                logger.warning("backbone.engine=onnx: torch computes, since there is no graph: %s", _words(error))
                self._ready[key] = self._load(replace(self._options, engine="torch", device="cpu")).engine
        return self._ready[key]

    def run(
        self, batches: Iterable[Mapping[str, Tensor]], layers: Sequence[int], select: Pivot
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Engine`."""
        return self.prepare(layers, select).run(batches, layers, select)

    def _graph(self, layers: tuple[int, ...], select: Pivot) -> Engine:
        folder = graphs_folder() / self._key(layers, select)
        if (folder / _WHY_NOT).exists():
            raise UnsupportedError(f"{(folder / _WHY_NOT).read_text('utf-8')} (remembered in {folder})")
        if (folder / _GRAPH).exists():
            try:
                return _Graph(folder / _GRAPH)
            except Exception:  # damaged: it is made anew
                shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as parent:
            draft = Path(parent) / "made"
            draft.mkdir()
            try:
                graph = _made(self._load(_in_torch(self._options)), layers, select, draft, self._options.precision)
            except (OSError, MemoryError):
                raise  # another time it may work
            except Exception as error:
                shutil.rmtree(draft)
                draft.mkdir()
                (draft / _WHY_NOT).write_text(_words(error), "utf-8")
                _keep(draft, folder)
                raise
            _keep(draft, folder)
        return graph

    def _key(self, layers: tuple[int, ...], select: Pivot) -> str:
        function = select.select
        what = [
            self._fingerprint,
            self._options.num_labels,
            self._options.label_words,
            self._options.language_model,
            layers,
            f"{function.__module__}.{function.__qualname__}",
            inspect.getsource(sys.modules[function.__module__]),
            self._options.precision,
            [metadata.version(name) for name in _MADE_BY],
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def graphs_folder() -> Path:
    """Return where graphs are kept: in the user's cache. It may be removed at any time."""
    return cache_folder() / "graphs"


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _keep(draft: Path, folder: Path) -> None:
    """Move a folder to its place in one step; where another process was first, its own stays."""
    with contextlib.suppress(OSError):
        draft.replace(folder)
    if not folder.is_dir():
        raise OSError(f"{folder} cannot be written")


class _Graph(Engine):
    """A graph on disk as an engine."""

    name = "onnx"

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_cpu_mem_arena = False  # it would keep the largest batch's scratch memory
        options.log_severity_level = 4  # errors are raised; they need no line of their own
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]

    def run(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        layers: Sequence[int],  # noqa: ARG002 - those of the graph
        select: Pivot,  # noqa: ARG002
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Engine`."""
        for inputs in batches:
            outputs = self._session.run(None, {name: inputs[name].numpy() for name in self._inputs})
            pivots, *logits = map(torch.from_numpy, outputs)
            yield pivots, logits[0] if logits else None


class _Forward(nn.Module):
    """One batch through torch's engine, with inputs in the order of their names."""

    def __init__(self, backbone: Backbone, names: Sequence[str], layers: Sequence[int], select: Pivot) -> None:
        super().__init__()
        assert isinstance(backbone.engine, TorchEngine)
        self._whole, self._engine = backbone.predictor or backbone.model, backbone.engine
        self._names, self._layers, self._select = names, layers, select

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self._names, inputs, strict=True))
        pivots, logits = self._engine.forward(named, self._layers, self._select)
        return (pivots,) if logits is None else (pivots, logits)


def _made(backbone: Backbone, layers: tuple[int, ...], select: Pivot, folder: Path, precision: str) -> Engine:
    """Export a graph into a folder, compare what it computes with torch, and return it.

    Raises
    ------
    UnsupportedError
        Its pivots are further from torch's than `TOLERANCE`.
    """
    texts, longest = public_text(), min(48, backbone.positions or 48)
    traced, *others = (
        backbone.pad(backbone.tokenize(some, None, longest))
        for some in (texts[:3], [texts[3], " ".join(texts[4:12])], [texts[12][:12]])
    )
    plain = folder / "plain.onnx" if precision == "int8" else folder / _GRAPH
    with _quiet():
        _export(_Forward(backbone, list(traced), layers, select), traced, plain)
        if precision == "int8":
            _quantize(plain, folder / _GRAPH)
            for file in folder.glob("plain*"):
                file.unlink()
    graph = _Graph(folder / _GRAPH)
    for inputs in others:
        pairs = zip(graph.run([inputs], layers, select), backbone.engine.run([inputs], layers, select), strict=True)
        for (got, _), (wanted, _) in pairs:
            if select.per_token:  # what stands at padding is read by nobody
                mask = inputs["attention_mask"][:, : got.shape[1], None, None, None]
                got, wanted = got * mask, wanted * mask
            apart = float((got - wanted).norm() / wanted.norm()) if got.shape == wanted.shape else float("inf")
            if not apart <= TOLERANCE[precision]:
                raise UnsupportedError(
                    f"pivots of the {precision} graph are {apart:.2g} of their norm away from torch's, "
                    f"{TOLERANCE[precision]:g} is allowed"
                )
    return graph


def _export(forward: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> None:
    outputs = ["pivots", "base_logits"]
    axes = {name: {0: "batch", 1: "tokens"} if tensor.shape[1] > 1 else {0: "batch"} for name, tensor in inputs.items()}
    with torch.no_grad():
        torch.onnx.export(
            forward.eval(),
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=outputs[: len(forward(*inputs.values()))],
            dynamic_axes=axes | {name: {0: "batch"} for name in outputs},
            opset_version=17,
            dynamo=False,  # by tracing: in a tenth of the time, and ONNX Runtime finds more in the graph to fuse
        )


def _quantize(plain: Path, file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        plain,
        file,
        weight_type=QuantType.QInt8,
        per_channel=True,
        use_external_data_format=plain.stat().st_size > 1 << 30 or len(list(plain.parent.iterdir())) > 1,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what an exporter says about its own ways off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
