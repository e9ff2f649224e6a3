"""The patch discriminator: shapes, gradients, what a logit sees."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from lddgan.networks.patch_discriminator import PatchDiscriminator

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("size", "patches"), [(32, 2), (64, 6), (256, 30)])
def test_patches(size, patches):
    discriminator = PatchDiscriminator(width=64 if size == 32 else 8)
    with torch.no_grad():
        assert discriminator(torch.randn(2, 3, size, size)).shape == (2, 1, patches, patches)


def test_widths_groups_and_initial_weights():
    parts = list(PatchDiscriminator().net)
    convs = [m for m in parts if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in parts if isinstance(m, torch.nn.GroupNorm)]
    assert [m.out_channels for m in convs] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convs] == [2, 2, 2, 1, 1]
    assert all(m.kernel_size == (4, 4) and m.padding == (1, 1) for m in convs)
    assert [(m.num_groups, m.num_channels) for m in norms] == [(32, 128), (32, 256), (32, 512)]
    assert [m.negative_slope for m in parts if isinstance(m, torch.nn.LeakyReLU)] == [0.2] * 4
    for conv in convs:
        deviation = 6 * 0.02 / (2 * conv.weight.numel()) ** 0.5  # of a deviation, six times
        assert conv.weight.std().item() == pytest.approx(0.02, abs=deviation)
        assert abs(conv.weight.mean().item()) < 6 * 0.02 / conv.weight.numel() ** 0.5
        assert not conv.bias.any()
    deep = [m.out_channels for m in PatchDiscriminator(2, 5).net if isinstance(m, torch.nn.Conv2d)]
    assert deep == [2, 4, 8, 16, 16, 16, 1]


@pytest.mark.parametrize("width", [2, 3, 4, 5, 12, 48, 64])
def test_narrow_discriminators_keep_two_channels_in_a_group(width):
    for module in PatchDiscriminator(width).net:
        if isinstance(module, torch.nn.GroupNorm):
            assert module.num_groups <= 32 and module.num_channels >= 2 * module.num_groups


def test_gradients_of_the_patch_discriminator():
    # 16 pixels are too few for three halvings; the weights are widened so that all logits matter.
    discriminator = PatchDiscriminator(width=4, layers=2).double()
    names = [name for name, _ in discriminator.named_parameters()]
    weights = [5 * p.detach() + 0.1 * torch.randn_like(p) for p in discriminator.parameters()]

    def logits(image, *parameters):
        return functional_call(discriminator, dict(zip(names, parameters, strict=True)), image)

    inputs = (doubles(2, 3, 16, 16), *(w.requires_grad_() for w in weights))
    assert logits(*inputs).shape == (2, 1, 2, 2) and logits(*inputs).std() > 0.1
    assert gradcheck(logits, inputs, fast_mode=True)


def test_a_logit_sees_seventy_pixels():
    discriminator = PatchDiscriminator(width=4)
    for index, module in enumerate(discriminator.net):  # which see the whole image
        if isinstance(module, torch.nn.GroupNorm):
            discriminator.net[index] = torch.nn.Identity()
    discriminator.double()
    image = doubles(1, 3, 128, 128)
    logits = discriminator(image)
    row, column = 6, 5
    (gradient,) = torch.autograd.grad(logits[0, 0, row, column], image)
    rows, columns = gradient[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    top, left = 8 * row - 23, 8 * column - 23  # strides of 2^3; pads of 1 + 2 + 4 + 8 + 8 pixels
    assert (rows.min(), rows.max()) == (top, top + 69)
    assert (columns.min(), columns.max()) == (left, left + 69)
    assert len(rows) == 70 * 70

    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[top : top + 70, left : left + 70] = False
    with torch.no_grad():
        far = discriminator(image + 10 * outside)
        assert far[0, 0, row, column] == logits[0, 0, row, column]
        assert not torch.equal(far, logits)
        for y, x in ((top, left), (top + 69, left + 69)):
            near = image.clone()
            near[:, :, y, x] += 10
            assert discriminator(near)[0, 0, row, column] != logits[0, 0, row, column]


def test_logits_do_not_depend_on_the_other_images():
    discriminator = PatchDiscriminator(width=8).train()
    image = torch.randn(3, 3, 32, 32, requires_grad=True)
    logits = discriminator(image)
    other = torch.cat([image[:1], 100 * torch.randn(2, 3, 32, 32) + 7])
    assert torch.equal(discriminator(other)[0], logits[0])
    torch.testing.assert_close(discriminator(image[:1])[0], logits[0])
    (gradient,) = torch.autograd.grad(logits[0].sum(), image)
    assert gradient[0].any() and not gradient[1:].any()
