"""How long until a page of many trials says something? Ours beside Optuna Dashboard, on equal trials, in Chromium.

python -m benchmarks.pages [--trials 10000 100000] [--repeats 5] [--write]

Both servers keep the same trials in SQLite and are started anew for each size. "Cold" is the first page that a server
gives, in a fresh browser; "warm" the median of the following ones, each in a fresh browser context (no cache). Measured
in the browser, from the start of navigation: until the conclusion (ours) or the study's name (theirs) can be read, and
until the first figure shows points.
"""

from __future__ import annotations

import argparse
import math
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from benchmarks.verdicts import write
from hpsearch.coordinator import Coordinator
from hpsearch.spec import parse_study
from hpsearch.trial import TrialState
from hpsearch_storage import open_store

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SPACE = {
    "lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
    "reg": {"type": "float", "low": 1e-5, "high": 1e3, "log": True},
    "dropout": {"type": "float", "low": 0.0, "high": 0.8},
}
CHUNK = 5000
OURS_READ = "document.querySelector('#conclusion') && document.querySelector('.trials tbody tr') && performance.now()"
OURS_DRAWN = "document.querySelector('figure[data-drawn]') && performance.now()"
THEIRS_READ = "document.body?.innerText.includes('bench') && performance.now()"
THEIRS_DRAWN = (
    "document.querySelector('.js-plotly-plot .point, .js-plotly-plot canvas, .js-plotly-plot .scatterlayer .trace')"
    " && performance.now()"
)


def draw(n: int) -> tuple[list[dict[str, float]], list[float]]:
    """Params and values of trials on a bowl with noise."""
    rng = np.random.default_rng(0)
    lr, reg, dropout = 10 ** rng.uniform(-6, -1, n), 10 ** rng.uniform(-5, 3, n), rng.uniform(0, 0.8, n)
    values = 0.6 - 0.02 * (np.log10(lr) + 3) ** 2 - 0.004 * (np.log10(reg) + 1) ** 2 + rng.normal(0, 0.02, n)
    names = ("lr", "reg", "dropout")
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in (lr, reg, dropout)), strict=True)
    ], values.tolist()


def fill_ours(url: str, params: list[dict[str, float]], values: list[float]) -> None:
    store = open_store(url, exclusive=True)
    document = {
        "name": "bench",
        "objective": {"kind": "external"},
        "metric": {"name": "val_accuracy", "direction": "maximize"},
        "space": SPACE,
        "stages": [{"name": "coarse", "trials": 10, "epochs": 1}],
    }
    study, _ = Coordinator(store).submit(parse_study(document))
    stage = store.stages(study.id)[0]
    now = datetime.now(UTC)
    for first in range(0, len(params), CHUNK):
        given = zip(params[first : first + CHUNK], values[first : first + CHUNK], strict=True)
        store.add_finished(stage.id, [(dict(p), TrialState.COMPLETED, v) for p, v in given], now=now)
    store.close()


def fill_theirs(url: str, params: list[dict[str, float]], values: list[float]) -> None:
    """The same trials in Optuna's own tables, in bulk: its API takes half an hour for 100,000."""
    import optuna
    from optuna.distributions import FloatDistribution, distribution_to_json
    from optuna.storages._rdb import models as tables
    from optuna.trial import TrialState as State

    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(storage=storage, study_name="bench", direction="maximize")
    scales = {name: FloatDistribution(p["low"], p["high"], log=bool(p.get("log"))) for name, p in SPACE.items()}
    now = datetime.now()
    with storage.scoped_session() as session:
        for first in range(0, len(params), CHUNK):
            numbers = range(first, min(first + CHUNK, len(params)))
            session.bulk_insert_mappings(
                tables.TrialModel,
                [
                    {
                        "trial_id": n + 1,
                        "number": n,
                        "study_id": study._study_id,
                        "state": State.COMPLETE,
                        "datetime_start": now,
                        "datetime_complete": now + timedelta(seconds=1),
                    }
                    for n in numbers
                ],
            )
            session.bulk_insert_mappings(
                tables.TrialValueModel,
                [
                    {
                        "trial_id": n + 1,
                        "objective": 0,
                        "value": values[n],
                        "value_type": tables.TrialValueModel.TrialValueType.FINITE,
                    }
                    for n in numbers
                ],
            )
            session.bulk_insert_mappings(
                tables.TrialParamModel,
                [
                    {
                        "trial_id": n + 1,
                        "param_name": name,
                        "param_value": params[n][name],
                        "distribution_json": distribution_to_json(scale),
                    }
                    for n in numbers
                    for name, scale in scales.items()
                ],
            )
            session.commit()


def start(command: Sequence[str], url: str, folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1)
        except OSError:
            time.sleep(0.1)
        else:
            return process
    process.kill()
    raise SystemExit(f"{command[0]} does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def look(browser: Browser, url: str, *, read: str, drawn: str, timeout: float) -> tuple[float, float]:
    """Seconds until the page can be read, and until its first figure shows points; infinite after ``timeout``."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    found = []
    try:
        page.goto(url, wait_until="commit", timeout=1000 * timeout)
        end = time.monotonic() + timeout
        for test in (read, drawn):
            at = None
            while not at and time.monotonic() < end:  # page.wait_for_function needs a policy with unsafe-eval
                at = page.evaluate(test)
                page.wait_for_timeout(0 if at else 20)
            found.append(at / 1000 if at else math.inf)
    finally:
        context.close()
    return found[0], found[1]


def measure(browser: Browser, n: int, *, repeats: int, timeout: float) -> list[list[str]]:
    params, values = draw(n)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in ("hpsearch", "optuna-dashboard"):
            port, url = free_port(), f"sqlite:///{folder / label}.db"
            home = f"http://127.0.0.1:{port}"
            if label == "hpsearch":
                fill_ours(url, params, values)
                command = [sys.executable, "-m", "hpsearch", "serve", "--port", str(port), "--store", url]
                page, read, drawn = f"{home}/studies/bench", OURS_READ, OURS_DRAWN
            else:
                fill_theirs(url, params, values)
                command = [str(Path(sys.executable).with_name("optuna-dashboard")), url, "--port", str(port)]
                page, read, drawn = f"{home}/dashboard/studies/1", THEIRS_READ, THEIRS_DRAWN
            process = start(command, f"{home}/healthz" if label == "hpsearch" else home, folder)
            try:
                cold = look(browser, page, read=read, drawn=drawn, timeout=timeout)
                n_warm = repeats if math.isfinite(cold[1]) else 1  # what never comes need not be waited for often
                warm = [look(browser, page, read=read, drawn=drawn, timeout=timeout) for _ in range(n_warm)]
            finally:
                process.terminate()
                process.wait()
            medians = [statistics.median(one[i] for one in warm) for i in (0, 1)]
            rows.append([f"{n:,}", label, *(seconds(s) for s in (*cold, *medians))])
            print(*rows[-1], sep="  ", flush=True)
            if label == "hpsearch":
                ours = medians
            else:
                ratios = [ratio(theirs, mine, timeout) for theirs, mine in zip(medians, ours, strict=True)]
                print(f"{n:,} trials: ours is {' and '.join(ratios)} as fast", flush=True)
                rows.append([f"{n:,}", "ratio", "", "", *ratios])
    return rows


def seconds(value: float) -> str:
    return f"{value:.2f} s" if math.isfinite(value) else "never"


def ratio(theirs: float, ours: float, timeout: float) -> str:
    return f"{theirs / ours:.1f} ×" if math.isfinite(theirs) else f"> {timeout / ours:.0f} ×"


def report(rows: list[list[str]], repeats: int, timeout: float) -> str:
    head = ["trials", "", "readable, cold", "figure, cold", "readable, warm", "figure, warm"]
    lines = [" | ".join(["", *row, ""]).strip() for row in [head, ["--:", "---", *["--:"] * 4], *rows]]
    about = (
        f"`python -m benchmarks.pages --write`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Chromium headless, "
        f"warm: median of {repeats}. Readable: the conclusion and the table (theirs: the study's name) stand there. "
        f"Figure: the first one shows points. Never: not within {timeout:g} s."
    )
    return "\n".join(["## Pages", "", about, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds after which a page counts as never")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        found = Path("/usr/bin/chromium")
        path = found if found.exists() else playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        rows = [r for n in asked.trials for r in measure(browser, n, repeats=asked.repeats, timeout=asked.timeout)]
        browser.close()
    text = report(rows, asked.repeats, asked.timeout)
    print(text)
    if asked.write:
        write(text)


if __name__ == "__main__":
    main()
