"""Train the base network (3.2 M parameters) on a GPU machine that is borrowed for half an hour.

    python tests/gpu/timed_training.py pack --lmdb photos/train_gt.lmdb --out photos.pack   here, installed
    python tests/gpu/timed_training.py train --crops photos.pack --task derain --minutes 27 --now 9 --out FOLDER   there

The machine needs torch, numpy and, for a fast scan, Triton; no package of the project and no network. ``train`` draws
the degradations in worker processes, and follows a cosine over ``--minutes`` of training in all. A call trains for
``--now`` minutes, or to the end; the next call with the same ``--out`` resumes. Every minute and at the end it writes
``FOLDER/state.pth`` and, in the project's format, ``FOLDER/restormixer_TASK.safetensors``: the averaged weights, which
``basicsr restore --weights`` takes.

Tasks: ``derain`` (wide rain, mist included, and clean pictures), ``mixed`` (the eleven labels of CDD-11, and noise) and
``sr_x2``. There is no JPEG encoder on a bare machine, so that rain has no compressed pictures here.

The pack holds whole photographs, lossless, as many as fit in 45 MiB: about 590 of 256x256.

Throughput, an ESTIMATE from operation counts, never run on a GPU: a step with 32 crops of 128x128 is 1.2 TFLOP. At the
10 to 15 TFLOP/s that small channels and depthwise convolutions may leave of an H100, that is 80 to 120 ms, 10 to 12 of
them scans: about 15,000 steps in 27 minutes, 270 to 400 crops a second. Measured on a CPU: a crop takes 7 ms of a core
for rain, 10 for mixtures and 1 for super-resolution, so that 16 cores draw at least 1,500 a second. The log shows how
long steps wait for crops.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import stubs  # noqa: F401 - first of all: it makes the others importable
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restormixer_arch.data.degradations import haze, low_light, noise, rain, snow
from restormixer_arch.data.degradations.labels import CDD11
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import add_stamp

MAGIC = b"crops001"
PACK_BYTES = 45 << 20
HELD_OUT = 16  # number of images excluded from training, at most a quarter of all
STEPS = (  # in the order in which they occur along the path of the light
    ("haze", haze.draw_haze, haze.add_haze),
    ("rain", rain.draw_rain, rain.add_rain),
    ("snow", snow.draw_snow, snow.add_snow),
    ("low", low_light.draw_low_light, low_light.add_low_light),
    ("noise", noise.draw_gaussian_noise, noise.add_gaussian_noise),
)
Arrays = tuple[np.ndarray, np.ndarray]
TASKS = {  # label -> weight
    "derain": {"rain": 9.0, "clean": 1.0},
    "mixed": dict.fromkeys((*CDD11, "noise"), 1.0),
    "sr_x2": {"down": 1.0},
}
SIZES = {
    "base": {},
    "tiny": {
        "base_channels": 4,
        "num_blocks": (1, 2, 2),
        "d_state": 2,
        "encoder_heads": (1, 1),
        "decoder_heads": (1, 1),
    },
}


# --- the pack: an index in JSON, then a zlib stream for each image ---------------------------------------------------


def encode(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3), uint8, losslessly: differences of channels and of neighbors, then zlib."""
    planes = image.copy()
    planes[..., 0] -= image[..., 1]
    planes[..., 2] -= image[..., 1]
    up = np.diff(planes, axis=0, prepend=np.zeros_like(planes[:1]))
    left = np.diff(planes, axis=1, prepend=np.zeros_like(planes[:, :1]))
    both = np.diff(up, axis=1, prepend=np.zeros_like(up[:, :1]))
    forms = [np.ascontiguousarray(form.transpose(2, 0, 1)).tobytes() for form in (up, left, both)]
    best = min(range(3), key=lambda kind: len(zlib.compress(forms[kind], 1)))
    return bytes([best]) + zlib.compress(forms[best], 9)


def decode(content: bytes, height: int, width: int) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(content[1:]), np.uint8).reshape(3, height, width).transpose(1, 2, 0)
    for axis in ((0,), (1,), (0, 1))[content[0]]:
        planes = np.cumsum(planes, axis=axis, dtype=np.uint8)
    planes[..., 0] += planes[..., 1]
    planes[..., 2] += planes[..., 1]
    return planes


def pack(root: str, out: Path, most: int = PACK_BYTES) -> int:
    """Write images of an LMDB, evenly spread over its list, until the pack is full; return their number."""
    from restormixer_arch.data.lmdb_io import LmdbImages

    images, total, entries, parts = LmdbImages(root, "--lmdb"), 0, [], []
    # Steps of the golden ratio: each prefix of the order is evenly spread over the list, in which neighbors are from
    # the same photograph.
    order = np.argsort(np.arange(len(images.names)) * 0.6180339887 % 1)
    for number in order:
        image = np.round(images.read(images.names[number])[..., ::-1] * 255).astype(np.uint8)
        content = encode(image)
        total += len(content) + 32
        if total > most:
            break
        entries.append([len(content), *image.shape[:2]])
        parts.append(content)
    index = json.dumps(entries).encode()
    out.write_bytes(MAGIC + struct.pack("<I", len(index)) + index + b"".join(parts))
    return len(parts)


def read_pack(path: Path) -> list[np.ndarray]:
    content = path.read_bytes()
    if content[:8] != MAGIC:
        raise SystemExit(f"{path}: is not a pack of pictures")
    (length,) = struct.unpack_from("<I", content, 8)
    at, images = 12 + length, []
    for size, height, width in json.loads(content[12:at]):
        images.append(decode(content[at : at + size], height, width))
        at += size
    return images


# --- pairs -----------------------------------------------------------------------------------------------------------


def degrade(rng: np.random.Generator, image: np.ndarray, label: str) -> np.ndarray:
    """Apply the degradations of a label to an image, float32 (H, W, 3) in [0, 1]; ``down`` is done on the GPU."""
    for name, draw, add in STEPS:
        if name in label.split("_"):
            image = add(image, draw(rng, None))
    return image


class Pairs(torch.utils.data.IterableDataset):
    """Endless batches of degraded and clean crops, uint8 arrays (B, 3, S, S); each worker has its own generator.

    They are arrays, since tensors would be passed through shared memory, of which a container may have only 64 MiB.
    """

    def __init__(self, images: list[np.ndarray], task: str, batch: int, side: int, seed: list[int]) -> None:
        self.images, self.task, self.batch, self.side, self.seed = images, task, batch, side, seed

    def __iter__(self) -> Iterator[Arrays]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        while True:
            pairs = [self.pair(rng) for _ in range(self.batch)]
            yield tuple(np.stack(part).transpose(0, 3, 1, 2).copy() for part in zip(*pairs, strict=True))

    def pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a degraded and a clean crop, uint8 (S, S, 3)."""
        gt = self.crop(rng, self.images[rng.integers(len(self.images))])
        weights = TASKS[self.task]
        label = rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values()))
        lq = degrade(rng, gt, label)
        return tuple(np.round(image.clip(0, 1) * 255).astype(np.uint8) for image in (lq, gt))

    def crop(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return a random crop at a random scale (1/2 to 1), flipped at random; rotated only for super-resolution."""
        source = min(round(self.side / rng.uniform(0.5, 1)), *image.shape[:2])
        top, left = (int(rng.integers(length - source + 1)) for length in image.shape[:2])
        part = image[top : top + source, left : left + source].astype(np.float32) / 255
        if source != self.side:
            x = torch.from_numpy(part).permute(2, 0, 1)[None]
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
            part = x[0].permute(1, 2, 0).numpy().clip(0, 1)
        if rng.integers(2):
            part = part[:, ::-1]
        if self.task == "sr_x2":
            part = np.rot90(part, rng.integers(4))
        return np.ascontiguousarray(part)


def on_device(pair: Arrays, device: torch.device, scale: int) -> tuple[Tensor, Tensor]:
    """Return LQ and GT as float32 in [0, 1].

    For super-resolution, LQ is the clean crop, downsampled as in MATLAB except at its edges.
    """
    lq, gt = (torch.from_numpy(part).to(device).float().div_(255) for part in pair)
    if scale > 1:
        lq = F.interpolate(gt, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)
        lq = lq.clamp_(0, 1).mul_(255).round_().div_(255)
    return lq, gt


# --- training --------------------------------------------------------------------------------------------------------


def loss_of(output: Tensor, gt: Tensor, fft_weight: float) -> Tensor:
    """Return the L1 loss of the images plus ``fft_weight`` times that of their spectra, in float32."""
    difference = output.float() - gt
    loss = difference.abs().mean()
    if fft_weight:
        loss = loss + fft_weight * torch.view_as_real(torch.fft.fft2(difference)).abs().mean()
    return loss


def psnr(output: Tensor, gt: Tensor) -> float:
    """Return the mean RGB PSNR of the images in dB."""
    errors = (output.float().clamp(0, 1).mul(255).round() / 255 - gt).square().mean((1, 2, 3))
    return (-10 * errors.clamp(min=1e-10).log10()).mean().item()


class Training:
    """A training run that can be interrupted and resumed at any minute.

    Args:
        args: parsed command line.
        device: device to train on.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.scale = args, device, 2 if args.task == "sr_x2" else 1
        torch.manual_seed(args.seed)
        options = {**SIZES[args.network], "deep_supervision": False, "upscale": self.scale}
        self.network, self.average = (RestorMixer(**options).to(device) for _ in range(2))
        self.average.load_state_dict(self.network.state_dict())
        self.network.train()
        self.average.eval()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # only a scale and a shift from the start, as in options/train_derain_s.yml
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        exempt = self.network.no_weight_decay()
        groups = [
            {"params": [p for n, p in self.network.named_parameters() if (n in exempt) == free], "weight_decay": decay}
            for free, decay in ((False, 1e-4), (True, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=device.type in ("cuda", "cpu"))
        self.seconds, self.iteration = 0.0, 0
        path = args.out / "state.pth"
        if path.exists():
            state = torch.load(path, map_location=device, weights_only=True)
            if state["task"] != args.task:
                raise SystemExit(f"{path}: is a training of {state['task']}, not of {args.task}")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seconds, self.iteration = state["seconds"], state["iteration"]
        if args.compile:
            self.network.compile()

    def rate(self) -> float:
        """Return the learning rate: a cosine over the minutes of all calls, with 200 warm-up steps."""
        done = min(self.seconds / (60 * self.args.minutes), 1.0)
        warm = min((self.iteration + 1) / 200, 1.0)
        return warm * (1e-6 + (self.args.lr - 1e-6) * (1 + math.cos(math.pi * done)) / 2)

    def step(self, lq: Tensor, gt: Tensor) -> Tensor:
        """Run one step and return the loss, without waiting for the GPU: a flag skips steps that are not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp == "bf16"):
            output = self.network(lq)
        loss = loss_of(output, gt, 0.0 if self.scale > 1 else 0.1)
        loss.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (0.01 / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.grad_scale, self.optimizer.found_inf = None, (~torch.isfinite(norm + loss)).float()
        self.optimizer.step()
        decay = min(0.999, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        self.iteration += 1
        return loss.detach()

    def save(self) -> None:
        """Write the state and the EMA weights, each atomically."""
        networks = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        state = networks | {"optimizer": self.optimizer.state_dict(), "task": self.args.task}
        partial = self.args.out / "state.partial"
        torch.save(state | {"seconds": self.seconds, "iteration": self.iteration}, partial)
        os.replace(partial, self.args.out / "state.pth")
        tensors = add_stamp(networks["average"], self.average)
        write_safetensors(tensors, self.args.out / f"restormixer_{self.args.task}.safetensors")

    @torch.no_grad()
    def measure(self, images: list[np.ndarray]) -> tuple[float, float]:
        """Return the PSNR of degraded and of restored crops of held-out images; the crops are the same in each call."""
        pairs = iter(Pairs(images, self.args.task, 4 * len(images), self.args.side, [self.args.seed, 0, 0]))
        lq, gt = on_device(next(pairs), self.device, self.scale)
        restored = torch.cat([self.average(part) for part in lq.split(16)])
        before = lq if self.scale == 1 else F.interpolate(lq, size=gt.shape[2:], mode="bicubic", align_corners=False)
        return psnr(before, gt), psnr(restored, gt)

    def run(self) -> None:
        """Train for the minutes of this call."""
        args, images = self.args, read_pack(self.args.crops)
        if len(images) < 4:
            raise SystemExit(f"{self.args.crops}: has {len(images)} pictures, expected at least 4")
        held_out = min(HELD_OUT, len(images) // 4)
        pairs = Pairs(images[held_out:], args.task, args.batch, args.side, [args.seed, 1, self.iteration])
        loader = torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=args.workers, collate_fn=unchanged)
        start, until = self.seconds, min(self.seconds + 60 * args.now, 60 * args.minutes)
        begin, said, waited, losses = time.monotonic(), time.monotonic(), 0.0, []
        batches = iter(loader)
        while self.seconds < until:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            losses.append(self.step(*on_device(batch, self.device, self.scale)))
            if len(losses) % 20 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()  # otherwise the clock would run ahead of the GPU
            self.seconds = start + time.monotonic() - begin
            if time.monotonic() - said > min(60, args.now * 20):
                self.report(losses, waited, time.monotonic() - said)
                self.save()
                said, waited, losses = time.monotonic(), 0.0, []
        self.save()
        before, after = self.measure(images[:held_out])
        log(f"{self.iteration} steps, {self.seconds:.0f} s in all; held out: PSNR {before:.2f} -> {after:.2f} dB")

    def report(self, losses: list[Tensor], waited: float, seconds: float) -> None:
        rate = len(losses) * self.args.batch / seconds
        mean = torch.stack(losses).nanmean().item()
        log(
            f"step {self.iteration}, {self.seconds / 60:.1f} min, lr {self.rate():.2e}: loss {mean:.5f}, "
            f"{rate:.1f} crops/s, {waited / seconds:.0%} of the time waiting for them"
        )


def unchanged(batch: Arrays) -> Arrays:
    return batch


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a length, a JSON table and the bytes, without the safetensors library, which a bare machine lacks."""
    names = {torch.float32: "F32", torch.int64: "I64"}
    header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        content = tensor.detach().cpu().contiguous().numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(content)],
        }
        parts.append(content)
        at += len(content)
    table = json.dumps(header).encode()
    table += b" " * (-len(table) % 8)
    partial = path.with_suffix(".partial")
    partial.write_bytes(struct.pack("<Q", len(table)) + table + b"".join(parts))
    os.replace(partial, path)


def log(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="pack the photographs of an LMDB")
    packing.add_argument("--lmdb", required=True)
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--mib", type=float, default=45.0, help="largest size of the pack")
    training = commands.add_parser("train", help="train, or resume")
    training.add_argument("--crops", type=Path, required=True, help="what pack wrote")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--task", choices=TASKS, required=True)
    training.add_argument("--minutes", type=float, default=27.0, help="of training in all calls, default 27")
    training.add_argument("--now", type=float, help="minutes of this call, default: all")
    training.add_argument("--batch", type=int, default=32)
    training.add_argument("--side", type=int, default=128, help="of the clean crops")
    training.add_argument("--lr", type=float, default=1e-3)
    training.add_argument("--amp", choices=("off", "bf16"), default="bf16")
    training.add_argument("--compile", action="store_true")
    training.add_argument("--workers", type=int, default=os.cpu_count())
    training.add_argument("--network", choices=SIZES, default="base")
    training.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "pack":
        log(f"{pack(args.lmdb, args.out, int(args.mib * 2**20))} pictures, {args.out.stat().st_size / 2**20:.1f} MiB")
        return
    args.now = args.minutes if args.now is None else args.now
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    Training(args, device).run()


if __name__ == "__main__":
    sys.exit(main())
