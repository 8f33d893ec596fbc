"""Label smoothing against PyTorch's, against labels smoothed by hand, and by its identity."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from fused_inception.models import LabelSmoothingLoss, label_smoothing_loss

K = 7
SHAPES = [(5, K), (1, K), (3, K, 4), (2, K, 3, 2), (K,), (0, K), (4, 1)]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3


def labels_for(logits, seed=1):
    dim = min(logits.dim() - 1, 1)
    shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(logits.shape[dim], shape, generator=generator)


def distributions_for(logits, seed=1):
    return draw(logits.shape, logits.dtype, seed).softmax(min(logits.dim() - 1, 1))


def a_prior(k=K, dtype=torch.float64):
    return torch.arange(1, k + 1, dtype=dtype) / (k * (k + 1) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("target", [labels_for, distributions_for], ids=["labels", "soft"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_uniform_prior_is_that_of_pytorch(shape, target, smoothing, reduction):
    logits = draw(shape).requires_grad_()
    target = target(logits.detach())
    actual = label_smoothing_loss(logits, target, smoothing=smoothing, reduction=reduction)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert actual.shape == expected.shape
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_as_near_as_pytorch_is(dtype):
    logits = draw((64, 1000), dtype)
    labels = labels_for(logits)
    oracle = F.cross_entropy(logits.double(), labels, label_smoothing=0.1)
    actual = label_smoothing_loss(logits, labels)
    theirs = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert actual.dtype == dtype
    error, their_error = ((x.double() - oracle).abs() for x in (actual, theirs))
    assert error <= 2 * (their_error + torch.finfo(dtype).eps * oracle)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [[], [0, 3], range(6)], ids=["none", "some", "all"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_ignored_labels_have_no_loss_no_gradient_and_no_weight(ignored, ignore_index, reduction):
    logits = draw((6, K)).requires_grad_()
    labels = labels_for(logits)
    labels[labels == ignore_index] = 0
    labels[list(ignored)] = ignore_index
    options = {"ignore_index": ignore_index, "reduction": reduction}
    actual = label_smoothing_loss(logits, labels, **options)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    if len(ignored) < 6:
        (gradient,) = torch.autograd.grad(actual.sum(), logits)
        assert not gradient[list(ignored)].any()

    # With a prior too.
    rest = [i for i in range(6) if i not in ignored]
    with_prior = label_smoothing_loss(logits, labels, prior=a_prior(), **options)
    without = label_smoothing_loss(logits[rest], labels[rest], prior=a_prior(), reduction=reduction)
    kept = with_prior[rest] if reduction == "none" else with_prior
    torch.testing.assert_close(kept, without, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("shape", [(5, K), (3, K, 4), (K,)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
def test_a_prior_gives_the_cross_entropy_of_labels_smoothed_by_hand(shape, smoothing):
    logits = draw(shape)
    labels = labels_for(logits)
    dim = min(logits.dim() - 1, 1)
    one_hot = F.one_hot(labels, K).double().movedim(-1, dim)
    u = a_prior().reshape([-1] + [1] * (logits.dim() - dim - 1))
    smoothed = (1 - smoothing) * one_hot + smoothing * u
    expected = F.cross_entropy(logits, smoothed.expand_as(logits))
    for target in (labels, one_hot):
        actual = label_smoothing_loss(logits, target, smoothing=smoothing, prior=a_prior())
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
@pytest.mark.parametrize("prior", [None, a_prior()], ids=["uniform", "other"])
def test_it_is_two_cross_entropies(prior, smoothing):
    """H(q', p) = (1 - ε)H(q, p) + εH(u, p)."""
    logits = draw((5, K))
    q = distributions_for(logits)
    u = torch.full((K,), 1 / K, dtype=torch.float64) if prior is None else prior

    def entropy(of):
        return -(of * logits.log_softmax(1)).sum(1).mean()

    actual = label_smoothing_loss(logits, q, smoothing=smoothing, prior=prior)
    torch.testing.assert_close(actual, entropy((1 - smoothing) * q + smoothing * u))
    torch.testing.assert_close(actual, (1 - smoothing) * entropy(q) + smoothing * entropy(u))
    # The two differ, so the sum above says something.
    assert (entropy(q) - entropy(u)).abs() > 0.1


def test_the_gradient_is_the_difference_of_the_distributions():
    """p(k) - q'(k), section 7."""
    logits = draw((4, K)).requires_grad_()
    labels = labels_for(logits)
    loss = label_smoothing_loss(logits, labels, prior=a_prior(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    smoothed = 0.9 * F.one_hot(labels, K) + 0.1 * a_prior()
    torch.testing.assert_close(gradient, logits.detach().softmax(1) - smoothed)


@pytest.mark.parametrize("prior", [None, a_prior()], ids=["uniform", "other"])
@pytest.mark.parametrize("target", [labels_for, distributions_for], ids=["labels", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(target, prior, reduction):
    logits = draw((3, K)).requires_grad_()
    target = target(logits.detach())
    if target.is_floating_point():
        target.requires_grad_()

    def loss(*args):
        return label_smoothing_loss(*args, prior=prior, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (logits, target))
    assert torch.autograd.gradgradcheck(loss, (logits, target))


def test_a_class_without_prior_adds_nothing_where_its_logit_is_minus_infinity():
    logits = draw((3, K))
    logits[:, 2] = -math.inf
    logits.requires_grad_()
    prior = a_prior()
    prior[2] = 0
    prior /= prior.sum()
    loss = label_smoothing_loss(logits, torch.tensor([0, 1, 3]), prior=prior)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    others = [k for k in range(K) if k != 2]
    expected = label_smoothing_loss(logits[:, others], torch.tensor([0, 1, 2]), prior=prior[others])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((draw((2, K)).long(), labels_for(draw((2, K)))), {}, TypeError, "logits takes a floating"),
        ((draw(()), labels_for(draw((2, K)))), {}, ValueError, "logits takes .*got a scalar"),
        ((draw((2, K)), labels_for(draw((3, K)))), {}, ValueError, r"labels of shape \(2,\) .*\(3"),
        ((draw((2, K)), draw((2, K + 1))), {}, ValueError, r"shape of logits, \(2, 7\), got"),
        ((draw((2, K)), torch.zeros(2).int()), {}, TypeError, "int64 labels .*got torch.int32"),
        ((draw((2, K)), torch.zeros(2).bool()), {}, TypeError, "got torch.bool"),
        (None, {"smoothing": 1.5}, ValueError, "smoothing takes a number from 0 to 1, got 1.5"),
        (None, {"smoothing": math.nan}, ValueError, "smoothing takes .*got nan"),
        (None, {"reduction": "avg"}, ValueError, "takes none, mean, sum, got 'avg'"),
        (None, {"prior": torch.ones(K).long()}, TypeError, "prior takes .*got torch.int64"),
        (None, {"prior": a_prior(K + 1)}, ValueError, r"prior takes shape \(7,\), got \(8,\)"),
        (None, {"prior": a_prior()[None]}, ValueError, r"prior takes shape \(7,\), got \(1, 7\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error, message):
    if arguments is None:
        arguments = draw((2, K)), labels_for(draw((2, K)))
    with pytest.raises(error, match=message):
        label_smoothing_loss(*arguments, **options)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (torch.ones(K) / K * 1.01, ValueError, "sum to 1, got a smallest .* a sum of 1.01"),
        (torch.tensor([1.5, -0.5]), ValueError, "not negative .*got a smallest of -0.5"),
        (torch.tensor([math.nan, 1.0]), ValueError, "not negative"),
        (torch.ones(1, 1), ValueError, re.escape("prior takes shape (K,), got (1, 1)")),
        (torch.ones(0), ValueError, re.escape("prior takes shape (K,), got (0,)")),
        (torch.ones(1).int(), TypeError, "prior takes a floating-point dtype"),
    ],
)
def test_the_module_refuses_what_is_no_distribution(prior, error, message):
    with pytest.raises(error, match=message):
        LabelSmoothingLoss(prior=prior)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_module_takes_a_distribution_of_any_precision(dtype):
    prior = draw((1000,), torch.float32).softmax(0).to(dtype)
    assert LabelSmoothingLoss(prior=prior).prior.dtype == dtype


def test_the_module_is_the_function_and_its_prior_a_buffer():
    prior = a_prior()
    loss = LabelSmoothingLoss(0.2, prior, ignore_index=1, reduction="sum")
    prior.zero_()  # the module has its own
    logits, labels = draw((4, K)), torch.tensor([0, 1, 2, 3])
    expected = label_smoothing_loss(
        logits, labels, smoothing=0.2, prior=a_prior(), ignore_index=1, reduction="sum"
    )
    assert torch.equal(loss(logits, labels), expected)
    assert list(loss.state_dict()) == ["prior"]
    assert loss.float().prior.dtype == torch.float32
    assert not LabelSmoothingLoss().state_dict()


def test_it_compiles_in_one_graph():
    loss = LabelSmoothingLoss(prior=a_prior())
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    logits = draw((4, K))
    labels = labels_for(logits)
    assert torch.equal(compiled(logits, labels), loss(logits, labels))
