"""Inception V2, the network of the paper's table 1, with its first layers factorized or not.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2015, arXiv 1512.00567,
section 6). Where the paper's text is silent, on the widths inside the modules, the modules of the
grid reductions, the places of the auxiliary heads and the dropout, it follows this package's (and
torchvision's) Inception V3.
"""

from torch import Tensor

from fused_inception.models.inception_modules import AsymmetricInception, SymmetricInception
from fused_inception.models.inception_v3 import (
    ConvBlock,
    InceptionBlocks,
    InceptionNetwork,
    blocks_with_aux,
    choices,
    load_network,
)
from fused_inception.models.weights import Weights

STEMS = ("3x3", "7x7")


class InceptionV2(InceptionNetwork):
    """Inception V2 (Szegedy et al. 2015, arXiv 1512.00567, table 1).

    Children have names like those of Inception V3; sizes are those of a 299×299 image:

    | children | output |
    |---|---|
    | Conv2d_1a_3x3, Conv2d_2a_3x3, Conv2d_2b_3x3 | 32×149×149, 32×147×147, 64×147×147 |
    | or, with the stem "7x7", Conv2d_1a_7x7 | 64×147×147 |
    | maxpool1 | 64×73×73 |
    | Conv2d_3b_3x3, Conv2d_4a_3x3, Conv2d_4b_3x3 | 80×71×71, 192×35×35, 288×35×35 |
    | Mixed_5b, Mixed_5c, Mixed_5d (`blocks.a`, figure 5) | 288×35×35 |
    | Mixed_6a (`blocks.b`), Mixed_6b to Mixed_6f (`blocks.c`, figure 6) | 768×17×17 |
    | LowerAuxLogits on Mixed_6b, AuxLogits on Mixed_6f (`blocks.aux`, in training) | num_classes |
    | Mixed_7a (`blocks.d`), Mixed_7b, Mixed_7c (`blocks.e`, figure 7) | 1280×8×8, 2048×8×8 |
    | avgpool, dropout, fc | 2048×1×1, 2048×1×1, num_classes |

    The table has five modules at 17×17, V3 four: their channels between the factors are V3's, and
    the last one's once more. Conv2d_4b_3x3 is padded: without, it would leave 33×33, and the table
    goes on with 35×35. For `image_size` 151 the "7x7" has one pixel of padding, which brings it to
    the same 147×147.

    Args:
        stem: "3x3", three 3×3 convolutions; or "7x7", the one that they are the factors of. Other
            arguments, and errors: see `InceptionNetwork`.

    Raises:
        ValueError: there is no such stem.
    """

    _POOL_FEATURES = (64, 64, 64)
    _CHANNELS_17 = (128, 160, 160, 192, 192)

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        aux_logits: int = True,
        transform_input: bool = False,
        dropout: float = 0.5,
        init_weights: bool = True,
        blocks: InceptionBlocks | None = None,
        image_size: int = 299,
        width: float = 1.0,
        stem: str = "3x3",
    ) -> None:
        if stem not in STEMS:
            raise ValueError(f"stem takes {choices(STEMS)}, got {stem!r}")
        self._stem_kind = stem
        super().__init__(
            num_classes=num_classes,
            aux_logits=aux_logits,
            transform_input=transform_input,
            dropout=dropout,
            init_weights=init_weights,
            blocks=blocks,
            image_size=image_size,
            width=width,
        )

    @classmethod
    def default_blocks(cls) -> InceptionBlocks:
        """Figure 5 at 35×35, figure 6 at 17×17; the rest is V3's."""
        return InceptionBlocks(a=SymmetricInception, c=AsymmetricInception)

    def _add_stem(self, conv: ConvBlock) -> int:
        stride = 2 if self.image_size == 299 else 1
        if self._stem_kind == "7x7":
            padding = 1 if self.image_size == 151 else 0
            self.Conv2d_1a_7x7 = conv(3, 64, kernel_size=7, stride=stride, padding=padding)
        else:
            self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=stride)
            self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
            self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = self._first_pool()
        self.Conv2d_3b_3x3 = conv(64, 80, kernel_size=3)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3, stride=2)
        self.Conv2d_4b_3x3 = conv(192, 288, kernel_size=3, padding=1)
        return 288

    def _stem(self, x: Tensor) -> Tensor:
        if self._stem_kind == "7x7":
            x = self.Conv2d_1a_7x7(x)
        else:
            x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_3b_3x3(self.maxpool1(x))
        return self.Conv2d_4b_3x3(self.Conv2d_4a_3x3(x))

    def _image_size_for(self, size: int) -> int:
        if self._stem_kind == "7x7":
            return {299: 2 * size + 5, 151: size + 4, 79: size + 6}[self.image_size]
        size += 2
        return 2 * size + 1 if self.image_size == 299 else size + 2


def inception_v2(
    *,
    num_classes: int = 1000,
    aux_logits: int = True,
    transform_input: bool = False,
    dropout: float = 0.5,
    init_weights: bool = True,
    weights: Weights | None = None,
    aux_regularizer: str = "batch_norm",
    image_size: int = 299,
    width: float = 1.0,
    stem: str = "3x3",
) -> InceptionV2:
    """Builds Inception V2 as in the paper's table 1, in training mode, as `nn.Module` does.

    Args:
        num_classes: classes, at least 1.
        aux_logits: as in `inception_v3`, and with its places: the upper head is on the last module
            of the 17×17 grid, a lower one on its first.
        transform_input: as in `inception_v3`.
        dropout: probability in front of the last linear layer.
        init_weights: as in `inception_v3`.
        weights: a path or a state dict of this network; see `fused_inception.models.load_weights`.
        aux_regularizer: as in `inception_v3`. With "batch_norm" this is the network that the paper
            calls Inception-v3, apart from its training.
        image_size: as in `inception_v3`.
        width: as in `inception_v3`.
        stem: "3x3", the three 3×3 convolutions of table 1; "7x7", the one in their place, before
            what table 3 calls "Factorized 7×7".

    Returns:
        The network, fp32, on the CPU. It takes images `(N, 3, H, W)` from 75×75 on (from 299×299
        on in training with an auxiliary head; less for a smaller `image_size`) and returns
        logits `(N, num_classes)`.

    Raises:
        FileNotFoundError: there is no file `weights`.
        WeightsError: the weights cannot be read or do not fit; it is a ValueError.
        ValueError: an option has another value than those above.
        TypeError: `weights` is neither a path nor a mapping.
        ImportError: a `.safetensors` file without the safetensors package.

    Note:
        No trained weights are published for this network, as its widths are not the paper's own:
        `docs/paper.md` says what that means for its cost.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for
    Computer Vision", 2015, arXiv 1512.00567, section 6 and tables 1 and 3.
    """
    model = InceptionV2(
        num_classes=num_classes,
        aux_logits=aux_logits,
        transform_input=transform_input,
        dropout=dropout,
        init_weights=init_weights and weights is None,
        blocks=blocks_with_aux(InceptionV2.default_blocks(), aux_regularizer, aux_logits),
        image_size=image_size,
        width=width,
        stem=stem,
    )
    if weights is not None:
        load_network(model, weights)
    return model
