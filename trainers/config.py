"""What every training has: an optimizer, a learning rate, compilation."""

from dataclasses import dataclass
from typing import Literal

from utils.config import key

Compile = Literal["auto", "on", "off"]
TENSORBOARD_DOC = (
    "also write the log as event files, in the folder NAME.tensorboard beside it (pip install tensorboard)"
)
COMPILE_DOC = "torch.compile; auto: on GPUs, for runs so long that it pays"


@dataclass
class OptimizerParams:
    """`optimizer_params`."""

    algorithm: Literal["sgd", "adam"] = key(doc="the optimizer")
    lr: float = key(doc="peak learning rate", minimum=0.0)
    weight_decay: float = key(0.0, doc="L2 penalty on every parameter", minimum=0.0)
    momentum: float = key(0.9, doc="sgd: momentum", minimum=0.0)
    nesterov: bool = key(False, doc="sgd: Nesterov momentum")
    no_bn_decay: bool = key(False, doc="no weight decay on the parameters of batch normalisation")


@dataclass
class LrPolicyParams:
    """`lr_policy_params`: the learning rate, set once an epoch."""

    algorithm: Literal["cosine_lr", "constant_lr"] = key("cosine_lr", doc="shape of the schedule after the warm-up")
    warmup_length: int = key(5, doc="epochs of linear warm-up", minimum=0)
    epochs: int | None = key(None, doc="length of the schedule; the run's `epochs` if left out", minimum=1)
    lr: float | None = key(None, doc="peak; `optimizer_params.lr` if left out", minimum=0.0)

    def check_length(self, epochs: int) -> None:
        """Raise ValueError where the schedule ends before the run."""
        if self.epochs is not None and self.epochs < epochs:
            raise ValueError(f"lr_policy_params.epochs: is {self.epochs}, fewer than the {epochs} epochs of the run")


@dataclass(frozen=True)
class LoopParams:
    """What the training loop takes from a config, whatever is trained."""

    optimizer: OptimizerParams
    lr_policy: LrPolicyParams
    epochs: int  # in all, those before a resumption included
    batch_size: int  # items a step, over all processes
    compile: Compile = "off"
    micro_batch: int | None = None  # items a forward pass of a process, if its share is larger: gradients accumulate
    validate_every: int = 1  # epochs; 0: never
    # End after so many epochs without a smaller `trainers.loop.HELD_OUT`, which every validation then gives, and with
    # the weights that had the smallest; None: train to the last epoch, whose weights are the model.
    patience: int | None = None
