"""Products by oneDNN are those of torch, with the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from RATE_model.system import products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Products that oneDNN took, on whatever processor."""
    taken, by_onednn = [], products._by_onednn

    def counted(*operands):
        taken.append(operands)
        return by_onednn(*operands)

    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_LEAST", 2**20)
    monkeypatch.setattr(products, "_by_onednn", counted)
    return taken


def operands(rows: int):
    torch.manual_seed(0)
    return [torch.randn(*shape, requires_grad=True) for shape in ((rows, 8, 64), (96, 64), (96,))]


def passed(linear, tensors):
    x, weight, bias = tensors
    result = linear(x, weight, bias)
    transposed = linear(result, weight.t())  # of a view, and without a bias
    return result, *torch.autograd.grad(transposed.sin().sum(), tensors)


def test_values_and_gradients_are_those_of_torch(calls):
    tensors = operands(32)
    computed, expected = passed(products.linear, tensors), passed(F.linear, tensors)
    assert len(calls) == 6  # two forwards; of each, the gradient of what came in and of the weight
    for ours, theirs in zip(computed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(products.linear(*tensors), expected[0], rtol=1e-5, atol=1e-5)
    assert len(calls) == 7


def test_small_products_and_other_types_are_left_to_torch(calls):
    x, weight, bias = operands(1)
    assert products.linear(x, weight, bias).equal(F.linear(x, weight, bias))
    large = operands(32)
    products.linear(*(tensor.double() for tensor in large))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(*large).dtype == torch.bfloat16
    assert not calls


def test_strided_operands_are_read_as_they_are(calls):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, 16, 64)[:, ::2], torch.randn(96, 64), torch.randn(192)[::2]
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    assert calls


def test_parts_of_wider_matrices_are_copied_as_they_lie():
    """With them oneDNN takes a thousand times as long."""
    wide = torch.randn(6, 9)
    for part, dense in ((wide[:, :5], wide[:, :5].contiguous()), (wide[:, :5].t(), wide[:, :5].contiguous().t())):
        copy = products._dense(part)
        assert copy.equal(part) and copy.stride() == dense.stride()
    for whole in (wide, wide.t()):
        assert products._dense(whole) is whole


def test_a_layer_is_torchs_with_these_products(calls):
    layer, theirs = products.Linear(64, 96), torch.nn.Linear(64, 96)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(32, 8, 64)
    ours, expected = layer(x).relu_(), theirs(x).relu_()  # changed in place, as a view made by a Function cannot be
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    ours.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


def test_a_vector_is_left_to_torch(calls):
    x, weight = torch.randn(2048, requires_grad=True), torch.randn(1024, 2048)
    assert products.linear(x, weight).equal(F.linear(x, weight))
    products.linear(x, weight).sum().backward()
    assert not calls


@pytest.mark.parametrize("wider", ["inputs", "outputs"])
def test_the_gradient_of_a_weight_has_the_narrower_matrix_on_the_left(calls, wider):
    n, m = (200, 64) if wider == "inputs" else (64, 200)
    x, weight = torch.randn(2000, n), torch.randn(m, n, requires_grad=True)
    upper = torch.randn(2000, m)
    (ours,) = torch.autograd.grad(products.linear(x, weight), weight, upper)
    torch.testing.assert_close(ours, upper.t() @ x, rtol=1e-4, atol=1e-3)
    assert calls[-1][0].shape == (64, 2000)


def test_a_compiler_traces_nothing_but_the_product(calls, monkeypatch):
    """Reading /proc/cpuinfo would break the graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(products, "mkl_is_slow", lambda: pytest.fail("asked for the processor"))
    assert products.linear(*operands(32)).equal(F.linear(*operands(32)))
    assert not calls
