"""Mends of BasicSR's trainer that last for the process, for any of its models. This module imports basicsr."""

from __future__ import annotations

import functools
from typing import Any

import basicsr.data
import basicsr.train
import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel

from restormixer_arch.basicsr_adapter.checkpoints import save_network
from restormixer_arch.basicsr_adapter.distributed import wrap
from restormixer_arch.basicsr_adapter.patch import Patch, always, replace_everywhere
from restormixer_arch.basicsr_adapter.resume import load_resume_state
from restormixer_arch.basicsr_adapter.sampler import start_worker
from restormixer_arch.basicsr_adapter.training_state import resume_training, save_training_state
from restormixer_arch.basicsr_adapter.validation import dist_validation


def resume() -> None:
    basicsr.train.load_resume_state = load_resume_state
    BaseModel.resume_training = resume_training


def whole_checkpoints() -> None:
    BaseModel.save_network = save_network
    BaseModel.save_training_state = save_training_state


def worker_seeds() -> None:
    replace_everywhere("worker_init_fn", basicsr.data.worker_init_fn, start_worker)


def device() -> None:
    original = BaseModel.__init__

    @functools.wraps(original)
    def init(self: BaseModel, opt: dict[str, Any]) -> None:
        original(self, opt)
        if opt.get("device"):
            self.device = torch.device(opt["device"])

    BaseModel.__init__ = init


def validation() -> None:
    SRModel.dist_validation = dist_validation


def ddp() -> None:
    original = BaseModel.model_to_device

    def model_to_device(self: BaseModel, net: torch.nn.Module) -> torch.nn.Module:
        return wrap(self, net) if self.opt["dist"] else original(self, net)

    BaseModel.model_to_device = model_to_device


PATCHES = (
    Patch(
        name="resume_on_cpu",
        breaks="resuming asks for a CUDA device; --auto_resume looks in the working directory only",
        versions="all",
        why="load_state_dict copies to the parameters' device, so the state may be read to the CPU anywhere",
        needed=always,
        mend=resume,
    ),
    Patch(
        name="whole_checkpoints",
        breaks="a checkpoint is written in place, so a killed run leaves a damaged one; one that fails is ignored",
        versions="all",
        why="the files keep BasicSR's names and keys; they are renamed into place, and a failure ends the training",
        needed=always,
        mend=whole_checkpoints,
    ),
    Patch(
        name="worker_seeds",
        breaks="every epoch repeats the same crops, flips and noise, since its loader processes are seeded alike",
        versions="all",
        why="torch's own seed of a loader process follows from manual_seed and differs in every epoch",
        needed=always,
        mend=worker_seeds,
    ),
    Patch(
        name="device",
        breaks="a model runs on CUDA or the CPU only",
        versions="all",
        why="the device is set before the network is built, and everything follows it",
        needed=always,
        mend=device,
    ),
    Patch(
        name="sharded_validation",
        breaks="one process validates while the others wait until they time out",
        versions="all",
        why="each process validates its share, and the means are those over all images",
        needed=always,
        mend=validation,
    ),
    Patch(
        name="ddp",
        breaks="DistributedDataParallel is given a CUDA device also where the network is on the CPU",
        versions="all",
        why="without device_ids it works on the device that the network is on",
        needed=always,
        mend=ddp,
    ),
)
