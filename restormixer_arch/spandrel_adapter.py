"""RestorMixer for spandrel (https://github.com/chaiNNer-org/spandrel), by which many image tools load networks.

::

    from restormixer_arch.spandrel_adapter import register
    from spandrel import ModelLoader

    register()
    model = ModelLoader().load_from_file("restormixer.safetensors")
    restored = model(picture)  # (1, C, H, W) in [0, 1]

spandrel looks for no plug-ins: the tool, or one of its own plug-ins, has to call :func:`register` once.
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
    """Finds RestorMixer, under our key names or those of the authors' released code, and builds it from its weights.

    What a file does not tell is taken as the network's defaults, see
    :func:`~restormixer_arch.weight_options.options_from_weights`; files of ``basicsr export`` tell everything.
    """

    def __init__(self) -> None:
        super().__init__(id="RestorMixer", detect=is_restormixer)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[RestorMixer]:
        """Build the network, ready for inference with its BatchNorm folded.

        Any size is taken, since the network pads inside. Tiling is discouraged: the scans run over the whole picture
        and an InstanceNorm takes its statistics from it, so tiles of it are restored a little differently.
        """
        options = options_from_weights(state_dict)
        network = RestorMixer(**options).fuse()  # the descriptor loads the weights, and loading folds anew
        scale, channels = options["upscale"], options["in_channels"]
        blocks = "-".join(str(count) for count in options["num_blocks"])
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=[f"{options['base_channels']}nf", f"{blocks} blocks"],
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
            tiling=ModelTiling.DISCOURAGED,
        )


def register(registry: ArchRegistry = MAIN_REGISTRY) -> list[ArchSupport]:
    """Make a registry of spandrel know RestorMixer.

    Args:
        registry: by default the one that every ``ModelLoader`` uses.

    Returns:
        What was added: nothing where it was there already.
    """
    return registry.add(ArchSupport.from_architecture(RestorMixerArchitecture()), ignore_duplicates=True)
