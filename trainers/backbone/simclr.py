"""Side-information without labels: SimCLR (arXiv 2002.05709), as FCT takes it (section 4.3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data.contrastive_views import ViewRecipe
from data.datasets import resolve_simclr
from data.images import Batch, ViewPairs
from embedding.memory import in_parts_that_fit
from models.backbones import Backbone
from models.embedding import embed
from models.modes import in_eval_mode
from trainers.backbone.neighbours import knn_predict
from trainers.backbone.task import BackboneTask
from trainers.loop import Loss
from utils.distributed import World
from utils.precision import autocast


class ProjectionHead(nn.Sequential):
    """g: embedding (B, d) -> (B, projection_dim), where views are compared. A layer, ReLU, a layer; BN after both."""

    def __init__(self, embedding_dim: int, hidden_dim: int, projection_dim: int) -> None:
        super().__init__(
            nn.Linear(embedding_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim),
        )


class ProjectedBackbone(nn.Module):
    """What SimCLR trains: the backbone, which is kept, and the projection head, which is not."""

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        backbone.fc.requires_grad_(False)  # there are no classes; data-parallel training expects gradients of the rest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> projections (B, projection_dim)."""
        return self.head(embed(self.backbone, images).embedding)


def nt_xent(projections: torch.Tensor, temperature: float, world: World) -> torch.Tensor:
    """NT-Xent, the normalised temperature-scaled cross-entropy (SimCLR, equation 1).

    Of view i, with its partner j the other view of the same image, over the views k of all processes:

        - log( exp(cos(z_i, z_j) / t) / sum over k != i of exp(cos(z_i, z_k) / t) )

    Args:
        projections: z (2 B, d) of this process's views; rows i and B + i are partners.

    Returns:
        () the mean over this process's views. With equal B, the mean of it over the processes, and of its gradient with
        respect to their parameters, is what one process finds for all views.
    """
    own = F.normalize(projections.float(), dim=1).view(2, -1, projections.shape[1]).transpose(0, 1)  # (B, 2, d)
    everyone = world.gather_rows(own.contiguous())  # (N, 2, d)
    sizes = world.gather_rows(torch.tensor([len(own)], device=own.device))
    first = int(sizes[: world.rank].sum())
    logits = own.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature  # (2 B, 2 N)
    views = torch.arange(len(logits), device=logits.device)
    itself = views + 2 * first
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    partner = itself + 1 - 2 * (views % 2)  # an image's two views are neighbours in this order
    return F.cross_entropy(logits, partner)


@dataclass
class SimCLR(BackboneTask):
    """Tell the views of an image from those of others. The model is a `ProjectedBackbone`.

    Its figure is the accuracy of nearest neighbours in the embedding, for which alone labels are read.
    """

    def __post_init__(self) -> None:
        params = resolve_simclr(self.config.simclr_params, self.config.dataset_params.name)
        assert params.temperature is not None
        assert params.jitter_strength is not None
        self.temperature, self.knn_items = params.temperature, params.knn_items
        self.views = ViewRecipe(bool(params.flip), params.jitter_strength, bool(params.blur), params.min_area)

    def batches(self, epoch: int) -> Iterable[ViewPairs]:
        return self.seeded(self.training.view_pairs(self.views, epoch, self.config.dataset_params.batch_size), epoch)

    def loss(self, model: nn.Module, batch: ViewPairs) -> Loss:
        with autocast(self.precision, self.world.device):
            projections = model(batch.images)
        return Loss(nt_xent(projections, self.temperature, self.world), len(projections) // 2)

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert self.validation is not None
        backbone = model.get_submodule("backbone")
        batch_size = self.world.local_batch(self.config.dataset_params.batch_size)
        bank, labels = self._embed(backbone, self.training.view_batches(0, batch_size, limit=self.knn_items))
        queries, expected = self._embed(backbone, self.validation.view_batches(0, batch_size))
        predicted = knn_predict(queries, self.world.gather_rows(bank), self.world.gather_rows(labels))
        right = torch.stack([(predicted == expected).sum(), expected.new_tensor(len(expected))])
        correct, count = self.world.sum(right).tolist()
        return {"knn_accuracy": correct / count}

    def _embed(self, backbone: nn.Module, batches: Iterator[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (n, d) and labels (n,) of this process's share."""
        embeddings, labels = [], []
        with in_eval_mode(backbone), torch.inference_mode(), autocast(self.precision, self.world.device):
            for batch in in_parts_that_fit(batches, backbone, [backbone], self.world):
                embeddings.append(embed(backbone, batch.images).embedding)
                labels.append(batch.labels)
        return torch.cat(embeddings), torch.cat(labels)
