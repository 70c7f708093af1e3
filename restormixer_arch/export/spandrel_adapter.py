"""Add RestorMixer to spandrel (https://github.com/chaiNNer-org/spandrel), by which many image tools load networks.

::

    from restormixer_arch.export.spandrel_adapter import register
    from spandrel import ModelLoader

    register()
    model = ModelLoader().load_from_file("restormixer.safetensors")
    restored = model(image)  # (1, C, H, W) in [0, 1]

spandrel does not look for plug-ins: the tool, or a plug-in of the tool, must call :func:`register` once.
"""

from __future__ import annotations

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    StateDict,
)

from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import is_restormixer, options_from_weights


class RestorMixerArchitecture(Architecture[RestorMixer]):
    """Detects RestorMixer weights, with keys of this project or of the authors' released code, and builds the network.

    Options that cannot be determined from a file keep their defaults, see
    :func:`~restormixer_arch.weight_options.options_from_weights`; files of ``basicsr export`` contain all of them.
    """

    def __init__(self) -> None:
        super().__init__(id="RestorMixer", detect=is_restormixer)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[RestorMixer]:
        """Build the network for inference, with BatchNorm folded.

        It accepts images of any size, since it pads internally. Tiling is discouraged: the scans cover the complete
        image and an InstanceNorm normalizes by its statistics, so tiles are restored slightly differently.
        """
        options = options_from_weights(state_dict)
        network = RestorMixer(**options).fuse()  # the descriptor loads the weights, and loading folds again
        scale, channels = options["upscale"], options["in_channels"]
        blocks = "-".join(str(count) for count in options["num_blocks"])
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=[f"{options['base_channels']}nf", f"{blocks} blocks"],
            supports_half=False,  # some weights overflow in float16, such as the installed ones for denoising
            supports_bfloat16=True,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
            tiling=ModelTiling.DISCOURAGED,
        )


def register(registry: ArchRegistry = MAIN_REGISTRY) -> list[ArchSupport]:
    """Add RestorMixer to a registry of spandrel.

    Args:
        registry: registry, by default the one that every ``ModelLoader`` uses.

    Returns:
        The added entries: an empty list if RestorMixer was already registered.
    """
    return registry.add(ArchSupport.from_architecture(RestorMixerArchitecture()), ignore_duplicates=True)
