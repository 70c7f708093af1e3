"""RestorMixer, a general-purpose image-restoration network (arXiv 2504.10967).

A three-stage encoder-decoder with RDCNN blocks at full resolution and M-T units at 1/2 and 1/4. An M-T unit is an EMVM
block (Mamba scans) followed by an MWSA block (window attention). The downsampled input image is merged into the encoder
at both lower resolutions, and a head at each of the three resolutions predicts a residual (deep supervision).

Shape letters: B batch, C_in image channels, C base channels, H x W size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from restormixer_arch.cnn_blocks import FAM, RDCNN, SCM
from restormixer_arch.emvm import EMVM
from restormixer_arch.hub import HubMixin
from restormixer_arch.layers import ConvNorm, ConvNormAct, by_rows, conv, gelu, pad_to_multiple
from restormixer_arch.mwsa import MWSA
from restormixer_arch.weight_options import canonical, options_of

SIZE_MULTIPLE = 8  # two halvings, and one more inside the EMVM block


class MTStage(nn.Module):
    """A sequence of M-T units: an EMVM block, then an MWSA block whose windows grow from unit to unit.

    Args:
        channels: number of channels of the stage.
        units: number of units.
        heads: number of attention heads.
        window_size: window side of the first unit; unit i, counted from 0, has ``window_size * (i + 1)``.
        mlp_ratio: hidden channels of the MWSA blocks' MLP as a multiple of ``channels``.
        d_state: number of states of a scan.
        expand: inner channels of a scan as a multiple of ``channels``.
        scan_merge: ``paper`` or ``official``, see :class:`~restormixer_arch.emvm.StridedScan`.

    Shape:
        (B, channels, H, W) -> same shape; H and W even
    """

    def __init__(
        self,
        channels: int,
        units: int,
        *,
        heads: int,
        window_size: int,
        mlp_ratio: float,
        d_state: int,
        expand: float,
        scan_merge: str,
    ) -> None:
        super().__init__()
        self.units = nn.ModuleList()
        for index in range(units):
            emvm = EMVM(channels, d_state=d_state, expand=expand, scan_merge=scan_merge)
            mwsa = MWSA(channels, heads=heads, window_size=window_size * (index + 1), mlp_ratio=mlp_ratio)
            self.units.append(nn.Sequential(OrderedDict(emvm=emvm, mwsa=mwsa)))
        self.checkpointing = False  # see RestorMixer.set_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b c h w -> b h w c")  # the blocks are channels-last
        for unit in self.units:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(unit, x, use_reentrant=False)
            else:
                x = unit(x)
        return rearrange(x, "b h w c -> b c h w")


class Encoder(nn.Module):
    """Encoder that computes features at the three resolutions.

    Shape:
        three images (B, C_in, H, W), (B, C_in, H/2, W/2), (B, C_in, H/4, W/4)
        -> features (B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4)
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int,
        num_blocks: tuple[int, int, int],
        heads: tuple[int, int],
        stage: Callable[..., MTStage],
    ) -> None:
        super().__init__()
        full, half, quarter = base_channels, 2 * base_channels, 4 * base_channels
        self.stem = nn.Sequential(ConvNormAct(conv(in_channels, full, 3)), ConvNormAct(conv(full, full, 3)))
        self.rdcnn = nn.Sequential(*(RDCNN(full) for _ in range(num_blocks[0])))
        self.down_half = ConvNormAct(conv(full, half, 3, stride=2))
        self.scm_half = SCM(in_channels, half)
        self.fam_half = FAM(half)
        self.mt_half = stage(half, num_blocks[1] // 2, heads=heads[0])
        self.down_quarter = ConvNormAct(conv(half, quarter, 3, stride=2))
        self.scm_quarter = SCM(in_channels, quarter)
        self.fam_quarter = FAM(quarter)
        self.mt_quarter = stage(quarter, num_blocks[2] // 2, heads=heads[1])

    def forward(self, x: Tensor, x_half: Tensor, x_quarter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full = self.rdcnn(self.stem(x))
        half = self.mt_half(self.fam_half(self.down_half(full), self.scm_half(x_half)))
        quarter = self.fam_quarter(self.down_quarter(half), self.scm_quarter(x_quarter))
        return full, half, self.mt_quarter(quarter)


class Decoder(nn.Module):
    """Decoder that predicts residuals, coarsest first; with ``coarse=False`` only the one at full resolution.

    Shape:
        features (B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4)
        -> residuals [(B, C_in, H/4, W/4), (B, C_in, H/2, W/2),] (B, C_in * upscale^2, H, W)
    """

    def __init__(
        self,
        out_channels: int,
        base_channels: int,
        num_blocks: tuple[int, int, int],
        heads: tuple[int, int],
        upscale: int,
        stage: Callable[..., MTStage],
    ) -> None:
        super().__init__()
        full, half, quarter = base_channels, 2 * base_channels, 4 * base_channels
        self.mt_quarter = stage(quarter, num_blocks[2] // 2, heads=heads[1])
        self.head_quarter = conv(quarter, out_channels, 3)
        self.up_half = ConvNormAct(_upsample(quarter, half))
        self.merge_half = conv(2 * half, half, 1, bias=True)
        self.mt_half = stage(half, num_blocks[1] // 2, heads=heads[0])
        self.head_half = conv(half, out_channels, 3)
        self.up_full = ConvNormAct(_upsample(half, full))
        self.merge_full = conv(2 * full, full, 1, bias=True)
        self.rdcnn = nn.Sequential(*(RDCNN(full) for _ in range(num_blocks[0])))
        # The last convolution has a BatchNorm too, as in the released code.
        self.head_full = ConvNorm(conv(full, out_channels * upscale**2, 3))

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor, *, coarse: bool) -> list[Tensor]:
        residuals = []
        x = self.mt_quarter(quarter)
        if coarse:
            residuals.append(self.head_quarter(x))
        x = self.mt_half(_merge(self.merge_half, self.up_half(x), half))
        if coarse:
            residuals.append(self.head_half(x))
        x = self.rdcnn(_merge(self.merge_full, self.up_full(x), full))
        residuals.append(self.head_full(x))
        return residuals


class RestorMixer(HubMixin, nn.Module):
    """RestorMixer for restoration (``upscale=1``) and super-resolution.

    The defaults are the paper's base network (3.195 M parameters); ``num_blocks=(8, 8, 8)`` is the large one (5.68 M).
    The network accepts images of any size: it pads them to multiples of 8 and crops the outputs.

    Args:
        in_channels: number of image channels: 3 for RGB, 1 for gray.
        out_channels: number of output channels; must equal ``in_channels``, since the network predicts a residual.
        base_channels: number of channels C at full resolution; the lower resolutions have 2C and 4C.
        num_blocks: number of RDCNN blocks at full resolution, and of blocks at 1/2 and at 1/4. The latter two are even,
            since half of the blocks are EMVM and half are MWSA. Encoder and decoder have the same counts.
        window_size: window side of the first MWSA block of a stage; the i-th block, from 1, has i times this side.
        encoder_heads: number of attention heads at 1/2 and 1/4 in the encoder.
        decoder_heads: number of attention heads at 1/2 and 1/4 in the decoder; both 4 in the released code.
        mlp_ratio: hidden channels of the MWSA blocks' MLP as a multiple of the stage's channels.
        d_state: number of states of a scan.
        expand: inner channels of a scan as a multiple of the stage's channels.
        deep_supervision: whether to return all three outputs during training.
        upscale: scale factor, 1, 2, 3 or 4. Above 1, the residual is added to the bicubically upsampled input.
        scan_merge: ``paper``, or ``official`` for checkpoints trained with the bug of the released code, see
            :class:`~restormixer_arch.emvm.StridedScan`.

    Shape:
        (B, C_in, H, W) in [0, 1] -> (B, C_in, upscale * H, upscale * W), not clamped. In training mode with deep
        supervision, the output is the list of :meth:`forward_multiscale`.

    Raises:
        ValueError: if an argument is invalid, or an input has the wrong shape or is empty.
    """

    pads_itself = True  # accepts images of any size

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        base_channels: int = 32,
        num_blocks: tuple[int, int, int] = (4, 4, 4),
        window_size: int = 8,
        encoder_heads: tuple[int, int] = (4, 8),
        decoder_heads: tuple[int, int] = (4, 4),
        mlp_ratio: float = 2.66,
        d_state: int = 16,
        expand: float = 2.0,
        deep_supervision: bool = True,
        upscale: int = 1,
        scan_merge: str = "paper",
    ) -> None:
        super().__init__()
        _check_arguments(in_channels, out_channels, base_channels, num_blocks, encoder_heads, decoder_heads, upscale)
        self.in_channels = in_channels
        self.upscale = upscale
        self.window_size, self.scan_merge = window_size, scan_merge
        self.encoder_heads, self.decoder_heads = tuple(encoder_heads), tuple(decoder_heads)
        stage = partial(
            MTStage,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            d_state=d_state,
            expand=expand,
            scan_merge=scan_merge,
        )
        self.encoder = Encoder(in_channels, base_channels, num_blocks, encoder_heads, stage)
        self.decoder = Decoder(out_channels, base_channels, num_blocks, decoder_heads, upscale, stage)
        self.apply(_init_linear)
        # With a last scale of 1, the residual would initially have variance 1, a hundred times too much, and training
        # would spend thousands of steps reducing it. With 0, the network is initially the identity.
        nn.init.zeros_(self.decoder.head_full.norm.weight)
        self.set_deep_supervision(deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.training and self.deep_supervision:
            return self.forward_multiscale(x)
        return self._restore(x, coarse=False)[0]

    def forward_multiscale(self, x: Tensor) -> list[Tensor]:
        """Restore at all three resolutions, in training and in eval mode.

        Shape:
            (B, C_in, H, W) in [0, 1]
            -> [(B, C_in, H/4, W/4), (B, C_in, H/2, W/2), (B, C_in, upscale * H, upscale * W)], rounded up
        """
        return self._restore(x, coarse=True)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay: A, D and dt bias of scans, norms, biases, skip scales."""
        scan_parameters = ("A_log", "D_skip", "dt_bias")
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.rpartition(".")[2] in scan_parameters
        }

    def set_checkpointing(self, on: bool) -> int:
        """Switch gradient checkpointing on or off; with it, the backward pass recomputes each M-T unit.

        Returns:
            Number of M-T units.
        """
        stages = [module for module in self.modules() if isinstance(module, MTStage)]
        for stage in stages:
            stage.checkpointing = on
        return sum(len(stage.units) for stage in stages)

    def set_deep_supervision(self, on: bool) -> None:
        """Switch the outputs at 1/4 and 1/2 in training on or off. If off, their heads get no gradient.

        A ``DistributedDataParallel`` that wraps the network afterwards then does not wait for these gradients.
        """
        self.deep_supervision = on
        heads = ("decoder.head_quarter.", "decoder.head_half.")
        unused = [] if on else [name for name, _ in self.named_parameters() if name.startswith(heads)]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, unused)

    @classmethod
    def from_weights(cls, state_dict: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> RestorMixer:
        """Build the network for a state dict and load it; the keys may be those of the released code.

        Args:
            state_dict: tensors by name, with or without a stamp, see :mod:`~restormixer_arch.weight_options`.
            options: keyword arguments of the network; None derives them from the state dict.

        Raises:
            ValueError: if ``options`` are invalid, or are None and cannot be derived from the state dict.
            RuntimeError: if tensors do not fit the network or are missing.
        """
        tensors, stamp = canonical(state_dict)
        network = cls(**(options_of(tensors, stamp) if options is None else options))
        nn.Module.load_state_dict(network, tensors)
        return network

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict as ``nn.Module`` does; keys of the released code are accepted, and a stamp is ignored."""
        tensors, _ = canonical(state_dict)
        return super().load_state_dict(tensors, strict=strict, assign=assign)

    def fuse(self) -> RestorMixer:
        """Switch to eval mode and fold every BatchNorm into its convolution; :meth:`train` undoes it."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fuse()
        return self

    def _restore(self, x: Tensor, *, coarse: bool) -> list[Tensor]:
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            shape = f"(B, {self.in_channels}, H, W)"
            raise ValueError(f"expected an input of shape {shape} that is not empty, got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, SIZE_MULTIPLE).contiguous(memory_format=torch.channels_last)
        x_half = x[..., ::2, ::2]  # nearest neighbor
        x_quarter = x_half[..., ::2, ::2]
        *lower, residual = self.decoder(*self.encoder(x, x_half, x_quarter), coarse=coarse)
        outputs = [self._enlarge(x) + F.pixel_shuffle(residual, self.upscale)]
        sizes = [(self.upscale * height, self.upscale * width)]
        if coarse:
            outputs = [x_quarter + lower[0], x_half + lower[1], *outputs]
            sizes = [*((-(-height // step), -(-width // step)) for step in (4, 2)), *sizes]
        return [output[..., :h, :w].contiguous() for output, (h, w) in zip(outputs, sizes, strict=True)]

    def _enlarge(self, x: Tensor) -> Tensor:
        if self.upscale == 1:
            return x
        return F.interpolate(x, scale_factor=float(self.upscale), mode="bicubic", align_corners=False)


def _merge(layer: nn.Conv2d, up: Tensor, skip: Tensor) -> Tensor:
    """Merge features of the decoder and of the encoder. (B, C, H, W), (B, C, H, W) -> (B, C, H, W)"""
    return by_rows(lambda up, skip: gelu(layer(torch.cat([up, skip], dim=1)), source=layer), up, skip, dim=2)


def _upsample(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_arguments(
    in_channels: int,
    out_channels: int,
    base_channels: int,
    num_blocks: Iterable[int],
    encoder_heads: Iterable[int],
    decoder_heads: Iterable[int],
    upscale: int,
) -> None:
    if in_channels < 1 or out_channels != in_channels:
        raise ValueError(
            f"out_channels must equal in_channels, since a residual is predicted, got {in_channels} and {out_channels}"
        )
    if base_channels < 2 or base_channels % 2:
        raise ValueError(f"base_channels must be even and at least 2, got {base_channels}")
    blocks = tuple(num_blocks)
    if len(blocks) != 3 or min(blocks) < 0 or blocks[1] % 2 or blocks[2] % 2:
        raise ValueError(f"num_blocks must be three counts, the second and third even, got {blocks}")
    for name, heads in (("encoder_heads", tuple(encoder_heads)), ("decoder_heads", tuple(decoder_heads))):
        if len(heads) != 2 or min(heads) < 1:
            raise ValueError(f"{name} must be two counts, at 1/2 and at 1/4, got {heads}")
    if upscale not in (1, 2, 3, 4):
        raise ValueError(f"upscale must be 1, 2, 3 or 4, got {upscale}")
