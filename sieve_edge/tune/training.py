"""The training loop: AdamW over the trainable tensors, early stopping, and a state on disk to go on from."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sieve_edge.errors import CalibrationError
from sieve_edge.model.tensors import write_tensors
from sieve_edge.progress import Progress

STATE = "training.safetensors"
_WARM_UP = 0.1
_CLIP = 1.0
_SAVING_SHARE = 0.05


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: Steps of the optimizer if nothing stops it earlier.
        learning_rate: Highest rate; it rises over the first tenth, then falls linearly to zero.
        evaluate_every: Steps between two looks at the selection split.
        patience: Looks without improvement after which to stop.
    """

    steps: int
    learning_rate: float
    evaluate_every: int
    patience: int

    def rate(self, step: int) -> float:
        """Say how fast to learn.

        Args:
            step: From 0.

        Returns:
            Learning rate.
        """
        warm = max(round(self.steps * _WARM_UP), 1)
        return self.learning_rate * min((step + 1) / warm, (self.steps - step) / max(self.steps - warm, 1))


@dataclass
class Log:
    """How far training is.

    Attributes:
        step: Steps done.
        best: Least loss on the selection split.
        best_step: Steps that were done then.
        looks: Step, mean training loss since the last look, and loss on the selection split, of each look.
    """

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    looks: list[tuple[int, float | None, float]] = field(default_factory=list)


def train(
    trained: Mapping[str, nn.Parameter],
    descend: Callable[[int], float],
    evaluate: Callable[[], float],
    schedule: Schedule,
    state: Path,
    progress: Progress,
) -> Log:
    """Train, and leave the best values in place.

    May be interrupted: the state is saved now and then, for at most a twentieth of the time, and the same call goes
    on from there with the same result.

    Args:
        trained: Name -> parameter.
        descend: Step -> the loss of that step's examples, its gradients added to the parameters.
        evaluate: Loss on the selection split, the less the better.
        schedule: Steps and rates.
        state: File of the state.
        progress: Where progress is shown.

    Returns:
        What happened. A loss on the selection split that is not finite before anything was trained is a
        ``CalibrationError``.
    """
    optimizer = torch.optim.AdamW(trained.values(), lr=schedule.learning_rate, weight_decay=0.0)
    log, best = _resume(trained, optimizer, state)
    started, saving = time.monotonic(), 0.0
    recent: list[float] = []
    with progress.task("tune", schedule.steps, "steps") as advance:
        advance(log.step)
        if not log.looks:
            _begin(log, evaluate(), trained, best, progress)
        while log.step < schedule.steps and _patient(log, schedule):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(log.step)
            optimizer.zero_grad()
            recent.append(descend(log.step))
            nn.utils.clip_grad_norm_(trained.values(), _CLIP)
            optimizer.step()
            log.step += 1
            progress.figures(loss=float(np.mean(recent)), selection=log.looks[-1][2])
            advance(1)
            if log.step % schedule.evaluate_every == 0 or log.step == schedule.steps:
                _look(log, evaluate(), float(np.mean(recent)), trained, best, progress)
                recent.clear()
                # Only here, so that a run that goes on computes what one that was not interrupted does.
                if saving <= _SAVING_SHARE * (time.monotonic() - started):
                    before = time.monotonic()
                    _save(trained, optimizer, log, best, state)
                    saving += time.monotonic() - before
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(best[name])
    return log


def _begin(
    log: Log, loss: float, trained: Mapping[str, nn.Parameter], best: dict[str, Tensor], progress: Progress
) -> None:
    # Later looks may fail, since there is something to go back to; this one has nothing to compare with.
    if not math.isfinite(loss):
        raise CalibrationError(
            f"tune: the loss on the selection split is {loss} before the first step, so nothing can be trained; the "
            "model overflows on these prompts: build with --set tune.method=none"
        )
    _look(log, loss, None, trained, best, progress)


def _look(
    log: Log,
    loss: float,
    trained_loss: float | None,
    trained: Mapping[str, nn.Parameter],
    best: dict[str, Tensor],
    progress: Progress,
) -> None:
    log.looks.append((log.step, trained_loss, loss))
    if loss < log.best:
        log.best, log.best_step = loss, log.step
        best.update({name: parameter.detach().clone() for name, parameter in trained.items()})
    told = "" if trained_loss is None else f"loss {trained_loss:.4f}, "
    progress.say(f"  step {log.step}: {told}selection {loss:.4f}, best {log.best:.4f} at step {log.best_step}")


def _patient(log: Log, schedule: Schedule) -> bool:
    return sum(look[0] > log.best_step for look in log.looks) < schedule.patience


def _save(
    trained: Mapping[str, nn.Parameter], optimizer: Any, log: Log, best: Mapping[str, Tensor], state: Path
) -> None:
    tensors = {f"best.{name}": value for name, value in best.items()}
    for name, parameter in trained.items():
        moments = optimizer.state[parameter]
        tensors |= {f"now.{name}": parameter.detach(), f"mean.{name}": moments["exp_avg"]}
        tensors[f"square.{name}"] = moments["exp_avg_sq"]
    write_tensors(state, tensors, {"log": json.dumps(asdict(log))})


def _resume(trained: Mapping[str, nn.Parameter], optimizer: Any, state: Path) -> tuple[Log, dict[str, Tensor]]:
    if not state.is_file():
        return Log(), {}
    opened: Any = safe_open(state, framework="pt")
    with opened as file, torch.no_grad():
        log = Log(**json.loads(file.metadata()["log"]))
        log.looks = [(step, trained_loss, loss) for step, trained_loss, loss in log.looks]
        for name, parameter in trained.items():
            parameter.copy_(file.get_tensor(f"now.{name}"))
            moments = {"exp_avg": f"mean.{name}", "exp_avg_sq": f"square.{name}"}
            values = {kind: file.get_tensor(stored).to(parameter.device) for kind, stored in moments.items()}
            optimizer.state[parameter] = values
            optimizer.state[parameter]["step"] = torch.tensor(float(log.step))
        return log, {name: file.get_tensor(f"best.{name}").to(each.device) for name, each in trained.items()}
