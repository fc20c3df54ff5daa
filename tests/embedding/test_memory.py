"""As many images at once as fit: the count is right to the byte, and what is cut computes the same."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.images import Batch
from embedding import memory
from embedding.extraction import embed_images
from models.backbones import build_backbone
from tests.tiny import ENVIRONMENT, REPOSITORY
from tests.utils.processes import run_processes
from utils.batches import split_batch
from utils.distributed import World
from utils.errors import UserError
from utils.precision import Resolved, autocast, computes_bf16

IMAGE = torch.zeros(1, 3, 32, 32)


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("ResNet18", num_classes=5, embedding_dim=8, stem="cifar", width=0.25)


def test_what_lives_is_counted_to_the_byte() -> None:
    def run(images: Tensor) -> None:
        first = torch.ones(len(images), 100)  # 400 bytes an image
        view = first[:, :50]
        first = first + 1  # a second one: `view` keeps the first
        del view
        first.mul_(2)
        torch.empty(7, dtype=torch.float64)
        images.view(-1).add_(1)

    assert memory.live_bytes(run, [], torch.zeros(3, 2)) == [1200, 1200, 2400, 1200, 1256, 1200, 1200]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_autograd_keeps_is_within_the_count(precision: Resolved) -> None:
    module, kept = small_resnet(), {}
    present = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in present:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = IMAGE.repeat(6, 1, 1, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision, images.device):
        logits = module(images)[0]
    saved = sum(kept.values()) - images.nbytes
    assert logits.requires_grad
    peak = max(memory.live_bytes(memory._training_pass(module, precision), [*module.parameters()], images))
    assert saved < peak < 1.3 * saved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", [True, False])
@settings(deadline=None, max_examples=8)
@given(share=st.floats(0.01, 1.2))
def test_as_many_fit_as_a_pass_over_so_many_says(precision: Resolved, trained: bool, share: float) -> None:
    module, image = small_resnet().train(trained), IMAGE[..., ::2, ::2]
    present = [*module.parameters(), *module.buffers()]

    def forward(images: Tensor) -> None:
        with torch.inference_mode(), autocast(precision, images.device):
            module(images)

    run = memory._training_pass(module, precision) if trained else forward

    def needed(count: int) -> int:
        return max(memory.live_bytes(run, present, image.repeat(count, 1, 1, 1)))

    budget = int(share * needed(16))
    most = memory.most_within(budget, run, present, image, 16)
    assert most == 0 or needed(most) <= budget
    assert most == 16 or needed(most + 1) > budget


def test_counting_leaves_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_resnet().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: 2**25)
    assert 0 < memory.most_that_train(module, IMAGE, 1000, "fp32", World()) < 1000
    assert memory.trains_on(module, IMAGE, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: None)  # the system does not say
    assert memory.most_that_train(module, IMAGE, 1000, "fp32", World()) == 1000


def test_a_single_value_a_channel_has_no_variance() -> None:
    deep = build_backbone("ResNet18", num_classes=5, width=0.0625).train()  # its last maps of 32 px images are 1 x 1
    assert not memory.trains_on(deep, IMAGE, 1)
    assert memory.trains_on(deep, IMAGE, 2)


MEASURED = """
import sys
from pathlib import Path
import torch
from models.backbones import build_backbone
from embedding.memory import _training_pass, live_bytes
from utils.precision import computes_bf16

def memory(entry):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return int(line.split()[1]) * 1024

torch.manual_seed(0)
module = build_backbone("ResNet18", num_classes=5, stem="cifar", width=0.25).to(memory_format=torch.channels_last)
run = _training_pass(module, sys.argv[1])
counted = run if computes_bf16(torch.device("cpu")) else _training_pass(module, "fp32")  # as `most_that_train`
images = torch.zeros(int(sys.argv[2]), 3, 96, 96).contiguous(memory_format=torch.channels_last)
few, more = (live_bytes(counted, [*module.parameters()], images[:count]) for count in (2, 4))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = memory("VmRSS")
run(images)
print(max(a + (b - a) / 2 * (len(images) - 2) for a, b in zip(few, more)), memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_count_is_what_a_process_takes(precision: str) -> None:
    count = 64 if precision == "fp32" or computes_bf16(torch.device("cpu")) else 32  # what is emulated takes long
    command = [sys.executable, "-c", MEASURED, precision, str(count)]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    expected, taken = (float(number) for number in done.stdout.split())
    assert expected > 3e8
    assert 0.7 < taken / expected < 1 / memory.PLANNED  # what the kernels take for themselves is within the margin


class Limited:
    """A pass that has no memory for more than `most` images at once."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, list[int]()

    def __call__(self, images: Tensor) -> None:
        self.tried.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("most", "found", "tries"), [(1024, 1024, 1), (700, 512, 2), (100, 64, 5), (1, 1, 11), (0, 0, 11)]
)
def test_what_a_gpu_has_no_memory_for_is_halved(most: int, found: int, tries: int) -> None:
    run = Limited(most)
    assert memory.most_by_trial(run, IMAGE[..., :2, :2], 1024, 0, World()) == found
    assert run.tried == [1024 // 2**halvings for halvings in range(tries)]


def find_on_each(world: World) -> None:
    run = Limited(700 if world.rank else 300)
    assert memory.most_by_trial(run, IMAGE[..., :2, :2], 1024, 0, world) == 256
    assert run.tried == [1024, 512, 256]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding.memory.free_bytes", lambda device: 2 ** (25 + world.rank))
        found = memory.most_that_train(small_resnet().train(), IMAGE, 1000, "fp32", world)
        patch.setattr("embedding.memory.free_bytes", lambda device: 2**25)
        assert found == memory.most_that_train(small_resnet().train(), IMAGE, 1000, "fp32", world)


def test_processes_take_what_fits_on_each_of_them() -> None:
    run_processes(find_on_each, 2)


@given(rows=st.integers(1, 3000), most=st.integers(1, 3000))
def test_parts_are_even_where_that_is_not_twice_as_many(rows: int, most: int) -> None:
    size = memory.even_part(rows, most)
    assert 1 <= size <= most
    parts, fewest = -(-rows // size), -(-rows // most)
    assert fewest <= parts <= 2 * fewest
    assert rows % parts == 0 or (parts == fewest and all(rows % count for count in range(fewest, 2 * fewest)))


# Evaluation


class Sizes(nn.Module):
    """A network that notes how many images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = small_resnet().eval(), list[int]()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(len(images))
        return self.network(images)


def embedded(model: Sizes, images: Tensor) -> Tensor:
    everything = Batch(images, *[torch.arange(len(images))] * 2)
    batches = [part for part, _ in split_batch(everything, 40)]
    outputs, positions = embed_images(
        {"new": model}, batches, total=len(images), precision="fp32", world=World(), title="test"
    )
    assert torch.equal(positions, torch.arange(len(images)))
    return outputs["new"].embedding


def test_embeddings_of_batches_that_do_not_fit_are_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, whole, cut = torch.randn(90, 3, 32, 32), Sizes(), Sizes()
    expected = embedded(whole, images)
    assert whole.seen == [40, 40, 10]  # nothing is looked at where there is memory enough by far
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: 3 * 2**20)
    torch.testing.assert_close(embedded(cut, images), expected, rtol=1e-4, atol=1e-5)
    looked_at, parts = cut.seen[:2], cut.seen[2:]
    assert looked_at == [memory.FEW, 2 * memory.FEW]
    assert (sum(parts), max(parts) < 40) == (90, True)
    assert capsys.readouterr().out == f"the memory is for {parts[0]} images at a time, not for the batch of 40\n"


def test_a_cpu_takes_a_batch_in_parts_that_stay_in_its_caches() -> None:
    images, model = torch.randn(13, 3, 224, 224), Sizes()
    embed_images(
        {"new": model}, [Batch(images, *[torch.arange(13)] * 2)], total=13, precision="fp32", world=World(), title=""
    )
    assert model.seen == [7, 6]


def test_one_image_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding.memory.free_bytes", lambda device: 2**16)
    with pytest.raises(UserError, match=r"dataset_params.image_size: not even one image of 32 px fits the 0.0 GiB"):
        embedded(Sizes(), IMAGE.repeat(4, 1, 1, 1))
