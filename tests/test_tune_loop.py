"""Fine-tuning: its steps against plain torch, what it leads to, what it keeps, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ispasp.calibration import read
from ispasp.errors import ModelError
from ispasp.records import Progress
from ispasp.tuning.checkpoint import TuneState
from ispasp.tuning.drawing import generator_of, held_out, steps_of
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.records import EpochDone
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_distillation import SmallNet, mlp, narrow, objective_by_hand, pair
from tests.small_tuning import CPU, Words, batches, end, equal, normed, pictures, sentences, tuned, vectors

PLAIN = TuneSettings(epochs=2, batch_size=16, learning_rate=0.05, warmup=0.0, augment=False)


def transcribed(
    model: nn.Module, inputs: Tensor, labels: Tensor, settings: TuneSettings, epochs: int
) -> tuple[nn.Module, list[float]]:
    """The same training written down anew: cosine per step, decay of matrices alone, smoothed labels."""
    model = copy.deepcopy(model).train()
    chosen = held_out(len(inputs), settings.held_out, settings.seed)[1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    decay = settings.weight_decay
    parts = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    if settings.optimiser == "adamw":
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(parts, lr=settings.learning_rate)
    else:
        optimiser = torch.optim.SGD(parts, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    losses, step = [], 0
    for epoch in range(1, epochs + 1):
        order = steps_of(chosen, settings.batch_size, generator_of(settings.seed, "", epoch, "order"))
        total = 0.0
        for numbers in order:
            for group in optimiser.param_groups:
                share = step / (epochs * len(order))
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            loss = F.cross_entropy(model(inputs[list(numbers)]), labels[list(numbers)], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, step = total + loss.item() * len(numbers), step + 1
        losses.append(total / len(chosen))
    return model, losses


@pytest.mark.parametrize(("optimiser", "decay"), [("sgd", 5e-2), ("adamw", 0.3)])
def test_the_same_as_plain_torch(optimiser: str, decay: float) -> None:
    inputs, labels = vectors()
    # A bias before a batch norm has no gradient but rounding, which Adam would blow up to whole steps.
    model = (
        normed() if optimiser == "sgd" else nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    )
    states = list[TuneState]()
    settings = dataclasses.replace(PLAIN, optimiser=optimiser, weight_decay=decay)
    result = tuned(model, [(inputs, labels)], settings, keep=states.append)
    expected, losses = transcribed(model, inputs, labels, settings, 2)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(states[-1].weights[name], value, rtol=1e-5, atol=1e-6)
    assert [done.loss for done in result.curve] == pytest.approx(losses, rel=1e-5)
    held = held_out(90, 0.1, 0)[0]
    with torch.no_grad():
        loss = F.cross_entropy(expected.eval()(inputs[held]), labels[held], label_smoothing=0.1)
    assert result.curve[-1].held_out_loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.held_out == len(held) == 9


def test_learns_and_says_so() -> None:
    dense_inputs, labels = pictures(120)
    dense, model = SmallNet(), SmallNet(5).eval()
    evaluation = batches(*pictures(50))
    settings = TuneSettings(epochs=4, batch_size=16)
    work = tune_steps(
        model, dense.eval(), MemorySet([(dense_inputs, labels)]), evaluation, settings, device=CPU
    )
    result, events = end(work)
    curve = [event for event in events if isinstance(event, EpochDone)]
    assert tuple(curve) == result.curve and [done.epoch for done in curve] == [1, 2, 3, 4]
    assert result.best_epoch == max(done.epoch for done in curve if done.best)
    assert min(done.held_out_loss for done in curve) == curve[result.best_epoch - 1].held_out_loss
    assert curve[-1].held_out_loss < 0.7 * result.held_out_loss_before and not result.stopped
    assert all(done.accuracy is not None and done.agreement is not None for done in curve)
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1
    assert result.precision == "fp32" and result.seconds > 0
    with torch.no_grad():
        right = (result.model(dense_inputs).argmax(1) == labels).float().mean()
    assert right > 0.5 and not any(module.training for module in result.model.modules())


def test_accuracy_and_agreement_are_those_of_the_epoch() -> None:
    inputs, labels = vectors()
    dense, states = mlp(9), list[TuneState]()
    evaluation = read([(inputs[:50], labels[:50]), (inputs[50:], labels[50:])])
    result = tuned(mlp(4), [(inputs, labels)], PLAIN, dense, evaluation, keep=states.append)
    last = mlp(4)
    last.load_state_dict(states[-1].weights)
    predicted = last(inputs).argmax(1)
    assert result.curve[-1].accuracy == pytest.approx((predicted == labels).float().mean().item())
    assert result.curve[-1].agreement == pytest.approx(
        (predicted == dense(inputs).argmax(1)).float().mean().item()
    )
    without = tuned(mlp(4), [(inputs, labels)], PLAIN, None, read([inputs]))
    assert without.curve[-1].accuracy is None and without.curve[-1].agreement is None


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_share_towards_the_dense_model(share: float) -> None:
    pruned, dense, data = pair()
    inputs, labels = torch.cat(data), torch.arange(57) % 5
    settings = dataclasses.replace(PLAIN, distil=share, epochs=4, learning_rate=0.02)
    result = tuned(pruned, [(inputs, labels)], settings, dense)
    held = held_out(57, 0.1, 0)[0]
    towards = objective_by_hand(pruned, dense, [inputs[held]])
    with torch.no_grad():
        on_labels = F.cross_entropy(pruned(inputs[held]), labels[held], label_smoothing=0.1).item()
    expected = share * towards + (1 - share) * on_labels
    assert result.held_out_loss_before == pytest.approx(expected, rel=1e-4)
    assert isinstance(result.model, SmallNet) and result.best_epoch > 0
    if share == 1:
        after = objective_by_hand(result.model, dense, [inputs[held]])
        assert after < 0.7 * towards
        assert after == pytest.approx(result.curve[result.best_epoch - 1].held_out_loss, rel=1e-4)


def test_distillation_alone_never_reads_a_label() -> None:
    inputs, _ = pictures(40)
    dense = SmallNet().eval()
    pruned, settings = narrow(dense, 5), TuneSettings(epochs=1, batch_size=16, distil=1.0)
    with_wrong = tuned(pruned, [(inputs, torch.full((40,), 10**6))], settings, dense)
    without = tuned(pruned, [inputs], settings, dense)
    assert with_wrong.curve == without.curve
    assert equal(with_wrong.model.state_dict(), without.model.state_dict())


def test_models_and_random_state_are_left_alone() -> None:
    inputs, labels = vectors()
    pruned, dense = normed(dropout=0.3).train(), normed(20)
    before = [copy.deepcopy(model.state_dict()) for model in (pruned, dense)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    settings = dataclasses.replace(PLAIN, distil=0.5)
    work = tune_steps(pruned, dense, MemorySet([(inputs, labels)]), [], settings, device=CPU)
    for _ in range(9):
        next(work)
        assert torch.equal(torch.get_rng_state(), state)
    work.close()
    for model, kept in zip((pruned, dense), before, strict=True):
        assert equal(model.state_dict(), kept)
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert pruned.training


def test_what_passes_between_events_is_no_work() -> None:
    work = tune_steps(normed(), None, MemorySet([vectors()]), [], PLAIN, device=CPU)
    events = 0
    try:
        while True:
            next(work)
            events += 1
            time.sleep(0.03)  # paused
    except StopIteration as end:
        assert end.value.seconds < 0.015 * events
        assert [done.seconds > 0 for done in end.value.curve] == [True, True]


def test_same_seed_same_weights_with_dropout() -> None:
    inputs, labels = vectors()
    model = normed(dropout=0.5)
    first, again, other = (
        tuned(model, [(inputs, labels)], dataclasses.replace(PLAIN, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.curve == again.curve and equal(first.model.state_dict(), again.model.state_dict())
    assert [done.loss for done in first.curve] != [done.loss for done in other.curve]
    assert not first.model[0].weight.equal(model[0].weight)
    assert not any(module._forward_hooks for module in first.model.modules())


@pytest.mark.parametrize(
    ("rate", "warmup", "kept"), [(1e6, 0.0, "the weights it began with"), (10.0, 0.9, "")]
)
def test_divergence_keeps_the_best_weights(rate: float, warmup: float, kept: str) -> None:
    inputs, labels = vectors()
    model = mlp(8)
    settings = TuneSettings(
        epochs=20, batch_size=30, optimiser="sgd", learning_rate=rate, warmup=warmup, weight_decay=0.0
    )
    states = list[TuneState]()
    result = tuned(model, [(inputs / 3, labels)], settings, keep=states.append)
    expected = kept or f"the weights of epoch {result.best_epoch}"
    assert f"; {expected} are kept: try a lower rate." in result.stopped
    assert f"at a learning rate of up to {rate:g}" in result.stopped
    assert len(result.curve) < 20 and (result.best_epoch == 0) == bool(kept)
    best = model.state_dict() if kept else states[result.best_epoch - 1].weights
    assert equal(result.model.state_dict(), best)


def test_patience_and_stopping() -> None:
    inputs, labels = vectors(60)
    settings = dataclasses.replace(PLAIN, epochs=50, learning_rate=0.5, patience=2)
    result = tuned(normed(), [(inputs, labels)], settings)
    assert len(result.curve) == result.best_epoch + 2 < 50
    assert result.stopped.endswith(
        f"has not fallen for 2 epochs; the weights of epoch {result.best_epoch} are kept."
    )
    asked = iter([False] * 7 + [True])
    stopped = tuned(normed(), [(inputs, labels)], PLAIN, stop=lambda: next(asked))
    assert stopped.stopped.startswith("Stopped in epoch 2 of 2; the weights") and len(stopped.curve) == 1
    none = tuned(normed(), [(inputs, labels)], PLAIN, epochs=0)
    assert not none.curve and none.best_epoch == 0 and not none.stopped


def test_after_a_block_the_rate_stays() -> None:
    inputs, labels = vectors(40)
    result = tuned(normed(), [(inputs, labels)], PLAIN, stage="fc1", epochs=1)
    assert [(done.stage, done.epochs, done.learning_rate) for done in result.curve] == [("fc1", 1, 0.05)]
    at_the_end = tuned(normed(), [(inputs, labels)], PLAIN, epochs=1)
    assert at_the_end.curve[0].learning_rate < 0.05


def test_frozen_parameters_stay() -> None:
    inputs, labels = vectors()
    model = normed()
    model[0].requires_grad_(False)
    result = tuned(model, [(inputs, labels)], PLAIN)
    assert result.best_epoch > 0
    assert torch.equal(result.model[0].weight, model[0].weight) and not result.model[0].weight.requires_grad
    assert not torch.equal(result.model[4].weight, model[4].weight) and result.model[4].weight.requires_grad


@pytest.mark.parametrize("each", [False, True])
def test_keywords_masks_and_a_prediction_per_token(each: bool) -> None:
    data = sentences(80, each)
    model = Words(each=each).eval()
    settings = dataclasses.replace(PLAIN, epochs=10, optimiser="auto", learning_rate=3e-2)
    result = tuned(model, [data], settings, evaluation=read([data]))
    held = held_out(80, 0.1, 0)[0]
    losses = []
    for row in held:  # by hand: every sentence cut to its own length
        length = int(data["attention_mask"][row].sum())
        logits = model(data["tokens"][row : row + 1, :length], torch.ones(1, length))["logits"]
        target = data["labels"][row : row + 1, :length] if each else data["labels"][row : row + 1]
        losses.append(F.cross_entropy(logits.flatten(0, -2), target.flatten(), label_smoothing=0.1).item())
    assert result.held_out_loss_before == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.curve[-1].loss < 0.8 * result.held_out_loss_before
    assert (result.curve[-1].accuracy is None) == each
    distilled = tuned(Words(3, each).eval(), [data], dataclasses.replace(PLAIN, distil=1.0), model)
    assert distilled.curve[-1].loss < distilled.held_out_loss_before


def test_a_batch_norm_and_a_batch_of_one() -> None:
    inputs, labels = vectors(4)
    result = tuned(normed(), [(inputs, labels)], dataclasses.replace(PLAIN, batch_size=1))
    assert len(result.curve) == 2 and math.isfinite(result.curve[-1].loss)
    uneven = tuned(normed(), [(inputs, labels)], dataclasses.replace(PLAIN, batch_size=2))
    assert len(uneven.curve) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_trained_in_single_and_measured_in_their_own(dtype: torch.dtype) -> None:
    pruned, dense, data = pair()
    images = torch.cat(data).to(dtype)
    settings = dataclasses.replace(PLAIN, distil=1.0, epochs=4, learning_rate=0.02)
    result = tuned(pruned.to(dtype), [images], settings, dense.to(dtype), read([images]))
    assert result.best_epoch > 0
    kinds = {name: value.dtype for name, value in result.model.state_dict().items()}
    assert kinds == {name: value.dtype for name, value in pruned.state_dict().items()}
    held = held_out(57, 0.1, 0)[0]
    by_hand = objective_by_hand(
        copy.deepcopy(result.model).float(), copy.deepcopy(dense).float(), [images[held].float()]
    )
    assert result.curve[result.best_epoch - 1].held_out_loss == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_comes_close(precision: str) -> None:
    inputs, labels = vectors()
    model = mlp(16)
    single, mixed = (
        tuned(model, [(inputs, labels)], dataclasses.replace(PLAIN, precision=name, optimiser="sgd"))
        for name in ("fp32", precision)
    )
    assert mixed.precision == precision and mixed.curve[-1].loss == pytest.approx(
        single.curve[-1].loss, rel=0.05
    )
    assert mixed.curve[-1].loss != single.curve[-1].loss
    assert all(value.dtype == torch.float32 for value in mixed.model.state_dict().values())


def test_what_half_precision_cannot_hold_is_not_laid_on_the_weights() -> None:
    model, data = mlp(8), [vectors(40)]
    with torch.no_grad():
        model[0].weight.mul_(3e5)
        model[2].weight.mul_(1e-5)
    settings = dataclasses.replace(PLAIN, epochs=1, learning_rate=1e-6, precision="fp16")
    for precision in ("fp32", "bf16"):
        assert tuned(model, data, dataclasses.replace(settings, precision=precision)).curve
    with pytest.raises(ModelError, match=r"exceed the range of fp16 .*; set precision to bf16 or fp32\.$"):
        tuned(model, data, settings)
    with pytest.raises(ModelError, match="exceed the range of fp16"):
        tuned(mlp(4), data, dataclasses.replace(settings, distil=0.5), model)
    model[0].bias.data[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite on the training data; repair its weights"):
        tuned(model, data, settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_on_a_gpu(precision: str, share: float) -> None:
    inputs, labels = pictures(120)
    dense = SmallNet().eval()
    pruned, states = narrow(dense, 5), list[TuneState]()
    settings = TuneSettings(epochs=3, batch_size=16, precision=precision, distil=share)
    training, gpu = MemorySet([(inputs, labels)]), torch.device("cuda:0")

    def work(**more: object) -> object:
        return tune_steps(pruned, dense, training, batches(inputs, labels), settings, device=gpu, **more)

    result, _ = end(work(keep=states.append))
    assert next(result.model.parameters()).device.type == "cuda"
    assert result.curve[-1].held_out_loss < result.held_out_loss_before
    resumed, _ = end(work(state=states[1]))
    assert resumed.curve == result.curve
    assert equal(resumed.model.state_dict(), result.model.state_dict())


def test_images_alone_are_varied_and_only_where_that_is_asked_for() -> None:
    dense = SmallNet().eval()
    losses = {}
    for name, model, data in (("images", narrow(dense, 5), pictures(40)), ("vectors", mlp(4), vectors(40))):
        for augment in (True, False):
            settings = dataclasses.replace(PLAIN, epochs=1, augment=augment)
            losses[name, augment] = tuned(model, [data], settings).curve[0].loss
    assert losses["images", True] != losses["images", False]
    assert losses["vectors", True] == losses["vectors", False]
