"""Layer sampling: which layers of a stack feed the side network."""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_flower.errors import ArgumentError

_MANY, _BLOCKS_OF_MANY, _SPREAD = 12, 10, 3


def automatic_blocks(depth: int) -> int:
    """Return M where nobody says it: a block a layer, and ten of a backbone of more than twelve layers.

    With thirty layers ten are as good as all (`docs/decisions/0018-a-real-language-model.md`).

    Examples
    --------
    >>> [automatic_blocks(depth) for depth in (6, 12, 24)]
    [6, 12, 10]
    """
    return depth if depth <= _MANY else _BLOCKS_OF_MANY


def sample_layers(
    depth: int, num_blocks: int, *, scheme: str = "uniform", layers: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the layers whose states are sampled, counted from 1; 0 are the embeddings, what the first layer reads.

    `uniform` and `top-heavy` cut layers 1..L into M contiguous blocks and return the last layer of each.

    Fed MobiLLM (2508.06765) samples the last layer of each block; MobiLLM (2502.20421) makes blocks finer near the
    output. The last layer L is always sampled.

    Parameters
    ----------
    depth : int
        L, the number of layers of the backbone as it is loaded.
    num_blocks : int
        M; 0: `automatic_blocks`, with `upper` one more than two thirds of the layers, with `spread` three.
    scheme : {"uniform", "top-heavy", "upper", "spread"}
        `uniform`: block ends at round(i·L/M). `top-heavy`: block ends at L·(1 − (1 − i/M)²), so that blocks shrink
        towards the output; our reading, the paper gives no formula. `upper`: the embeddings and the last M - 1 layers.
        `spread`: the embeddings, and the ends of M - 1 uniform blocks.
    layers : sequence of int
        Explicit layer numbers, ascending, ending with L; overrides the scheme.

    Returns
    -------
    tuple of int
        M ascending layer numbers; the last is L.

    Raises
    ------
    ArgumentError
        M is larger than L, the explicit list does not fit, or the scheme is unknown.

    Examples
    --------
    >>> sample_layers(12, 4)
    (3, 6, 9, 12)
    >>> sample_layers(12, 4, scheme="top-heavy")
    (5, 9, 11, 12)
    >>> sample_layers(6, 0, scheme="upper")
    (0, 3, 4, 5, 6)
    >>> sample_layers(30, 0, scheme="spread")
    (0, 15, 30)
    """
    if layers:
        chosen = tuple(layers)
        if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] != depth:
            raise ArgumentError(
                "layers",
                list(chosen),
                f"must ascend from 0 (the embeddings) or later and end with the backbone's last layer {depth}; to stop "
                "earlier, load fewer layers of it",
            )
        if num_blocks not in (0, len(chosen)):
            raise ArgumentError(
                "layers", list(chosen), f"names {len(chosen)} layers, but {num_blocks} blocks are asked for"
            )
        return chosen
    embeddings = scheme in ("upper", "spread")
    few = {"upper": 1 + -(-2 * depth // 3), "spread": min(_SPREAD, depth + 1)}
    num_blocks = num_blocks or few.get(scheme) or automatic_blocks(depth)
    if not 1 <= num_blocks <= depth + embeddings:
        raise ArgumentError(
            "num_blocks", num_blocks, f"cannot be had: a backbone of {depth} layers has at most {depth} blocks"
        )
    if scheme == "uniform":
        return _uniform(depth, num_blocks)
    if embeddings and num_blocks == 1:
        return (depth,)
    if scheme == "upper":
        return (0, *range(depth + 2 - num_blocks, depth + 1))
    if scheme == "spread":
        return (0, *_uniform(depth, num_blocks - 1))
    if scheme == "top-heavy":
        return _top_heavy(depth, num_blocks)
    raise ArgumentError("scheme", scheme, "must be uniform, top-heavy, upper or spread")


def _uniform(depth: int, num_blocks: int) -> tuple[int, ...]:
    return tuple((2 * i * depth + num_blocks) // (2 * num_blocks) for i in range(1, num_blocks + 1))


def _top_heavy(depth: int, num_blocks: int) -> tuple[int, ...]:
    ends = [round(depth * (1 - (1 - i / num_blocks) ** 2)) for i in range(1, num_blocks + 1)]
    ends[-1] = depth
    for i in range(num_blocks - 2, -1, -1):  # keep block ends distinct where rounding merged them
        ends[i] = min(ends[i], ends[i + 1] - 1)
    for i in range(num_blocks):
        ends[i] = max(ends[i], i + 1)
    return tuple(ends)


def cut_layer(depth: int, layers: Sequence[int] = ()) -> tuple[int]:
    """Return the one layer below which a device runs and above which the side network does.

    Parameters
    ----------
    depth : int
        L.
    layers : sequence of int
        The layer, 1-based; none: a third of the depth.

    Raises
    ------
    ArgumentError
        There is no layer on one side, or several layers are named.

    Examples
    --------
    >>> cut_layer(12)
    (4,)
    """
    chosen = tuple(layers) or (max(1, round(depth / 3)),)
    if len(chosen) != 1 or not 1 <= chosen[0] < depth:
        raise ArgumentError(
            "layers",
            list(chosen),
            f"must be one layer from 1 to {depth - 1}, above which the side network runs the others of {depth}",
        )
    return (chosen[0],)
