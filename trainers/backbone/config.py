"""The config of train_backbone.py."""

from dataclasses import dataclass
from typing import Literal

from data.config import DatasetParams, SimCLRParams
from models.config import BackboneArch, ExportFormat
from trainers.config import COMPILE_DOC, TENSORBOARD_DOC, Compile, LoopParams, LrPolicyParams, OptimizerParams
from utils.choices import PROCESSES_DOC, Precision, Processes
from utils.config import key, section


@dataclass
class BCTParams:
    """`bct_params`: the influence loss of an old model's frozen classifier on the new embedding."""

    old_model_path: str = key(doc="the old model, with embeddings of the same dimension", path="input")
    weight: float = key(1.0, doc="of the influence loss", minimum=0.0)
    old_classes: int | None = key(
        None, doc="the old model was trained on the first so many classes; as its file says if left out", minimum=1
    )


@dataclass
class BackboneConfig:
    """train_backbone.py: a config -> an embedding model."""

    arch_params: BackboneArch = key(doc="the network")
    optimizer_params: OptimizerParams = key(doc="the optimizer")
    dataset_params: DatasetParams = key(doc="the training images")
    epochs: int = key(doc="passes over the training set", minimum=1)
    output_model_path: str = key(doc="model file to write", path="output")
    objective: Literal["classification", "simclr"] = key(
        "classification", doc="classification by labels, or simclr: side-information, without labels"
    )
    simclr_params: SimCLRParams = section(SimCLRParams, doc="self-supervised training; objective simclr")
    bct_params: BCTParams | None = key(None, doc="backward-compatible training; objective classification")
    lr_policy_params: LrPolicyParams = section(LrPolicyParams, doc="the learning-rate schedule")
    label_smoothing: float = key(0.0, doc="share of the label spread over all classes", minimum=0.0, maximum=1.0)
    validate_every: int = key(
        10, doc="epochs between accuracies on the validation split (simclr: of nearest neighbours); 0: never", minimum=0
    )
    seed: int = key(0, doc="of the initial weights, the shuffling and the augmentation", minimum=0)
    precision: Precision = key("auto", doc="bf16 autocast where the machine computes it fast, or fp32")
    processes: Processes = key("auto", doc=PROCESSES_DOC, minimum=1)
    compile: Compile = key("auto", doc=COMPILE_DOC)
    micro_batch: int | Literal["auto"] | None = key(
        "auto",
        doc="images a process takes through the network at once, whose batch statistics it uses; more accumulate their "
        "gradients; auto: all of its share of a batch, or as many as fit into the memory; none: all",
        minimum=1,
    )
    sync_bn: bool = key(False, doc="batch statistics over all processes (GPUs), not over each one's share")
    resume: bool = key(True, doc="go on from the last checkpoint of an interrupted run")
    tensorboard: bool = key(False, doc=TENSORBOARD_DOC)
    export_formats: list[ExportFormat] = key([], doc="also write the model in these formats")

    def __post_init__(self) -> None:
        self.lr_policy_params.check_length(self.epochs)
        if self.objective == "simclr":
            if isinstance(self.micro_batch, int):
                raise ValueError("micro_batch: does not go with simclr, which compares all images of a batch")
            if self.dataset_params.augmentation is not None:
                raise ValueError("dataset_params.augmentation: simclr has its own (simclr_params); leave this one out")
            if self.label_smoothing:
                raise ValueError("label_smoothing: simclr has no labels; leave it out")
            if self.bct_params is not None:
                raise ValueError("bct_params: is for objective classification; simclr has no classifier")
        elif self.simclr_params != SimCLRParams():
            raise ValueError("simclr_params: is for objective simclr")

    def loop(self, micro_batch: int | None) -> LoopParams:
        """What the training loop takes from it.

        Args:
            micro_batch: images at once, as it was found; None: a process's whole share of a batch.
        """
        optimizer, batch_size = self.optimizer_params, self.dataset_params.batch_size
        return LoopParams(
            optimizer, self.lr_policy_params, self.epochs, batch_size, self.compile, micro_batch, self.validate_every
        )
