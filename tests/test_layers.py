"""Work in strips of rows, and activations that write over their input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restormixer_arch import layers
from restormixer_arch.cnn_blocks import RDCNN
from restormixer_arch.layers import by_rows, gelu, rowwise, silu


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), strip=st.integers(1, 400), multiple=st.integers(1, 9), halo=st.integers(0, 3))
def test_work_in_strips_equals_work_on_the_whole(height, strip, multiple, halo):
    """A mean over ``multiple`` rows, and over ``2 halo + 1`` rows with zeros outside of the picture."""

    def grouped(x, y):
        rows = torch.arange(x.shape[1]) // multiple
        return torch.stack([(x * y)[:, rows == row].mean(1) for row in rows], dim=1)  # each row: its group's mean

    def smoothed(x):
        return torch.nn.functional.avg_pool2d(x, (2 * halo + 1, 1), stride=1, padding=(halo, 0))

    x, y = torch.rand(2, 2, height, 3, 4)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layers, "STRIP_ELEMENTS", strip)
        torch.testing.assert_close(by_rows(grouped, x, y, multiple=multiple), grouped(x, y))
        planes = x.permute(0, 3, 1, 2)
        torch.testing.assert_close(by_rows(smoothed, planes, dim=2, halo=halo), smoothed(planes))


def test_strips_bound_the_work_at_once_and_gradients_take_it_whole(monkeypatch):
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 2 * 3 * 4 * 5)  # five rows of the features below
    heights = []

    def doubled(x):
        heights.append(x.shape[1])
        return 2 * x

    x = torch.rand(2, 12, 3, 4)
    with torch.no_grad():
        by_rows(doubled, x)
        by_rows(doubled, x, multiple=4)
        by_rows(doubled, x[:, :5])
    by_rows(doubled, x)
    assert heights == [5, 5, 2, 4, 4, 4, 5, 12]


def test_rowwise_reads_the_rows_that_belong_together_from_the_module(monkeypatch):
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 2 * 3 * 4 * 5)  # five rows of the features below

    class Flip(torch.nn.Module):
        """Reverses the rows within each group."""

        side = 4

        @rowwise(multiple="side")
        def forward(self, x):
            return x.unflatten(1, (-1, self.side)).flip(2).flatten(1, 2)

    x = torch.rand(2, 12, 3, 4)
    with torch.no_grad():
        strips = Flip()(x)
    assert torch.equal(strips, Flip()(x))


def test_in_training_mode_batchnorm_sees_the_whole_picture(monkeypatch):
    """As torch.optim.swa_utils.update_bn does it: in training mode, without gradients."""
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 4 * 3 * 8)
    block, x = RDCNN(4).train(), torch.randn(2, 4, 32, 3)
    other = copy.deepcopy(block)
    wanted = other(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted)
    for name, buffer in block.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name))


@pytest.mark.parametrize("activation, reference", [(gelu, torch.nn.functional.gelu), (silu, torch.nn.functional.silu)])
def test_activations_write_over_their_input_only_without_gradients(activation, reference):
    x = torch.randn(100)
    kept, wanted = x.clone(), reference(x)
    torch.testing.assert_close(activation(x), wanted)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
    with torch.no_grad():
        assert activation(x).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, wanted)
