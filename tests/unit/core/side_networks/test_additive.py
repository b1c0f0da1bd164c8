"""The additive side network against its equations in plain loops, and what its configuration chooses."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from mobillm_flower.core.side_networks import (
    SIDE_NETWORKS,
    ActivationBatch,
    AdditiveSideNetwork,
    AlignmentSpec,
    SideNetworkConfig,
    state_for,
)
from mobillm_flower.errors import ArgumentError, MismatchError, SettingsError

SMALL, LARGE, PAIR = "aa" * 8, "bb" * 8, "cc" * 8
TYPES = {SMALL: AlignmentSpec(6, 1), LARGE: AlignmentSpec(10, 1), PAIR: AlignmentSpec(6, 2)}
BLOCKS, WIDTH, BOTTLENECK, OUTPUTS = 3, 8, 4, 5


def _config(types: Any = None, **changes: Any) -> Any:
    values = {"width": WIDTH, "num_blocks": BLOCKS, "bottleneck": BOTTLENECK, "num_outputs": OUTPUTS, **changes}
    return SideNetworkConfig.of(types or TYPES, name="additive", **values)


def _trained(config: Any, seed: int = 0) -> Any:
    """Build a network whose every parameter is away from its start, so that each has an effect."""
    network, generator = config.build(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network


def _rows(backbone: Any, count: Any, *, seed: int = 0, blocks: Any = BLOCKS) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, blocks, TYPES[backbone].num_features, generator=generator) + 1


def _norm(values: Any, weight: Any = None, bias: Any = None) -> Any:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    standard = [(value - mean) / math.sqrt(variance + 1e-5) for value in values]
    if weight is None:
        return standard
    return [w * value + b for w, value, b in zip(weight, standard, bias, strict=True)]


def _apply(matrix: Any, values: Any) -> Any:
    return [sum(row[j] * values[j] for j in range(len(values))) for row in matrix]


def _slow_hidden(state: Any, backbone: Any, row: Any, phi: Any) -> Any:
    """LN(h_M) of one row [M, P·d_b], every sum a loop in double precision."""
    previous = None
    for i in range(len(row)):
        x = _apply(state[f"alignment.{backbone}.weight"][i], _norm(row[i]))
        if previous is None:
            s = x
        else:
            mu = 1 / (1 + math.exp(-state["gates"][i - 1]))
            s = [(1 - mu) * x[j] + mu * previous[j] for j in range(len(x))]
        name = f"adapters.{i}"
        normed = _norm(s, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
        down = _apply(state[f"{name}.down.weight"], normed)
        inner = [phi(value + bias) for value, bias in zip(down, state[f"{name}.down.bias"], strict=True)]
        up = _apply(state[f"{name}.up.weight"], inner)
        previous = [a + b + c for a, b, c in zip(s, up, state[f"{name}.up.bias"], strict=True)]
    return _norm(previous, state["output_norm.weight"], state["output_norm.bias"])


def _slow(
    network: Any,
    backbone: Any,
    rows: Any,
    lengths: Any = None,
    phi: Any = lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
) -> Any:
    """s(A) of samples one at a time: [B, K]."""
    state = {name: tensor.double().tolist() for name, tensor in network.state_dict().items()}
    hidden = [_slow_hidden(state, backbone, row, phi) for row in rows.double().tolist()]
    results, start = [], 0
    for length in lengths or [1] * len(hidden):
        part = hidden[start : start + length]
        start += length
        mean = [sum(column) / length for column in zip(*part, strict=True)]
        output = _apply(state["output.weight"], mean)
        results.append([value + bias for value, bias in zip(output, state["output.bias"], strict=True)])
    return torch.tensor(results)


def _close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", list(TYPES))
@pytest.mark.parametrize("blocks", [1, 2, BLOCKS])
def test_the_output_is_the_equations_in_loops(backbone: Any, blocks: Any) -> None:
    network = _trained(_config(num_blocks=blocks))
    rows = _rows(backbone, 4, blocks=blocks)
    _close(network([ActivationBatch(backbone, rows)]), _slow(network, backbone, rows))


@pytest.mark.parametrize(
    ("activation", "phi"),
    [
        ("relu", lambda v: max(v, 0.0)),
        ("silu", lambda v: v / (1 + math.exp(-v))),
        ("tanh", math.tanh),
        ("identity", lambda v: v),
    ],
)
def test_each_activation_function_is_what_its_name_says(activation: str, phi: Any) -> None:
    network = _trained(_config(activation=activation))
    rows = _rows(SMALL, 3)
    _close(network([ActivationBatch(SMALL, rows)]), _slow(network, SMALL, rows, phi=phi))


@pytest.mark.parametrize("identity", [True, False])
def test_a_fresh_network_puts_out_zero_and_still_learns(identity: bool) -> None:
    types = {SMALL: TYPES[SMALL]} if identity else TYPES
    network = _config(types, width=6).build()
    assert network.identity_alignment is identity
    output = network([ActivationBatch(SMALL, _rows(SMALL, 4))])
    assert torch.equal(output, torch.zeros(4, OUTPUTS))
    (output - 1).square().sum().backward()
    assert float(network.output.weight.grad.abs().sum()) > 0


def test_tokens_of_a_sample_are_averaged_over_its_length() -> None:
    network, lengths = _trained(_config()), [3, 1, 4]
    rows = _rows(PAIR, sum(lengths))
    together = network([ActivationBatch(PAIR, rows, torch.tensor(lengths))])
    assert together.shape == (3, OUTPUTS)
    _close(together, _slow(network, PAIR, rows, lengths))


def test_samples_by_token_do_not_depend_on_their_neighbours() -> None:
    network, lengths = _trained(_config()), [2, 5, 1]
    rows = _rows(SMALL, sum(lengths))
    together = network([ActivationBatch(SMALL, rows, torch.tensor(lengths))])
    for sample, part in enumerate(rows.split(lengths)):
        alone = network([ActivationBatch(SMALL, part, torch.tensor([len(part)]))])
        _close(together[sample], alone[0])


def test_gradients_by_token_are_those_of_single_samples() -> None:
    lengths = [2, 5, 1]
    rows = _rows(SMALL, sum(lengths))
    one, many = _trained(_config()), _trained(_config())
    one([ActivationBatch(SMALL, rows, torch.tensor(lengths))]).square().sum().backward()
    for part in rows.split(lengths):
        many([ActivationBatch(SMALL, part, torch.tensor([len(part)]))]).square().sum().backward()
    for (name, first), (_, second) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        if first.grad is None:
            assert second.grad is None, name
        else:
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_mixed_types_in_one_call_equal_separate_calls() -> None:
    network = _trained(_config())
    batches = [
        ActivationBatch(LARGE, _rows(LARGE, 2)),
        ActivationBatch(SMALL, _rows(SMALL, 3)),
        ActivationBatch(LARGE, _rows(LARGE, 1, seed=1)),
        ActivationBatch(PAIR, _rows(PAIR, 2)),
    ]
    _close(network(batches), torch.cat([network([batch]) for batch in batches]))


def test_batches_by_token_and_by_sample_mix() -> None:
    network = _trained(_config())
    batches = [
        ActivationBatch(SMALL, _rows(SMALL, 2)),
        ActivationBatch(LARGE, _rows(LARGE, 5), torch.tensor([4, 1])),
        ActivationBatch(PAIR, _rows(PAIR, 1)),
    ]
    _close(network(batches), torch.cat([network([batch]) for batch in batches]))


def test_every_type_has_its_own_alignment() -> None:
    network = _trained(_config())
    batch = ActivationBatch(SMALL, _rows(SMALL, 2))
    before = network([batch])
    with torch.no_grad():
        network.alignment[LARGE].weight.zero_()
        network.alignment[PAIR].weight.zero_()
    assert torch.equal(network([batch]), before)


def test_alignment_parameters_are_counted_by_type_and_not_by_device() -> None:
    network = _trained(_config())
    expected = sum(BLOCKS * WIDTH * spec.num_features for spec in TYPES.values())
    devices = [ActivationBatch(SMALL, _rows(SMALL, 2, seed=device)) for device in range(20)]
    outputs = network(devices)
    outputs.sum().backward()
    assert sum(parameter.numel() for parameter in network.alignment.parameters()) == expected
    joined = ActivationBatch(SMALL, torch.cat([device.rows for device in devices]))
    _close(outputs, network([joined]))


def test_the_input_norm_takes_out_shift_and_scale_of_a_row() -> None:
    rows = _rows(SMALL, 3)
    moved = 20 * rows + 7
    normed, plain = _trained(_config()), _trained(_config(input_norm=False))
    _close(normed([ActivationBatch(SMALL, moved)]), normed([ActivationBatch(SMALL, rows)]))
    assert not torch.allclose(plain([ActivationBatch(SMALL, moved)]), plain([ActivationBatch(SMALL, rows)]), atol=0.1)


@pytest.mark.parametrize("input_norm", [True, False])
def test_a_square_alignment_starts_as_the_identity(input_norm: bool) -> None:
    types = {SMALL: AlignmentSpec(6, 1), LARGE: AlignmentSpec(10, 1)}
    learned = _config(types, width=6, input_norm=input_norm).build()
    fixed = _config({SMALL: types[SMALL]}, width=6, input_norm=input_norm).build()
    batch = ActivationBatch(SMALL, _rows(SMALL, 3))
    assert len(list(fixed.alignment.parameters())) == 0
    torch.testing.assert_close(learned.align(batch), fixed.align(batch))
    if not input_norm:
        assert torch.equal(fixed.align(batch), batch.rows)


def test_the_alignment_of_two_pivots_of_the_width_starts_as_their_sum_over_root_two() -> None:
    network = _config(width=6, input_norm=False).build()
    batch = ActivationBatch(PAIR, _rows(PAIR, 3))
    first, second = batch.rows.split(6, dim=2)
    torch.testing.assert_close(network.align(batch), (first + second) / math.sqrt(2))


def test_an_alignment_of_low_rank_keeps_the_sum_and_learns_beside_it() -> None:
    full = _config({PAIR: TYPES[PAIR]}, width=6, input_norm=False)
    network = dataclasses.replace(full, name="low-rank").build()
    batch = ActivationBatch(PAIR, _rows(PAIR, 3))
    torch.testing.assert_close(network.align(batch), full.build().align(batch))
    alignment = network.alignment[PAIR]
    torch.nn.init.normal_(alignment.up)
    learned = torch.einsum("mdr,mrf,nmf->nmd", alignment.up, alignment.down, batch.rows)
    torch.testing.assert_close(network.align(batch), full.build().align(batch) + learned)
    assert alignment.down.shape == (BLOCKS, network.rank, 12)
    assert 0 < network.learning_rate_factor(f"alignment.{PAIR}.up") < 1


def test_a_type_of_another_width_has_a_full_alignment_beside_those_of_low_rank() -> None:
    network = dataclasses.replace(_config(width=6), name="low-rank").build()
    shapes = {name: [tuple(p.shape) for p in part.parameters()] for name, part in network.alignment.items()}
    assert shapes[LARGE] == [(BLOCKS, 6, 10)]
    assert shapes[SMALL] == [(BLOCKS, network.rank, 6), (BLOCKS, 6, network.rank)]


def test_the_alignment_alone_learns_at_a_lower_rate() -> None:
    network = _config().build()
    factors = {name: network.learning_rate_factor(name) for name, _ in network.named_parameters()}
    aligned = {name for name, _ in network.alignment.named_parameters(prefix="alignment")}
    assert len(aligned) == len(TYPES)
    assert all(0 < factors[name] < 1 for name in aligned)
    assert {factor for name, factor in factors.items() if name not in aligned} == {1.0}


def test_gates_start_at_one_half_and_weigh_the_previous_block() -> None:
    network = _trained(_config())
    assert _config().build().gate_values == [0.5] * (BLOCKS - 1)
    assert _config(num_blocks=1).build().gate_values == []
    with torch.no_grad():
        network.gates.fill_(-50)
    assert network.gate_values == pytest.approx([0.0] * (BLOCKS - 1))
    rows = _rows(SMALL, 2)
    changed = rows.clone()
    changed[:, :-1] = _rows(SMALL, 2, seed=1)[:, :-1]  # closed gates: the last block alone decides
    _close(network([ActivationBatch(SMALL, changed)]), network([ActivationBatch(SMALL, rows)]))


def _same(first: Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_initial_weights_depend_on_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = _config(seed=4).build().state_dict()
    torch.manual_seed(2)
    torch.randn(10)
    reversed_types = dict(reversed(TYPES.items()))
    assert list(reversed_types) != list(TYPES)
    _same(first, _config(reversed_types, seed=4).build().state_dict())
    other = _config(seed=5).build().state_dict()
    assert not torch.equal(first["adapters.0.down.weight"], other["adapters.0.down.weight"])


def test_another_type_in_the_run_leaves_the_initial_weights_of_the_rest() -> None:
    two = {SMALL: TYPES[SMALL], LARGE: TYPES[LARGE]}
    with_two, with_three = _config(two).build().state_dict(), _config().build().state_dict()
    _same(with_two, {name: tensor for name, tensor in with_three.items() if PAIR not in name})


def test_one_types_state_builds_a_network_that_agrees() -> None:
    config = _config()
    network = _trained(config)
    part = state_for(network.state_dict(), LARGE)
    assert f"alignment.{LARGE}.weight" in part
    assert not any(SMALL in name or PAIR in name for name in part)
    assert {name for name in network.state_dict() if not name.startswith("alignment.")} <= set(part)
    own = config.only(LARGE).build()
    own.load_state_dict(part)
    batch = ActivationBatch(LARGE, _rows(LARGE, 3))
    assert torch.equal(own([batch]), network([batch]))
    with pytest.raises(MismatchError, match=f"backbone {SMALL[:12]} has no alignment"):
        own([ActivationBatch(SMALL, _rows(SMALL, 1))])


def test_a_type_whose_name_begins_like_another_is_kept_out() -> None:
    types = {"ab": AlignmentSpec(6, 1), "abc": AlignmentSpec(6, 1)}
    part = state_for(_config(types).build().state_dict(), "ab")
    assert [name for name in part if name.startswith("alignment.")] == ["alignment.ab.weight"]


def test_the_part_of_one_type_keeps_its_learned_alignment() -> None:
    config = _config({SMALL: AlignmentSpec(8, 1), LARGE: AlignmentSpec(8, 1)})
    assert config.only(SMALL).types == {SMALL: AlignmentSpec(8, 1)}
    assert config.only(SMALL).identity_alignment is False


def test_a_type_that_was_not_in_the_run_is_refused() -> None:
    with pytest.raises(MismatchError, match="backbone dddddddddddd was not part of the run"):
        _config().only("d" * 32)
    with pytest.raises(MismatchError, match=f"backbone dddddddddddd has no alignment .* knows {SMALL[:12]}"):
        _config().build()([ActivationBatch("d" * 32, _rows(SMALL, 1))])


@pytest.mark.parametrize("shape", [(2, BLOCKS, 7), (2, BLOCKS + 1, 6), (2, 6)])
def test_rows_of_another_shape_are_refused(shape: Any) -> None:
    network = _config().build()
    with pytest.raises(MismatchError, match=r"a row, the side network takes \(3, 6\)"):
        network([ActivationBatch(SMALL, torch.zeros(shape))])


def test_an_unknown_activation_function_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^activation='swish' is not known; choose one of gelu"):
        _config(activation="swish").build()


def test_an_unknown_side_network_is_refused() -> None:
    config = SideNetworkConfig.of(TYPES, name="aditive", num_blocks=1, bottleneck=1, num_outputs=1)
    with pytest.raises(SettingsError, match="unknown side network 'aditive'; did you mean 'additive'"):
        config.build()


def test_the_additive_network_is_registered() -> None:
    assert SIDE_NETWORKS["additive"] is AdditiveSideNetwork
    assert isinstance(_config().build(), AdditiveSideNetwork)


@pytest.mark.parametrize("types", [TYPES, {SMALL: AlignmentSpec(8, 1)}])
def test_the_configuration_survives_json(types: Any) -> None:
    config = _config(types, activation="silu", input_norm=False, seed=9)
    again = SideNetworkConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    _same(again.build().state_dict(), config.build().state_dict())


@pytest.mark.parametrize(
    ("widths", "width"),
    [
        ([384], 384),
        ([384, 768], 768),
        ([768, 384], 768),
        ([768, 384, 1024], 768),
        ([1024, 384, 768, 512], 512),
        ([384, 384, 384, 4096, 4096], 384),
        ([64, 128, 256, 512, 1024, 2048], 256),
    ],
)
def test_width_zero_follows_the_backbones(widths: Any, width: int) -> None:
    types = {f"type-{i}": AlignmentSpec(value, 1) for i, value in enumerate(widths)}
    assert _config(types, width=0).width == width
    assert _config(types, width=48).width == 48


@pytest.mark.parametrize(
    ("types", "width", "identity"),
    [
        ({SMALL: AlignmentSpec(8, 1)}, 0, True),
        ({SMALL: AlignmentSpec(8, 1)}, 8, True),
        ({SMALL: AlignmentSpec(8, 1)}, 16, False),
        ({SMALL: AlignmentSpec(8, 2)}, 0, False),
        ({SMALL: AlignmentSpec(8, 2)}, 16, False),
        ({SMALL: AlignmentSpec(8, 1), LARGE: AlignmentSpec(8, 1)}, 0, False),
    ],
)
def test_only_one_type_with_one_vector_of_the_width_goes_without_alignment(
    types: Any, width: int, identity: bool
) -> None:
    config = _config(types, width=width)
    assert config.identity_alignment is identity
    assert (len(list(config.build().alignment.parameters())) == 0) is identity
