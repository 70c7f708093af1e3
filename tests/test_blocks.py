"""The network's blocks, compared with plain implementations of their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from restormixer_arch import RestorMixer
from restormixer_arch.cnn_blocks import FAM, RDCNN, SCM
from restormixer_arch.emvm import EMVM, DirectionalScan, StridedScan
from restormixer_arch.layers import ConvNorm, ConvNormAct, Mlp, conv, pad_to_multiple
from restormixer_arch.mwsa import MWSA, WindowAttention


def naive_attention(attention, x):
    """Apply the attention to one window, head by head: (T, C) -> (T, C)."""
    tokens, channels = x.shape
    q, k, v = attention.qkv(x).reshape(tokens, 3, attention.heads, -1).unbind(1)
    out = []
    for head in range(attention.heads):
        scores = q[:, head] @ k[:, head].T * (channels // attention.heads) ** -0.5
        out.append(scores.softmax(-1) @ v[:, head])
    return attention.proj(torch.cat(out, dim=-1))


def test_mwsa_matches_a_loop_over_windows():
    torch.manual_seed(0)
    block = MWSA(8, heads=2, window_size=4, mlp_ratio=2.66)
    x = torch.randn(2, 6, 9, 8)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))  # zeros before the norm, which the attention includes
    wanted = torch.empty_like(padded)
    for b in range(2):
        for top in (0, 4):
            for left in (0, 4, 8):
                window = padded[b, top : top + 4, left : left + 4].reshape(16, 8)
                window = window + naive_attention(block.attention, block.norm1(window))
                window = window + block.mlp(block.norm2(window))
                wanted[b, top : top + 4, left : left + 4] = window.view(4, 4, 8)
    torch.testing.assert_close(block(x), wanted[:, :6, :9], rtol=1e-4, atol=1e-5)
    assert block.mlp.fc1.out_features == 21  # int(2.66 * 8)


def test_attention_includes_the_zero_padding():
    torch.manual_seed(0)
    block = MWSA(4, heads=1, window_size=4, mlp_ratio=1.0)
    torch.nn.init.normal_(block.norm1.bias)
    x = torch.randn(1, 4, 3, 4)
    inside = block.attention(block.norm1(x).flatten(1, 2))
    attended = x + inside.view(1, 4, 3, 4)
    assert (block(x) - (attended + block.mlp(block.norm2(attended)))).abs().max() > 1e-2


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="10 channels and 4 heads"):
        WindowAttention(10, 4)


def test_rdcnn_matches_its_formula():
    torch.manual_seed(0)
    block = RDCNN(4).eval()
    block.conv.norm.running_mean.uniform_()
    block.pointwise.norm.running_var.uniform_(0.5, 2)
    torch.nn.init.ones_(block.pointwise.norm.weight)
    x = torch.randn(1, 4, 5, 6)
    y = F.conv2d(x, block.conv.conv.weight, padding=1)
    y = F.gelu((y - block.conv.norm.running_mean.view(-1, 1, 1)) / (1 + 1e-5) ** 0.5)
    y = F.conv2d(F.conv2d(y, block.depthwise.weight, padding=1, groups=4), block.pointwise.conv.weight)
    y = y / (block.pointwise.norm.running_var.view(-1, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(block(x), F.gelu(x + y), rtol=1e-4, atol=1e-5)


def test_rdcnn_is_gelu_at_initialization():
    block, x = RDCNN(4), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(block(x), F.gelu(x))


def test_convolutions_use_fan_out_initialization():
    torch.manual_seed(0)
    std = RDCNN(64).conv.conv.weight.std().item()
    assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    "inner", [conv(4, 6, 3), conv(4, 6, 3, stride=2), torch.nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False)]
)
def test_fused_norm_keeps_the_output_and_the_state_dict_keys(inner):
    torch.manual_seed(0)
    block = ConvNorm(inner)
    block.train()
    for _ in range(3):
        block(torch.randn(2, 4, 8, 8) * 2 + 1)  # changes the running statistics
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    block.eval()
    x = torch.randn(1, 4, 8, 8)
    wanted, keys = block(x), set(block.state_dict())
    block.fuse()
    assert block.fused_weight is not None and set(block.state_dict()) == keys
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)
    block.train()
    assert block.fused_weight is None
    assert torch.equal(block.eval()(x), wanted)


def test_scan_in_strips_matches_the_scan_of_the_complete_image(monkeypatch):
    """The weights have variance 1; with those of a new network, the 3x3 convolution hardly affects the output."""
    torch.manual_seed(0)
    scan = DirectionalScan(8, directions=("row",), d_state=4, expand=2.0)
    for layer in (scan.in_proj, scan.gate_proj, scan.out_proj):
        torch.nn.init.normal_(layer.weight)
    x = torch.randn(1, 40, 12, 8)
    whole = scan(x)  # strips are not used if gradients are needed
    monkeypatch.setattr("restormixer_arch.layers.STRIP_ELEMENTS", 8 * 12 * 5)
    with torch.no_grad():
        difference = (scan(x) - whole).abs().max() / whole.abs().max()
    assert difference < 2e-6


def test_scm_output_is_normalized_and_fam_reads_its_second_input():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    y = SCM(3, 16)(x)
    # The final InstanceNorm gives zero mean and unit variance per image and channel.
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(2, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var((2, 3), unbiased=False), torch.ones(2, 16), rtol=0, atol=1e-2)
    fam = FAM(16)
    fam.conv.weight.data.zero_()
    fam.conv.weight.data[3, 16 + 5, 1, 1] = 1.0  # output channel 3 reads channel 5 of the second input
    fam.conv.weight.data[3, 2, 1, 1] = 2.0  # and channel 2 of the first one
    features = torch.randn_like(y)
    torch.testing.assert_close(fam(features, y)[:, 3], y[:, 5] + 2 * features[:, 2] + fam.conv.bias[3])


def test_gelu_is_applied_after_the_norm():
    block = ConvNormAct(conv(1, 1, 1)).eval()
    torch.nn.init.ones_(block.conv.weight)
    # gelu(1) = 0.8413447; the norm divides 1 by sqrt(1 + 1e-5)
    torch.testing.assert_close(block(torch.ones(1, 1, 1, 1)).item(), 0.8413398, rtol=1e-5, atol=0)


def test_mlp_matches_manually_computed_values():
    mlp = Mlp(2, 1)
    mlp.fc1.weight.data = torch.tensor([[1.0, 2.0]])
    mlp.fc1.bias.data = torch.tensor([-3.0])
    mlp.fc2.weight.data = torch.tensor([[2.0], [0.0]])
    mlp.fc2.bias.data = torch.tensor([0.0, 5.0])
    # 1 * 2 + 2 * 1.5 - 3 = 2; gelu(2) = 2 * 0.9772499 = 1.9544997
    torch.testing.assert_close(mlp(torch.tensor([2.0, 1.5])), torch.tensor([3.9089994, 5.0]))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 4, 3, 2]),  # reflection
        ([1, 2, 3], [1, 2, 3, 2, 1, 1, 1, 1]),  # too short for 5 reflected pixels: the edge is repeated
        ([7], [7] * 8),
        (list(range(8)), list(range(8))),
    ],
)
def test_pad_to_multiple(row, wanted):
    x = torch.tensor([row], dtype=torch.float32).expand(1, 1, 8, -1)
    padded = pad_to_multiple(x, 8)
    assert padded[0, 0, 0].tolist() == wanted
    assert pad_to_multiple(x.transpose(2, 3), 8)[0, 0, :, 0].tolist() == wanted


def test_pad_to_multiple_does_not_copy_an_exact_multiple():
    x = torch.rand(1, 3, 8, 16)
    assert pad_to_multiple(x, 8) is x


def test_scan_initialization():
    torch.manual_seed(0)
    scan = DirectionalScan(64, directions=("row",), d_state=16, expand=2.0)
    dt = F.softplus(scan.dt_bias)
    assert dt.min() >= 1e-4 and dt.max() <= 0.1001
    assert dt.log().mean().item() == pytest.approx((torch.tensor([1e-3, 1e-1]).log().mean()).item(), abs=0.4)
    torch.testing.assert_close(scan.A_log[0, 5].exp(), torch.arange(1.0, 17.0))
    assert scan.dt_proj.shape == (1, 128, 4) and scan.dt_proj.abs().max() <= 0.5
    assert scan.x_proj.shape == (1, 36, 128) and scan.x_proj.abs().max() <= 128**-0.5


def test_initial_values_of_the_network():
    """A uniform distribution in [-b, b] has the standard deviation b / sqrt(3)."""
    torch.manual_seed(0)
    network = RestorMixer(base_channels=16, num_blocks=(1, 2, 2))
    parameters = dict(network.named_parameters())
    ones = [value for name, value in parameters.items() if name.endswith(("D_skip", "skip_scale1", "skip_scale2"))]
    assert len(ones) >= 6 and all((value == 1).all() for value in ones)
    for name, value in parameters.items():
        if name.endswith(("x_proj", "dt_proj")):
            bound = value.shape[2] ** -0.5
            assert value.abs().max() <= bound and value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert torch.cat([linear.weight.flatten() for linear in linears]).std().item() == pytest.approx(0.02, rel=0.02)
    assert all((linear.bias == 0).all() for linear in linears if linear.bias is not None)


def test_paper_and_official_merge_of_the_strided_scan():
    torch.manual_seed(0)
    paper = StridedScan(4, d_state=2, expand=2.0, scan_merge="paper")
    tokens = torch.randn(1, 3, 5, 8)
    separate = [paper.scan(tokens, slice(k, k + 1)) for k in range(3)]
    torch.testing.assert_close(paper.merge_scans(tokens), sum(separate), rtol=1e-4, atol=1e-5)
    paper.scan_merge = "official"
    slip = torch.empty_like(tokens)
    flat = separate[1].reshape(1, 15, 8)
    for h in range(3):
        for w in range(5):
            slip[:, h, w] = flat[:, w * 3 + h]  # read as (W, H) and transposed
    torch.testing.assert_close(paper.merge_scans(tokens), separate[0] + separate[1] + slip, rtol=1e-4, atol=1e-5)


def test_emvm_skip_scales():
    """If the output projections and the MLP are zero, the block only multiplies by its two skip scales."""
    torch.manual_seed(0)
    block = EMVM(8, d_state=4, expand=2.0, scan_merge="paper")
    for layer in (block.scan1.out_proj, block.scan3.out_proj, block.mlp.fc2):
        torch.nn.init.zeros_(layer.weight)
    for bias in (block.mlp.fc2.bias, block.scan3.up.bias):
        torch.nn.init.zeros_(bias)
    block.skip_scale1.data.uniform_()
    block.skip_scale2.data.uniform_()
    x = torch.randn(1, 4, 6, 8)
    torch.testing.assert_close(block(x), x * block.skip_scale1 * block.skip_scale2)
