"""The options of a network from its state dict: from the shapes, or from the stamp if shapes do not determine them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_restormixer_arch import GOLDEN, SMALL

from restormixer_arch import RestorMixer, weight_options
from restormixer_arch.weight_options import add_stamp, canonical, is_restormixer, options_from_weights

OPTIONS = {
    "base_channels": st.sampled_from([2, 4, 6, 12]),
    "num_blocks": st.tuples(st.integers(0, 2), st.sampled_from([0, 2, 4]), st.sampled_from([0, 2, 4])),
    "window_size": st.sampled_from([4, 8]),
    "encoder_heads": st.sampled_from([(1, 2), (2, 4)]),
    "decoder_heads": st.sampled_from([(1, 1), (2, 2)]),
    "mlp_ratio": st.floats(0.5, 4.0),
    "expand": st.sampled_from([1.0, 1.3, 2.0]),
    "d_state": st.sampled_from([4, 16]),
    "upscale": st.integers(1, 4),
    "scan_merge": st.sampled_from(["paper", "official"]),
}


@settings(max_examples=25)
@given(channels=st.sampled_from([1, 3]), options=st.fixed_dictionaries(OPTIONS))
def test_stamped_weights_rebuild_the_network(channels, options):
    torch.manual_seed(0)
    network = RestorMixer(channels, channels, **options).eval()
    state = add_stamp(network.state_dict(), network)
    rebuilt = RestorMixer(**options_from_weights(state)).eval()
    rebuilt.load_state_dict(state)
    x = torch.rand(1, channels, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(x), network(x), rtol=0, atol=0)


def test_shapes_determine_all_options_except_heads_windows_and_merge():
    network = RestorMixer(**{**SMALL, "window_size": 4}, scan_merge="official", upscale=2)
    options = options_from_weights(network.state_dict())
    assert options.keys().isdisjoint({"window_size", "encoder_heads", "decoder_heads", "scan_merge"})
    assert (options["base_channels"], options["num_blocks"], options["upscale"]) == (4, (1, 2, 2), 2)
    assert options["d_state"] == 4


def test_released_checkpoint_is_recognized():
    tensors = load_file(GOLDEN / "restormixer_base8_paper.safetensors")
    released = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    assert is_restormixer(released)
    options = options_from_weights(released)
    assert (options["base_channels"], options["num_blocks"], options["d_state"]) == (8, (2, 4, 2), 16)
    RestorMixer(**options).load_state_dict(released)


def test_loading_renames_each_key_once(monkeypatch):
    tensors = load_file(GOLDEN / "restormixer_base8_paper.safetensors")
    released = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    renamed, rename = [], weight_options._rename
    monkeypatch.setattr(weight_options, "_rename", lambda key: renamed.append(key) or rename(key))
    network = RestorMixer.from_weights(released)
    assert renamed == list(released)
    again = RestorMixer.from_weights(add_stamp(network.state_dict(), network))
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_stamp_is_saved_to_a_file_and_removed_after_loading(tmp_path):
    network = RestorMixer(**SMALL)
    save_file(add_stamp(network.state_dict(), network), tmp_path / "net.safetensors")
    state = load_file(tmp_path / "net.safetensors")
    assert options_from_weights(state)["encoder_heads"] == (2, 2)
    assert canonical(state)[0].keys() == network.state_dict().keys()


def test_weights_of_another_network_are_rejected():
    with pytest.raises(ValueError, match="not the weights of a RestorMixer"):
        options_from_weights(torch.nn.Conv2d(3, 3, 3).state_dict())


def test_missing_key_is_named():
    network = RestorMixer(**SMALL)
    state = add_stamp(network.state_dict(), network)
    for key in (
        "encoder.stem.0.conv.weight",
        "decoder.head_full.conv.weight",
        "encoder.mt_half.units.0.mwsa.mlp.fc1.bias",
        "restormixer_options.window_size",
        "restormixer_options.scan_merge",
    ):
        partial = {name: value for name, value in state.items() if name != key}
        with pytest.raises(ValueError, match=f"^not the complete weights of a RestorMixer: '{key}' is missing$"):
            RestorMixer.from_weights(partial)
