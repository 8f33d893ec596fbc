"""The first layers of Inception V3, every convolution with its BatchNorm folded in.

Table 1 of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015), as the
published weights of Inception V3 have it: three 3×3 convolutions, a max pool, a 1×1 and a 3×3, a
max pool. ReLU stands behind every convolution.

Their maps are the largest of the network: of a 299×299 image those of 147×147 pixels have 2.1
million numbers, its first Inception block 0.3 million. So a few images go all the way through
before the next ones start: on a CPU their maps stay in the cache, and on a GPU the memory of a
forward is no longer that of these layers for the whole batch. There 32 images are a million pixels
a launch, more than enough to fill it.
"""

from torch import Tensor

from fused_inception.blocks.op import BlockOp
from fused_inception.blocks.plan import INPUT, BlockWeights, Conv, ImagesAtATime, MaxPool, Plan

PLAN = Plan(
    "inception_stem",
    steps=(
        Conv(INPUT, ("conv1",), halves=True),
        Conv("conv1", ("conv2",), pads=False),
        Conv("conv2", ("conv3",)),
        MaxPool("conv3", "pool1"),
        Conv("pool1", ("conv4",), pads=False),
        Conv("conv4", ("conv5",), pads=False),
        MaxPool("conv5", "pool2"),
    ),
    parts=("pool2",),
    images_at_a_time=ImagesAtATime(cpu=1, gpu=32),
)
_op = BlockOp(PLAN)


def inception_stem(input: Tensor, weights: BlockWeights, *, backend: str = "auto") -> Tensor:
    """Runs the first layers of Inception V3 on folded weights.

    Equivalent to, with `conv(x, w, ...)` for `F.relu(F.conv2d(x, w.weight, w.bias, ...))`:

        x = conv(conv(input, w["conv1"], stride=2), w["conv2"])
        x = F.max_pool2d(conv(x, w["conv3"], padding="same"), 3, 2)
        x = conv(conv(x, w["conv4"]), w["conv5"])
        F.max_pool2d(x, 3, 2)

    Args:
        input: `(N, C, H, W)`, any strides; channels_last costs no copy. H and W are at least 27
            with the filters of Inception V3, where C is 3.
        weights: `PLAN.pack(w)` of the folded convolutions `w`, all in the dtype of `input` unless
            under autocast. `conv1` is 3×3, the others R×S with R and S odd; those of Inception V3
            are 3×3, and 1×1 for `conv4`.
        backend: as in `conv2d_act`. Default "auto".

    Returns:
        `(N, K, P, Q)` in channels_last, K the filters of `conv5`; 35×35 from 299×299.

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that do not fit each other, or an option.
        RuntimeError: `backend` was named and cannot run here.

    Note:
        Precision and batch invariance are those of `conv2d_act`. On a CPU one image, on a GPU 32
        go through all layers at a time. Differentiable; then it runs as single ops, all images
        together.
    """
    return _op(input, weights, backend)
