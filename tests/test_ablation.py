"""Each variant of RestorMixerAblation differs from RestorMixer only by its option."""

from __future__ import annotations

import pytest
import torch
from tiny_network import wake

from restormixer_arch.ablation import RestorMixerAblation
from restormixer_arch.restormixer_arch import RestorMixer

SMALL = {
    "base_channels": 8,
    "num_blocks": (1, 2, 2),
    "encoder_heads": (2, 2),
    "decoder_heads": (2, 2),
    "window_size": 4,
}


def picture():
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def variant(**options):
    torch.manual_seed(0)
    return RestorMixerAblation(**SMALL, **options)


def used(network):
    """Return the names of the parameters that receive a gradient."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.decoder.head_full.conv.weight)
    norm = network.decoder.head_full.norm
    if hasattr(norm, "weight"):
        torch.nn.init.ones_(norm.weight)
    sum(output.square().sum() for output in network.train()(picture())).backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_default_variant_equals_restormixer():
    torch.manual_seed(0)
    whole = RestorMixer(**SMALL)
    same = variant()
    assert list(same.state_dict()) == list(whole.state_dict())
    wake(whole)
    same.load_state_dict(whole.state_dict())
    assert torch.equal(same.eval()(picture()), whole.eval()(picture()))


@pytest.mark.parametrize("scans", [0, 1, 2, 4])
def test_every_parameter_receives_a_gradient(scans):
    network = variant(scans=scans)
    assert used(network) == {name for name, _ in network.named_parameters()}


def test_fewer_scans_have_fewer_parameters():
    states = [{n: tuple(p.shape) for n, p in variant(scans=scans).named_parameters()} for scans in (0, 1, 2, 4)]
    assert not any("A_log" in name for name in states[0])
    assert {name for name in states[1] if "A_log" in name} == {name for name in states[3] if "scan1.A_log" in name}
    assert not any("scan3" in name for name in states[1])
    strided = "encoder.mt_half.units.0.emvm.scan3.A_log"
    assert (states[2][strided], states[3][strided]) == ((1, 32, 16), (3, 32, 16))


def test_two_scans_equal_the_first_two_scans_of_restormixer():
    whole, less = variant(), variant(scans=2)
    block, pruned = whole.encoder.mt_half.units[0].emvm, less.encoder.mt_half.units[0].emvm
    tokens = torch.rand(1, 4, 6, 32)
    assert torch.equal(pruned.scan3.merge_scans(tokens), block.scan3.scan(tokens, slice(0, 1)))
    assert torch.equal(pruned.scan1.merge_scans(tokens), block.scan1.merge_scans(tokens))


def test_save_pretrained_of_a_variant_is_rejected(tmp_path):
    with pytest.raises(NotImplementedError, match="kept as .pth only"):
        variant(scans=1).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_last_norm_variants():
    x = picture()
    assert torch.equal(variant(last_norm="zero")(x)[-1], x)
    assert torch.equal(variant(last_norm="none")(x)[-1], x)
    assert not torch.allclose(variant(last_norm="one")(x)[-1], x, atol=0.1)
    plain = variant(last_norm="none")
    assert [name for name in plain.state_dict() if "head_full" in name] == ["decoder.head_full.conv.weight"]
    torch.nn.init.normal_(plain.decoder.head_full.conv.weight)
    expected = plain.eval()(x)
    assert torch.allclose(plain.fuse()(x), expected, atol=1e-4)


@pytest.mark.parametrize(("option", "value"), [("scans", 3), ("last_norm", "two")])
def test_invalid_option_values_are_rejected(option, value):
    with pytest.raises(ValueError, match=f"{option} must be one of .* got {value!r}"):
        variant(**{option: value})
