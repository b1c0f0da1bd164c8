"""Every registered codec on really encoded samples: bits a value, relative error, throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mobillm_flower.core.codecs import CODECS
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.core.sparse import decode_samples, encode_sample
from mobillm_flower.evaluation.turns import Report, Threshold, compare_seconds, take_turns, timed

BITS_BAR = 4.2
REFERENCE = "fp32"
"""The codec that the others are timed beside: it copies bytes."""


def bench_codecs(
    *,
    pairs: int = 10,
    num_samples: int = 64,
    blocks: int = 12,
    width: int = 768,
    keeps: Sequence[float] = (1.0, 0.25, 0.1),
    num_threads: int = 1,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Encode and decode standard normal samples of shape [1, M, 1, d] with every codec in turns.

    Parameters
    ----------
    pairs : int
        Turns; in each one every codec encodes, or decodes, all samples.
    blocks, width : int
        M and d.
    keeps : sequence of float
        Shares of the values kept.

    Returns
    -------
    Report
        Bar `bits_per_value` of NF4 with all values kept. `figures["codecs"]` has a row for each codec and share: bits
        a value of the whole sample, masks included; ‖x − x̂‖/‖x‖ over all samples; values a second, of the whole sample.
    """
    values = num_samples * blocks * width
    report = Report(
        "codecs",
        {
            "samples": num_samples,
            "shape": [1, blocks, 1, width],
            "values": "standard normal, seed 0",
            "dtype": "fp32",
            "keep": list(keeps),
            "threads": num_threads,
            "pairs": pairs,
            "decoded_together": num_samples,
        },
    )
    samples = torch.randn(num_samples, 1, blocks, 1, width, generator=torch.Generator().manual_seed(0))
    rows = []
    with torch_threads(num_threads):
        for keep in keeps:
            say(f"keep={keep:g}")
            blobs = {name: _encode(samples, name, keep) for name in CODECS}
            decoded = {name: _decode(blobs[name], samples, name, keep) for name in CODECS}
            encoding = take_turns({name: timed(_encoder(samples, name, keep)) for name in CODECS}, pairs)
            decoding = take_turns({name: timed(_decoder(blobs[name], samples, name, keep)) for name in CODECS}, pairs)
            for name in CODECS:
                encode = compare_seconds(encoding[name], encoding[REFERENCE], REFERENCE)[""]
                decode = compare_seconds(decoding[name], decoding[REFERENCE], REFERENCE)[""]
                if name != REFERENCE:
                    report.comparisons[f"encode {name} keep={keep:g}"] = encode
                    report.comparisons[f"decode {name} keep={keep:g}"] = decode
                rows.append(
                    {
                        "codec": name,
                        "keep": keep,
                        "bits_per_value": 8 * sum(map(len, blobs[name])) / values,
                        "relative_error": _relative_error(samples, decoded[name]),
                        "encode_values_per_s": values / encode.to_dict()["ours_median"],
                        "decode_values_per_s": values / decode.to_dict()["ours_median"],
                    }
                )
    report.figures["codecs"] = rows
    (bits,) = [row["bits_per_value"] for row in rows if row["codec"] == "nf4" and row["keep"] == 1]
    report.bars["bits_per_value"] = Threshold(float(bits), BITS_BAR, at_most=True)
    return report


def _encode(samples: Tensor, codec: str, keep: float) -> list[bytes]:
    return [encode_sample(sample, CODECS[codec], keep) for sample in samples]


def _decode(blobs: Sequence[bytes], samples: Tensor, codec: str, keep: float) -> Tensor:
    vectors = samples[0].numel() // samples.shape[-1]
    return decode_samples(blobs, [vectors] * len(blobs), samples.shape[-1], CODECS[codec], keep)


def _encoder(samples: Tensor, codec: str, keep: float) -> Callable[[], object]:
    return lambda: _encode(samples, codec, keep)


def _decoder(blobs: Sequence[bytes], samples: Tensor, codec: str, keep: float) -> Callable[[], object]:
    return lambda: _decode(blobs, samples, codec, keep)


def _relative_error(samples: Tensor, decoded: Tensor) -> float:
    error = torch.linalg.vector_norm(samples.reshape(decoded.shape) - decoded)
    return float(error / torch.linalg.vector_norm(samples))
