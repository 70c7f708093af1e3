"""``restormixer_arch.restore`` on arrays, tensors and PIL images."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import save_tiny, tiny_network

import restormixer_arch
from restormixer_arch.errors import UserError
from restormixer_arch.inference import installed, restorer
from restormixer_arch.inference import weights as weights_module
from restormixer_arch.inference.restore import restore, side_by_side
from restormixer_arch.inference.restorer import Restorer

RGBA = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)
RGB = RGBA[..., :3]


@pytest.fixture
def weights(tmp_path):
    return save_tiny(tmp_path / "x.safetensors")


@pytest.fixture
def wanted():
    """The network's output for RGB, float32 (H, W, 3)."""
    x = torch.from_numpy(RGB / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        return tiny_network()(x).clamp(0, 1)[0].permute(1, 2, 0).numpy()


def test_restore_is_exported_at_top_level():
    assert restormixer_arch.restore is restore


def test_arrays_of_all_dtypes(weights, wanted):
    result = restore(RGB, weights)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.rint(wanted * 255))
    deep = restore(RGB.astype(np.uint16) * 257, weights)
    assert deep.dtype == np.uint16
    np.testing.assert_allclose(deep, wanted * 65535, atol=1)
    for dtype in (np.float32, np.float64):
        result = restore((RGB / 255).astype(dtype), weights=str(weights))
        assert result.dtype == dtype
        np.testing.assert_allclose(result, wanted, atol=1e-6)


def test_changing_the_strength_does_not_reload_the_network(weights, monkeypatch):
    whole = restore(RGB, weights)
    monkeypatch.setattr("restormixer_arch.inference.restore.load_restorer", None)
    np.testing.assert_array_equal(restore(RGB, weights, strength=0.0), RGB)
    half = restore(RGB, weights, strength=0.5).astype(float)
    np.testing.assert_allclose(half, (whole.astype(float) + RGB) / 2, atol=1)


def test_arrays_with_alpha_and_gray_arrays(weights):
    result = restore(RGBA, weights)
    np.testing.assert_array_equal(result[..., 3], RGBA[..., 3])
    np.testing.assert_array_equal(result[..., :3], restore(RGB, weights))
    gray = restore(RGB[..., 0], weights)
    assert gray.shape == (24, 40)
    np.testing.assert_array_equal(restore(RGB[..., :1], weights)[..., 0], gray)
    np.testing.assert_array_equal(restore(RGB[..., :2], weights)[..., 1], RGB[..., 1])


def test_tensors_and_batches(weights, wanted):
    x = torch.from_numpy(np.ascontiguousarray(RGB.transpose(2, 0, 1)))
    whole = np.rint(wanted.transpose(2, 0, 1) * 255)
    np.testing.assert_array_equal(restore(x, weights).numpy(), whole)
    batch = restore(torch.stack([x, x.flip(-1)]).float() / 255, weights)
    assert batch.shape == (2, 3, 24, 40) and batch.dtype == torch.float32
    np.testing.assert_allclose(batch[0].numpy() * 255, wanted.transpose(2, 0, 1) * 255, atol=1e-4)
    assert restore(x.double()[:1] / 255, weights).dtype == torch.float64


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_pillow_images_of_all_modes(weights, mode):
    if mode == "I;16":
        image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(RGBA).convert("RGB").convert(mode)
    image.info["icc_profile"] = b"profile"
    result = restore(image, weights)
    assert result.mode == {"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode) and result.size == (40, 24)
    if mode == "RGB":
        np.testing.assert_array_equal(np.asarray(result), restore(RGB, weights))
        assert result.info == {"icc_profile": b"profile"}
    if mode == "I;16":
        np.testing.assert_array_equal(np.asarray(result), restore(np.asarray(image), weights))


def test_upsampling_also_resizes_alpha(tmp_path):
    flat = np.dstack([RGB, np.full((24, 40), 77, np.uint8)])
    result = restore(flat, save_tiny(tmp_path / "x2.safetensors", upscale=2))
    assert result.shape == (48, 80, 4) and set(np.unique(result[..., 3])) == {77}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upsampled_alpha_is_clipped_to_0_1(tmp_path, dtype):
    edge = np.where(np.arange(40) < 20, 0, 1) * np.ones((24, 1))
    image = np.dstack([RGB / 255, edge]).astype(dtype)
    result = restore(image, save_tiny(tmp_path / "x2.safetensors", upscale=2))
    alpha = result[..., 3]
    assert result.dtype == dtype and alpha.min() == 0 and alpha.max() == 1
    np.testing.assert_array_equal(alpha[:, [0, 37, 42, 79]], np.tile([0.0, 0.0, 1.0, 1.0], (48, 1)))
    assert 0 < alpha[0, 39] < 0.5 < alpha[0, 40] < 1


def test_options_are_passed_to_the_restorer(weights, monkeypatch):
    seen = []
    monkeypatch.setattr(Restorer, "__post_init__", lambda self: seen.append(self))
    restore(RGB, weights, tile=192, precision="bf16", self_ensemble=True, max_memory="2G", device="cpu")
    [made] = seen
    assert (made.tile, made.precision, made.self_ensemble, made.max_memory) == (192, "bf16", True, 2 * 10**9)


def test_network_is_cached_until_its_file_changes(weights, monkeypatch):
    import os

    loads = []
    original = restorer.load_network
    monkeypatch.setattr(restorer, "load_network", lambda path: loads.append(path) or original(path))
    for _ in range(2):
        restore(RGB, weights, tile=256)
    assert len(loads) == 1
    os.utime(weights, (1, 1))
    restore(RGB, weights, tile=256)
    assert len(loads) == 2


@pytest.mark.parametrize("name", ["~/net", "~/net/model.safetensors"])
def test_weights_folder_is_read_again_after_a_change(tmp_path, monkeypatch, name):
    import os

    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    tiny_network().save_pretrained("~/net")
    before = restore(RGB, name)
    assert before.shape == RGB.shape
    tiny_network(upscale=2).save_pretrained(tmp_path / "net")
    os.utime(tmp_path / "net/model.safetensors", (1, 1))
    assert restore(RGB, name).shape == (48, 80, 3)


def test_installed_weights_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(UserError, match="no weights for 'derain'"):
        restore(RGB)
    save_tiny(tmp_path / "restormixer_s_derain.safetensors")
    assert restore(RGB).shape == RGB.shape


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ("a.png", TypeError, "must be a numpy array, a torch tensor or a PIL image, got str"),
        (np.zeros((2, 3, 4, 3), np.uint8), ValueError, r"shape \(H, W\) or \(H, W, 1 to 4\), got \(2, 3, 4, 3\)"),
        (np.zeros((0, 3, 3), np.uint8), ValueError, r"got \(0, 3, 3\)"),
        (np.zeros((8, 8, 3), np.int32), ValueError, "must be uint8, uint16 or floating point of 16 .* got int32"),
        (np.full((8, 8, 3), 255.0), ValueError, r"within \[0, 1\], got 255 to 255"),
        (np.full((8, 8, 3), np.nan), ValueError, r"within \[0, 1\], got nan to nan"),
        (torch.zeros(8, 8, 3), ValueError, r"shape \(C, H, W\) or .* got \(8, 8, 3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ValueError, "floating point of 16 bits or more, got torch.int64"),
        (torch.zeros(3, 8, 8, dtype=torch.float8_e5m2), ValueError, "of 16 bits or more, got torch.float8_e5m2"),
        (torch.zeros(3, 8, 8).to_sparse(), ValueError, "must be dense .* got one of layout torch.sparse_coo"),
        (torch.zeros(3, 8, 8, device="meta"), ValueError, "and hold values, got one on the meta device"),
        (Image.new("RGB", (0, 5)), ValueError, "a PIL image must have pixels, got 0 x 5"),
        (Image.new("I;16", (5, 0)), ValueError, "a PIL image must have pixels, got 5 x 0"),
        (np.full((8, 8, 3), 1.00011, np.float32), ValueError, r"within \[0, 1\], got 1.00011 to 1.00011"),
        (torch.full((3, 8, 8), -0.5), ValueError, r"within \[0, 1\], got -0.5 to -0.5"),
        (Image.new("F", (8, 8)), ValueError, "must be of mode 1, L, .*, got F"),
    ],
)
def test_invalid_images_are_rejected(weights, image, kind, message):
    with pytest.raises(kind, match=message):
        restore(image, weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_memory": -5}, "max_memory: got -5, expected at least 1 byte"),
        ({"max_memory": 0}, "max_memory: got 0, expected at least 1 byte"),
        ({"max_memory": float("nan")}, "max_memory: got nan, expected at least 1 byte"),
        ({"max_memory": "x"}, "max_memory: expected an amount of memory such as 3G or 800M, got 'x'"),
        ({"max_memory": "9" * 400}, "max_memory: is too large"),
        ({"tile": "64"}, "tile: got '64', expected a whole number"),
        ({"tile": [64]}, r"tile: got \[64\], expected a whole number"),
        ({"precision": "FP32"}, "precision: got 'FP32', expected one of fp32, bf16, fp16, auto"),
        ({"device": "meta"}, "device: 'meta' cannot be used here .*"),
        ({"device": None}, "device: None cannot be used here .*"),
        ({"strength": None}, "strength: got None, expected a number"),
        ({"strength": "1"}, "strength: got '1', expected a number"),
        ({"strength": 2}, r"strength: must be in \[0, 1\], got 2"),
    ],
)
def test_invalid_settings_are_rejected(weights, settings, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        restore(RGB, weights, **settings)


def test_max_memory_can_be_a_float_or_a_huge_integer(weights):
    for amount in (2e9, 10**400):
        np.testing.assert_array_equal(restore(RGB, weights, max_memory=amount), restore(RGB, weights))


def test_values_slightly_out_of_range_are_clipped(weights):
    image = (RGB / 255).astype(np.float32)
    inside, outside = image.copy(), image.copy()
    inside[0, 0], outside[0, 0] = (1, 0, 0), (1.0000001, -9e-5, 0)
    given = outside.copy()
    np.testing.assert_array_equal(restore(outside, weights), restore(inside, weights))
    tensors = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (outside, inside)]
    assert torch.equal(restore(tensors[0], weights), restore(tensors[1], weights))
    np.testing.assert_array_equal(outside, given)


def test_result_does_not_depend_on_the_default_dtype_of_torch(weights):
    wanted = restore(RGB / 255, weights)
    torch.set_default_dtype(torch.float64)
    try:
        network = weights_module.load_network(weights)
        found = restore(RGB / 255, weights, tile=128)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_result_does_not_depend_on_the_default_device_of_torch(weights, tmp_path):
    wanted = restore(RGB, weights)
    copy = tmp_path / "copy.safetensors"  # not in the cache
    copy.write_bytes(weights.read_bytes())
    with torch.device("meta"):
        network = weights_module.load_network(weights)
        found = restore(RGB, copy, tile=128)
    tensors = [*network.parameters(), *network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    np.testing.assert_allclose(found.astype(int), wanted, atol=1)


def test_task_auto_is_rejected():
    with pytest.raises(UserError, match="^--task: 'auto' is for 'basicsr restore'; expected one of deblur, dehaze, "):
        restore(RGB, task="auto")


def test_weights_name_with_a_tilde_of_an_unknown_user_is_not_expanded(folder):
    save_tiny(folder / "~no such user.safetensors")
    np.testing.assert_array_equal(
        restore(RGB, "~no such user.safetensors"), restore(RGB, folder / "~no such user.safetensors")
    )


def test_side_by_side():
    before, after = np.zeros((2, 3, 1), np.uint8), np.full((4, 6, 1), 9, np.uint8)
    np.testing.assert_array_equal(side_by_side(before, after)[..., 0], [[0] * 6 + [9] * 6] * 4)
