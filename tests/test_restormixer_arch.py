"""The complete network: golden values of the released network, image sizes, colors, precision and saving."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_network import wake

from restormixer_arch import RestorMixer
from restormixer_arch.weight_options import from_released

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"base_channels": 4, "num_blocks": (1, 2, 2), "encoder_heads": (2, 2), "decoder_heads": (2, 2), "d_state": 4}


def small(**options):
    """Return a network whose last norms are not initialized to 0, which would disable most layers."""
    torch.manual_seed(0)
    net = RestorMixer(options.pop("in_channels", 3), options.pop("out_channels", 3), **{**SMALL, **options})
    wake(net)
    return net


def golden(merge):
    tensors = load_file(GOLDEN / f"restormixer_base8_{merge}.safetensors")
    released = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    net = RestorMixer(base_channels=8, num_blocks=(2, 4, 2), scan_merge=merge)
    net.load_state_dict(released)
    return net.eval(), tensors


def close(got, wanted, mean=1e-3, largest=2e-2):
    error = (got - wanted).abs()
    where = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    assert error.mean() <= mean and error.max() <= largest, f"mean {error.mean()}, max {error.max()} at {where}"


@pytest.mark.parametrize("merge", ["paper", "official"])
def test_golden_outputs_and_gradients(merge):
    net, tensors = golden(merge)
    x = tensors["input"].requires_grad_()
    outputs = net.forward_multiscale(x)
    for output, scale in zip(outputs, ("quarter", "half", "full"), strict=True):
        close(output, tensors[f"output_{scale}"])
    loss = sum(output.abs().mean() for output in outputs)
    torch.testing.assert_close(loss, tensors["loss"][0], rtol=1e-5, atol=0)
    loss.backward()
    torch.testing.assert_close(x.grad, tensors["grad_input"], rtol=1e-3, atol=1e-3)
    parameters = dict(net.named_parameters())
    wanted = {key.removeprefix("grad/"): value for key, value in tensors.items() if key.startswith("grad/")}
    assert len(wanted) == 5
    for name, gradient in from_released(wanted).items():
        scale = gradient.abs().max()
        torch.testing.assert_close(parameters[name].grad / scale, gradient / scale, rtol=0, atol=1e-3)


def test_paper_and_official_merge_differ():
    paper, tensors = golden("paper")
    official, _ = golden("official")
    difference = (paper(tensors["input"]) - official(tensors["input"])).abs().mean()
    assert difference > 0.1


def test_official_merge_never_trains_column_reverse():
    net = small(scan_merge="official")
    net(torch.rand(1, 3, 16, 16))[-1].square().mean().backward()
    scan = net.decoder.mt_half.units[0].emvm.scan3
    assert scan.directions[2] == "column_reverse"
    assert scan.x_proj.grad[2].abs().max() == 0
    assert scan.x_proj.grad[1].abs().max() > 0


@pytest.mark.parametrize(("blocks", "millions"), [((4, 4, 4), 3.195), ((8, 8, 8), 5.678)])
def test_parameter_counts(blocks, millions):
    count = sum(parameter.numel() for parameter in RestorMixer(num_blocks=blocks).parameters())
    assert round(count / 1e6, 3) == millions


def test_training_returns_three_outputs_and_eval_the_last_one():
    net = small()
    assert isinstance(net(torch.rand(1, 3, 16, 24)), list)
    net.eval()
    x = torch.rand(1, 3, 16, 24)
    quarter, half, full = net.forward_multiscale(x)
    assert (quarter.shape[2:], half.shape[2:], full.shape[2:]) == ((4, 6), (8, 12), (16, 24))
    assert torch.equal(net(x), full)
    assert isinstance(small(deep_supervision=False).train()(x), torch.Tensor)


def test_untrained_network_returns_its_input():
    net = RestorMixer(base_channels=8, num_blocks=(1, 2, 2)).eval()
    x = torch.rand(1, 3, 13, 9)
    assert torch.equal(net(x), x)


@settings(max_examples=12)
@given(height=st.integers(1, 33), width=st.integers(1, 33), upscale=st.integers(1, 4), gray=st.booleans())
def test_any_size_color_and_upscale(height, width, upscale, gray):
    channels = 1 if gray else 3
    net = small(in_channels=channels, out_channels=channels, upscale=upscale).eval()
    x = torch.rand(1, channels, height, width)
    with torch.no_grad():
        y = net(x)
    assert y.shape == (1, channels, upscale * height, upscale * width)
    assert y.isfinite().all()


def test_images_are_padded_by_reflection_to_a_multiple_of_8():
    net = small().eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        cut = net(x[..., :15, :22])
        padded = torch.nn.functional.pad(x[..., :15, :22], (0, 2, 0, 1), mode="reflect")
        torch.testing.assert_close(cut, net(padded)[..., :15, :22])


def test_residual_is_added_to_the_bicubically_upsampled_input():
    net = small(upscale=2).eval()
    torch.nn.init.zeros_(net.decoder.head_full.norm.weight)
    x = torch.rand(1, 3, 8, 16)
    bicubic = torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(net(x), bicubic)


def test_every_parameter_gets_a_gradient():
    net = small()
    sum(output.square().mean() for output in net(torch.rand(2, 3, 16, 16))).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # The bias of a convolution has no effect before a norm that subtracts the mean.
    assert without == [
        name for name in without if name in ("encoder.scm_half.conv4.bias", "encoder.scm_quarter.conv4.bias")
    ]


def test_copy_and_save_keep_the_output(tmp_path):
    net = small().eval()
    x = torch.rand(1, 3, 8, 8)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    other = small().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    assert torch.equal(other(x), net(x))


def test_fused_network_has_the_same_output_and_train_undoes_fusion():
    net, tensors = golden("paper")
    x = tensors["input"]
    wanted = net(x)
    torch.testing.assert_close(net.fuse()(x), wanted, rtol=1e-3, atol=2e-3)
    assert all(p.shape == q.shape for p, q in zip(net.parameters(), golden("paper")[0].parameters(), strict=True))
    other = {name: value * 0.9 for name, value in net.state_dict().items()}
    net.load_state_dict(other)
    refused = net(x)
    net.train().eval()
    torch.testing.assert_close(refused, net(x), rtol=1e-3, atol=2e-3)
    assert (refused - wanted).abs().mean() > 1e-2


def test_float64_agrees_with_float32():
    net = small().eval()
    x = torch.rand(1, 3, 16, 16)
    y = net(x)
    double = net.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(y, double.float(), rtol=1e-4, atol=1e-4)


def test_autocast_output_is_close_and_gradients_are_finite():
    net = small()
    x = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x)[-1].float().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(x).float()
    with torch.no_grad():
        assert (low - net(x)).abs().mean() < 0.03


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first compilation takes minutes on a busy machine
def test_compiled_network_has_the_same_output():
    net = small().fuse()
    x = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(net)(x), net(x), rtol=1e-4, atol=1e-5)


def test_missing_and_unexpected_released_keys_are_reported():
    net, tensors = golden("paper")
    released = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    del released["encoder.cnn_stem.0.main.0.weight"]
    released["encoder.emix_stage1.0.7.attn.qkv.weight"] = torch.zeros(1)
    keys = net.load_state_dict(released, strict=False)
    assert keys.missing_keys == ["encoder.stem.0.conv.weight"]
    assert keys.unexpected_keys == ["encoder.emix_stage1.0.7.attn.qkv.weight"]
    with pytest.raises(RuntimeError, match="encoder.stem.0.conv.weight"):
        net.load_state_dict(released)


def test_no_weight_decay_names():
    net = small()
    names = net.no_weight_decay()
    scan = "encoder.mt_half.units.0.emvm.scan3"
    assert {f"{scan}.A_log", f"{scan}.D_skip", f"{scan}.dt_bias", "encoder.stem.0.norm.bias"} <= names
    assert "encoder.mt_half.units.0.emvm.skip_scale1" in names
    assert {f"{scan}.x_proj", f"{scan}.dt_proj", "encoder.stem.0.conv.weight"}.isdisjoint(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 1}, "got 3 and 1"),
        ({"base_channels": 5}, "got 5"),
        ({"num_blocks": (4, 3, 4)}, r"got \(4, 3, 4\)"),
        ({"num_blocks": (4, 4)}, r"got \(4, 4\)"),
        ({"encoder_heads": (4,)}, r"encoder_heads .* got \(4,\)"),
        ({"decoder_heads": (3, 3)}, "16 channels and 3 heads"),
        ({"upscale": 5}, "got 5"),
        ({"scan_merge": "both"}, "got 'both'"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_misspelled_argument_is_rejected():
    with pytest.raises(TypeError, match="base_chanels"):
        RestorMixer(base_chanels=8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_invalid_input_shape(shape):
    with pytest.raises(ValueError, match=r"expected an input of shape \(B, 3, H, W\) that is not empty, got"):
        small()(torch.rand(*shape))


def test_network_works_without_training_packages():
    code = (
        "import sys\n"
        "for name in ('basicsr', 'cv2', 'mamba_ssm', 'pydantic', 'yaml', 'lmdb'): sys.modules[name] = None\n"
        "from restormixer_arch import RestorMixer\n"
        "import torch\n"
        "net = RestorMixer(base_channels=4, num_blocks=(1, 2, 2)).eval()\n"
        "assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("upscale", [1, 2])
def test_restoring_in_strips_equals_restoring_the_complete_image(monkeypatch, upscale):
    net = small(num_blocks=(2, 4, 4), upscale=upscale).eval()
    x = torch.rand(1, 3, 100, 132)
    whole = net(x)  # with gradients, strips are not used
    monkeypatch.setattr("restormixer_arch.layers.STRIP_ELEMENTS", 1500)
    with torch.no_grad():
        torch.testing.assert_close(net(x), whole, rtol=1e-4, atol=1e-5)
