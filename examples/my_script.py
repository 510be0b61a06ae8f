"""A training loop of one's own, in any framework: `hpsearch run examples/my_script.yaml --allow 'my_script:*'`."""

import json
import math
import random

from hpsearch import RunningTrial


def objective(trial: RunningTrial) -> None:
    """Fit y = sin(x) by a polynomial with gradient descent; goes on from its checkpoint if there is one."""
    lr, degree = trial.params["lr"], trial.params["degree"]
    rng = random.Random(trial.seed)
    points = [(x / 20, math.sin(x / 20)) for x in range(-40, 41)]
    train, validation = points[::2], points[1::2]
    state = {"epoch": 0, "weights": [rng.gauss(0, 0.1) for _ in range(degree + 1)]}
    checkpoint = trial.checkpoint_dir / "state.json"
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
    while state["epoch"] < trial.epochs:
        for x, y in rng.sample(train, len(train)):
            error = predict(state["weights"], x) - y
            state["weights"] = [w - lr * error * x**k for k, w in enumerate(state["weights"])]
        state["epoch"] += 1
        checkpoint.write_text(json.dumps(state))
        errors = [predict(state["weights"], x) - y for x, y in validation]
        loss = sum(error * error for error in errors) / len(errors)
        trial.report(state["epoch"], val_loss=loss)  # raises hpsearch.TrialStopped when the trial is to stop


def predict(weights: list[float], x: float) -> float:
    """The polynomial's value."""
    return sum(w * x**k for k, w in enumerate(weights))
