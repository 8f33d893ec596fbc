"""One of two processes of `test_adapter_ddp.py`: `python ddp_worker.py RANK FILE`.

Runs a fused network of timm in DistributedDataParallel, over gloo with a file as the meeting place.
A process of its own, so it imports nothing of the tests.
"""

import copy
import importlib
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from fused_inception import blocks, fuse, report
from fused_inception.models.torchvision_import import import_torchvision

WORLD = 2


def count_fused_calls():
    calls = []
    for kind, spec in list(blocks.FUSED_BLOCKS.items()):

        def counted(*args, forward=spec.forward, **kwargs):
            calls.append(1)
            return forward(*args, **kwargs)

        blocks.FUSED_BLOCKS[kind] = spec._replace(forward=counted)
    return calls


def assert_close(got, want, tolerance=2e-5):
    error, largest = (got - want).abs().max(), want.abs().max()
    assert error <= tolerance * largest, f"{error:.3g} of {largest:.3g}"


def main(rank, meeting_place):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    import_torchvision()  # timm imports it
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    model = timm.create_model("inception_v3", pretrained=False, num_classes=10).eval()
    calls = count_fused_calls()
    wrapped = nn.parallel.DistributedDataParallel(fuse(model))
    running = len(report(wrapped).replaced)
    assert running > 11

    torch.manual_seed(1 + rank)  # each process has images of its own
    images = torch.rand(2, 3, 75, 75)
    with torch.no_grad():
        assert_close(wrapped(images), model(images))
        assert_close(wrapped(images), model(images))
    assert len(calls) == 2 * running

    calls.clear()
    plain = copy.deepcopy(model).train()
    wrapped.train()
    wrapped(images).square().sum().backward()
    plain(images).square().sum().backward()
    assert not calls
    for ours, theirs in zip(wrapped.parameters(), plain.parameters(), strict=True):
        own = theirs.grad.clone()
        dist.all_reduce(theirs.grad)
        theirs.grad /= WORLD
        # Not that of this process alone.
        assert own.norm() == 0 or not torch.allclose(own, theirs.grad, rtol=1e-3)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)

    # After a step both processes have the same weights, and the fused ones follow.
    nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)  # of two small images they are huge
    torch.optim.SGD(wrapped.parameters(), lr=0.01).step()
    wrapped.eval()
    torch.manual_seed(9)
    images = torch.rand(2, 3, 75, 75)
    with torch.no_grad():
        got = wrapped(images)
    assert len(calls) == running
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(got, wrapped(images).detach())
    assert len(calls) == running
    both = [torch.empty_like(got) for _ in range(WORLD)]
    dist.all_gather(both, got)
    assert torch.equal(*both)
    dist.destroy_process_group()
    print(f"rank {rank}: {running} fused modules")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
