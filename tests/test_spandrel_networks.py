"""spandrel's networks in BasicSR: same outputs, any image size, and checks of names and arguments."""

import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

pytest.importorskip("spandrel")
compat.apply()

from basicsr.archs import build_network  # noqa: E402 - BasicSR can be imported only now
from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402

from restormixer_arch.basicsr_adapter import spandrel_networks  # noqa: E402
from restormixer_arch.basicsr_adapter.signatures import network_problems  # noqa: E402

NAFNET = {"type": "NAFNet_spandrel", "width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1]}
DRUNET = {"type": "DRUNet_spandrel", "in_nc": 3, "out_nc": 3, "nc": [4, 4, 4, 4], "nb": 2}
UFORMER = {"type": "Uformer_spandrel", "embed_dim": 4, "depths": [1] * 9}


def problems_of(**section):
    return [str(problem) for problem in network_problems(section, ("network_g",))]


def built(section):
    assert network_problems(section, ("network_g",)) == []
    torch.manual_seed(0)
    return build_network(section).eval()


def test_outputs_and_parameter_names_match_spandrel():
    from spandrel.architectures.NAFNet import NAFNet

    network = built(NAFNET)
    original = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1]).eval()
    original.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 9, 14)
    with torch.no_grad():
        torch.testing.assert_close(network(x), original(x), rtol=0, atol=0)
    assert isinstance(network, NAFNet) and type(network).__name__ == "NAFNet"


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_images_are_padded_as_in_spandrel():
    """Uformer requires square images whose side is a multiple of 128."""
    from spandrel import ModelLoader

    network = built(UFORMER)
    for parameter in network.parameters():
        parameter.data.mul_(0.5)  # keeps the result within [0, 1], to which spandrel clamps
    descriptor = ModelLoader().load_from_state_dict(network.state_dict())
    x = torch.rand(1, 3, 20, 150) * 0.5 + 0.25  # reflected as far as possible, then the edge is repeated
    with torch.no_grad():
        ours = network(x)
        assert 0 < ours.min() and ours.max() < 1
        torch.testing.assert_close(ours, descriptor(x), rtol=0, atol=0)


def test_first_of_several_outputs_is_returned():
    pytest.importorskip("spandrel_extra_arches")
    from spandrel_extra_arches.architectures.MPRNet import MPRNet

    options = {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}
    network = built({"type": "MPRNet_spandrel", **options})
    original = MPRNet(**options).eval()
    original.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(network(x), original(x)[0], rtol=0, atol=0)


def test_in_place_network_does_not_modify_its_input():
    network = built({"type": "RCAN_spandrel", "scale": 1, "n_resgroups": 1, "n_resblocks": 1})
    x = torch.rand(1, 3, 8, 8)
    before = x.clone()
    with torch.no_grad():
        network(x)
    assert torch.equal(x, before)


def test_reading_size_requirements_does_not_change_the_random_state():
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1])
    expected = torch.rand(2)
    built(NAFNET)  # from the same seed
    assert torch.equal(torch.rand(2), expected)


def test_compiled_training_step_matches_eager():
    network = built(DRUNET)
    x = torch.rand(1, 3, 9, 14)  # is padded
    expected = network(x)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_upsampling_network_keeps_its_scale():
    network = built({"type": "SAFMN_spandrel", "dim": 8, "n_blocks": 1, "upscaling_factor": 2})
    assert network(torch.rand(1, 3, 9, 13)).shape == (1, 3, 18, 26)


def test_all_networks_of_spandrel_are_found():
    names = spandrel_networks.networks()
    assert {"NAFNet", "Uformer", "FFTformer", "SCUNet", "DRUNet", "SwinIR", "KBNet_s", "KBNet_l"} <= names.keys()
    assert {"SwinIR", "RCAN"} <= set(dict(iter(ARCH_REGISTRY))) and len(names) >= 42


def test_names_and_arguments_are_checked():
    (problem,) = problems_of(type="NAFNt_spandrel")
    start = "network_g.type: 'NAFNt_spandrel': spandrel has no 'NAFNt'. Did you mean 'NAFNet_spandrel'? Known: "
    assert problem.startswith(start)
    expected = "network_g.type: 'Uformer' is not a known architecture. Did you mean 'Uformer_spandrel'?"
    assert problems_of(type="Uformer") == [expected]
    (problem,) = problems_of(type="NAFNet_spandrel", widht=4)
    assert problem == "network_g.widht: NAFNet has no such argument. Did you mean 'width'?"
    assert problems_of(type="SwinIR") == [] and problems_of(type="EDSR", num_in_ch=3, num_out_ch=3) == []


def test_missing_spandrel_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setattr(spandrel_networks, "find_spec", lambda name: None)
    (problem,) = problems_of(type="SCUNet_spandrel")
    assert problem == (
        "network_g.type: 'SCUNet_spandrel' needs the package spandrel: pip install spandrel spandrel-extra-arches"
    )


def test_network_that_spandrel_does_not_recognize_is_rejected():
    with pytest.raises(UserError, match="DRUNet: spandrel does not know it with these arguments .ValueError"):
        built({**DRUNET, "nb": 1})
    with pytest.raises(UserError, match="DRUNet: spandrel does not know it with these arguments .RuntimeError") as info:
        built({**DRUNET, "act_mode": "BR"})  # torch lists every tensor
    assert len(str(info.value)) < 400 and str(info.value).endswith("...)")
