"""Activation checkpointing changes memory and time, and nothing else."""

import copy

import pytest
import torch

from medsynth.config import NetworkOptions
from medsynth.networks import Condition, build_denoiser, checkpoint_activations

# At 8 voxels the coarsest level of volumes would be 2 thick, where oneDNN's bfloat16 gradients are wrong on some processors.
SIDE = 16


def build(rank):
    torch.manual_seed(0)
    options = NetworkOptions(channels=(32, 64), attention=(True, False), dropout=0.3)
    denoiser = build_denoiser(
        options, channels=1, size=(SIDE,) * rank, classes=3, augmentation_parameters=4, sigma_data=0.5
    )
    with torch.no_grad():  # the last layer begins at zero, and would pass no gradient on
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.train()


def inputs(rank):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 1, *[SIDE] * rank, generator=generator)
    return noisy, torch.tensor([0.3, 2.0]), Condition(torch.tensor([0, 2]), torch.zeros(2, 4))


def gradients(denoiser, rank, bfloat16):
    torch.manual_seed(7)  # of the dropout masks
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = denoiser(*inputs(rank)).square().mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in denoiser.named_parameters()}


def kept_bytes(denoiser):
    """Bytes that the forward pass keeps for the gradient, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(*inputs(2)).sum()
    return sum(kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_gradients_are_the_same_to_the_last_bit_with_the_same_dropout_masks(rank, bfloat16):
    expected = gradients(build(rank), rank, bfloat16)
    denoiser = build(rank)
    checkpoint_activations(denoiser)
    found = gradients(denoiser, rank, bfloat16)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_stay_exchangeable_and_copies_too():
    plain, checkpointed = build(2), build(2)
    checkpoint_activations(checkpointed)
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    copied = copy.deepcopy(checkpointed)  # as the average of the weights is made
    with torch.no_grad():
        next(checkpointed.unet.conv_in.parameters()).zero_()
    plain.load_state_dict(checkpointed.state_dict())
    noisy, sigma, condition = inputs(2)
    with torch.no_grad():
        same = [model.eval()(noisy, sigma, condition) for model in (plain, checkpointed)]
        other = copied.eval()(noisy, sigma, condition)
    assert torch.equal(*same)
    assert not torch.equal(other, same[0]), "a copy has weights of its own"


def test_less_memory_in_training_and_the_same_in_evaluation():
    plain, checkpointed = build(2), build(2)
    checkpoint_activations(checkpointed)
    assert kept_bytes(checkpointed) < 0.5 * kept_bytes(plain)
    assert kept_bytes(checkpointed.eval()) == kept_bytes(plain.eval())
