"""The sharded head on one process; tests/integration/test_sharded.py has several."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import network

from fingerprint_accel.config import LossConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses import margin as margin_module
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.losses.margin import IdentityHead, random_class_vectors
from fingerprint_accel.losses.sharded import ShardedHead, slice_of_classes
from fingerprint_accel.models.deepprint import Output


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def losses_and_gradients(config, embedding, finger, classes, margin=None):
    torch.manual_seed(0)
    loss = DeepPrintLoss(config, network("Tex", embedding.shape[1]), classes)
    leaf = embedding.clone().requires_grad_()
    result = loss(Output(leaf), finger, None, None, margin)
    result.total.backward()
    return result.parts["identity_texture"], leaf.grad, [parameter.grad for parameter in loss.parameters()]


@pytest.mark.parametrize("head", ["softmax", "arcface", "cosface"])
@pytest.mark.parametrize("nested", [(), (4, 8)], ids=["whole", "nested"])
@pytest.mark.parametrize("margin", [None, 1.3])
def test_it_is_the_head_that_is_held_whole(head, nested, margin):
    """Without a process group; a margin beyond pi is among the angles."""
    embedding, finger = unit(40, 16, dtype=torch.float32), torch.arange(40) % 7
    plain = LossConfig(head=head, scale=4.0, margin=0.3, matryoshka_dims=nested, center_weight=0.0)
    sharded = LossConfig(head=head, scale=4.0, margin=0.3, matryoshka_dims=nested, center_weight=0.0, sharded=True)
    found, wanted = (losses_and_gradients(config, embedding, finger, 7, margin) for config in (sharded, plain))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_what_is_above_the_filter_does_not_count():
    """Neither in the loss nor in gradients; the own finger always does."""
    torch.manual_seed(0)
    head = ShardedHead(8, 6, "cosface", scale=4.0, margin=0.2, filter_threshold=0.4).double()
    embedding, finger = unit(30, 8).requires_grad_(), torch.arange(30) % 6
    cosine = embedding @ F.normalize(head.weight, dim=1).T
    own = F.one_hot(finger, 6).bool()
    dropped = (cosine > 0.4) & ~own
    assert 10 < int(dropped.sum()) < 100
    assert int(((cosine > 0.4) & own).sum()) > 2
    wanted = F.cross_entropy((4 * (cosine - 0.2 * own)).masked_fill(dropped, -math.inf), finger)
    gradients = torch.autograd.grad(wanted, (embedding, head.weight))
    found = head([embedding], finger)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, (embedding, head.weight)), gradients)


def test_a_finger_that_nobody_has_gives_nan():
    head = ShardedHead(8, 6, "cosface", scale=4.0, margin=0.2)
    assert head([unit(2, 8, dtype=torch.float32)], torch.tensor([1, 6])).isnan()


def sampled(kind="cosface", classes=200, sampling=0.1):
    torch.manual_seed(0)
    head = ShardedHead(16, classes, kind, scale=4.0, margin=0.2, sampling=sampling)
    parameters = [*head.parameters(), *head.trained()]
    return head, torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("kind", ["softmax", "cosface"])
def test_a_sample_is_a_smaller_head(kind):
    """Loss, gradients and update are those of a head with the drawn classes alone; the rest stays as it was."""
    head, optimizer = sampled(kind)
    embedding, finger = unit(12, 16, dtype=torch.float32), torch.arange(12) * 16
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.draw(finger, optimizer)
    rows = head._drawn_rows
    assert len(rows) == 20
    assert set(finger.tolist()) <= set(rows.tolist())
    small = IdentityHead(16, 20, kind, 4.0, 0.2)
    small.load_state_dict({name: tensor[rows] for name, tensor in before.items()})
    small_optimizer = torch.optim.AdamW(small.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    slots = torch.searchsorted(rows, finger)
    for part in (slice(0, 4), slice(4, 12)):  # micro-batches of unlike size
        loss = head([embedding[part]], finger[part])
        wanted = small([embedding[part]], slots[part])
        torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=0)
        loss.backward()
        wanted.backward()
    for drawn, own in zip(head.trained(), small.parameters(), strict=True):
        torch.testing.assert_close(drawn.grad, own.grad, atol=1e-6, rtol=0)
    for each in (optimizer, small_optimizer):
        each.step()
        each.zero_grad()
    head.put_back(optimizer)
    others = torch.ones(200, dtype=torch.bool).index_fill_(0, rows, False)
    for name, own in small.named_parameters():
        whole = head.get_parameter(name)
        torch.testing.assert_close(whole[rows], own, atol=1e-6, rtol=0)
        assert torch.equal(whole[others], before[name][others])
        first, second = optimizer.state[whole], small_optimizer.state[own]
        torch.testing.assert_close(first["exp_avg"][rows], second["exp_avg"], atol=1e-6, rtol=0)
        assert not first["exp_avg"][others].any()


def test_samples_differ_and_grow_with_the_prints():
    """Also while the graph of the update before is still alive; classes come with what the optimizer knows of them."""
    head, optimizer = sampled(classes=100)
    drawn, kept = [], []
    for count in (5, 5, 40):
        finger = torch.randperm(100)[:count]
        head.draw(finger, optimizer)
        rows = head._drawn_rows
        assert len(rows) == max(10, count)
        for name, whole in head.named_parameters():
            for entry, value in optimizer.state[head.drawn[name]].items():
                if value.ndim:
                    assert torch.equal(value, optimizer.state[whole][entry][rows])
        kept.append(head([unit(count, 16, dtype=torch.float32)], finger))
        kept[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        head.put_back(optimizer)
        drawn.append(rows.tolist())
    assert drawn[0] != drawn[1]
    assert optimizer.state[head.weight]["step"].item() == 3
    assert list(head.state_dict()) == ["weight"]
    assert all(not len(parameter) for parameter in head.trained()), "copies are freed"


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_slices_make_up_the_whole(processes, monkeypatch):
    slices = [slice_of_classes(7, rank, processes) for rank in range(processes)]
    assert [row for rows in slices for row in range(rows.start, rows.stop)] == list(range(7))
    monkeypatch.setattr(margin_module, "ROWS_AT_ONCE", 2)
    parts = []
    for rows in [slice(None), *slices]:
        torch.manual_seed(5)
        parts.append(random_class_vectors(7, 16, rows))
    assert torch.equal(torch.cat(parts[1:]), parts[0])


def test_there_are_no_centres_that_nobody_asked_for():
    names = [list(DeepPrintLoss(LossConfig(center_weight=w), network("Tex", 4), 5).state_dict()) for w in (0.0, 0.1)]
    head = ["heads.texture.weight", "heads.texture.bias"]
    assert names == [head, [*head, "centers.texture.centers"]]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"class_sample_rate": 0.5}, "loss.class_sample_rate needs loss.sharded: add --loss.sharded"),
        (
            {"interclass_filter_threshold": 0.4, "head": "cosface"},
            "loss.interclass_filter_threshold needs loss.sharded",
        ),
        ({"interclass_filter_threshold": 0.4, "sharded": True}, "choose --loss.head arcface or cosface"),
        ({"class_sample_rate": 0.0, "sharded": True}, "must be above 0 and at most 1"),
    ],
)
def test_knobs_that_do_not_go_together(knobs, message):
    with pytest.raises(UserError, match=message):
        LossConfig(**knobs)


def test_more_processes_than_fingers(monkeypatch):
    monkeypatch.setattr("fingerprint_accel.losses.sharded.rank_and_world_size", lambda: (0, 8))
    with pytest.raises(UserError, match="7 fingers cannot be shared by 8 processes"):
        ShardedHead(4, 7, "cosface", 4.0, 0.1)
