"""What the command line shows: numbers in few characters, tables, a live line of progress."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def show_json(document: Any) -> None:
    """Print a document for programs: JSON, nothing else."""
    print(json.dumps(document, indent=1))  # noqa: T201


def number(value: Any) -> str:
    """A value in few characters: four significant digits for floats."""
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return "–" if value is None else escape(str(value))
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def params(values: dict[str, Any]) -> str:
    """``lr 0.001, reg 0.1``."""
    return ", ".join(f"{escape(name)} {number(value)}" for name, value in values.items())


def duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``3 min 20 s``, ``12 s``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def study_table(studies: list[dict[str, Any]]) -> Table:
    """One row per study."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("study", "state", "stage", "trials", "best", "eta"):
        table.add_column(name, justify="right" if name in ("trials", "best", "eta") else "left")
    for s in studies:
        progress = s["progress"]
        best = number(s["best"]["value"]) if s["best"] else "–"
        trials = f"{progress['finished']}/{progress['planned']}"
        table.add_row(escape(s["name"]), s["state"], escape(s["stage"]), trials, best, duration(s["eta_seconds"]))
    return table


def stage_table(study: dict[str, Any]) -> Table:
    """One row per stage: its ranges and how its trials ended."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "state", "trials", "epochs", "space", "ended as"):
        table.add_column(name)
    for stage in study["stages"]:
        ranges = "\n".join(f"{escape(name)} {_range(param)}" for name, param in stage["space"].items())
        counts = ", ".join(f"{n} {state}" for state, n in stage["counts"].items() if n)
        if stage["n_inherited"]:
            counts += f", {stage['n_inherited']} inherited"
        table.add_row(
            escape(stage["name"]), stage["state"], str(stage["n_trials"]), str(stage["epochs"]), ranges, counts
        )
    return table


def _range(param: dict[str, Any]) -> str:
    if "choices" in param:
        return escape(", ".join(str(choice) for choice in param["choices"]))
    return f"{number(param['low'])} … {number(param['high'])}{' log' if param.get('log') else ''}"


def flag_lines(flags: list[dict[str, Any]]) -> list[str]:
    """One sentence per flag, or one that says there are none."""
    if not flags:
        return ["no flags: the best trials do not crowd at a border"]
    return [f"[yellow]⚑[/] {f['level']}, stage {escape(f['stage'])}: {escape(f['message'])}{_seen(f)}" for f in flags]


def _seen(flag: dict[str, Any]) -> str:
    noted = flag["acknowledged"]
    if flag["passed_by"]:
        return f" [dim](the stage {escape(flag['passed_by'])} went past it)[/]"
    return "" if noted is None else f" [dim](seen{': ' if noted['note'] else ''}{escape(noted['note'])})[/]"


def proposal_lines(study: str, proposals: list[dict[str, Any]]) -> list[str]:
    """What may be opened next, and how."""
    if not proposals:
        return ["no stage is proposed now"]
    lines = []
    for p in proposals:
        ranges = ", ".join(f"{escape(name)} {_range(param)}" for name, param in p["space"].items())
        lines += [
            f"proposed: [bold]{escape(p['name'])}[/], {p['n_trials']} trials of {p['epochs']} epochs over {ranges}",
            f"  {escape(p['reason'])}; open it: [cyan]hpsearch open {escape(study)} {escape(p['name'])}[/]",
        ]
    return lines


def analysis_lines(analysis: dict[str, Any]) -> list[str]:
    """What the statistics say, a line each."""
    lines = []
    for narrowing in analysis["narrowings"]:
        lines.append(f"[bold]from {escape(narrowing['parent'])} to {escape(narrowing['stage'])}[/]")
        lines += [f"  {escape(p['parameter'])}: {escape(p['reason'])}" for p in narrowing["parameters"]]
    for seen in analysis["agreements"]:
        agreement = seen["agreement"]
        if agreement["spearman"] is not None:
            places = dict.fromkeys((seen["stage"], seen["against"]))
            where = escape(" and ".join(places))
            shared = f"{agreement['overlap']:.0%} of the best {agreement['top']} shared"
            text = f"rank correlation {agreement['spearman']:.2f}, {shared}"
            lines.append(f"[bold]{where}[/], {agreement['epochs']} against {agreement['of']} epochs: {text}")
        if agreement["warning"]:
            lines.append(f"  [yellow]![/] {escape(agreement['warning'])}")
    for place, finalist in enumerate(analysis["finalists"], 1):
        text = f"{number(finalist['mean'])}"
        if finalist["interval"]:
            low, high = finalist["interval"]
            text += f" (90 %: {number(low)} … {number(high)})"
        if finalist["probability_best"] is not None:
            text += f", best with probability {finalist['probability_best']:.0%}"
        if finalist["optimism"] is not None:
            text += f", {number(finalist['optimism'])} less than what it was chosen for"
        lines.append(f"[bold]finalist {place}[/] {params(finalist['params'])}: {text} ({finalist['n']} seeds)")
    return lines or ["nothing to say yet: too few trials have completed"]


_MARKS = {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}


def check_lines(checks: list[dict[str, Any]]) -> list[str]:
    """The checks before the first stage: those that passed in one line, the others one by one."""
    if not checks:
        return []
    passed = [escape(check["name"]) for check in checks if check["status"] == "pass"]
    lines = [f"preflight {_MARKS['pass']} {', '.join(passed)}"] if passed else []
    rest = [check for check in checks if check["status"] != "pass"]
    return lines + [
        f"preflight {_MARKS[check['status']]} {escape(check['name'])}: {escape(check['message'])}" for check in rest
    ]


def doctor_line(name: str, status: str, message: str) -> str:
    """A check of this machine and what it works with."""
    return f"{_MARKS[status]} [bold]{escape(name)}[/]: {escape(message)}"


def verdict_line(verdicts: Counter[str]) -> str:
    """How often each verdict was given."""
    if not verdicts:
        return "no verdicts"
    return "verdicts: " + ", ".join(f"{n} {escape(name)}" for name, n in verdicts.most_common())


def best_lines(study: dict[str, Any]) -> list[str]:
    """The winner in words."""
    best, metric = study["best"], study["spec"]["metric"]["name"]
    if best is None:
        return ["no trial has completed"]
    value = number(best["value"])
    if best["n"]:
        spread = f" ± {number(best['spread'])}" if best["spread"] is not None else ""
        value = f"{value}{spread} (mean of {best['n']} seeds)"
    return [
        f"[bold]{escape(metric)} {value}[/]  in trial {best['trial']} of stage {escape(best['stage'])}",
        *(f"  {escape(name)} = {escape(repr(value))}" for name, value in best["params"].items()),
    ]


def winner(study: dict[str, Any], *, replay: str) -> Panel:
    """The end of a run: the winner, the flags, and how to train it again."""
    lines = [*best_lines(study), "", *flag_lines(study["flags"])]
    if study["best"] is not None:
        lines += ["", f"train it again: [cyan]{escape(replay)}[/]"]
    return Panel("\n".join(lines), title=escape(f"{study['name']}: {study['state']}"), title_align="left", expand=False)


class LiveProgress:
    """A line that moves in a terminal; elsewhere a line of text now and then."""

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[trials]} trials  best {task.fields[best]}  eta {task.fields[eta]}"),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task: TaskID | None = None
        self._said = -1

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, study: dict[str, Any]) -> None:
        """Show a study's document."""
        progress = study["progress"]
        fields: dict[str, Any] = {
            "stage": escape(study["stage"]),
            "trials": f"{progress['finished']}/{progress['planned']}",
            "best": number(study["best"]["value"]) if study["best"] else "–",
            "eta": duration(study["eta_seconds"]),
        }
        if self._task is None:
            self._task = self._bar.add_task("", total=1.0, **fields)
        self._bar.update(self._task, completed=progress["fraction"], **fields)
        tenth = int(10 * progress["fraction"])
        if not out.is_terminal and tenth > self._said:
            self._said = tenth
            out.print("stage {stage}: {trials} trials, best {best}, eta {eta}".format(**fields), soft_wrap=True)


def replay_table(replayed: dict[str, Any]) -> Table:
    """A row per epoch: what was recorded, and what the same trial gave again."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=params(replayed["params"]), title_justify="left")
    every = sorted(replayed["steps"][0]["replayed"]) if replayed["steps"] else []
    names = [name for name in every if not name.endswith("_std") and "/" not in name]
    for name in ("epoch", *names):
        table.add_column(name, justify="right")
    for step in replayed["steps"]:
        recorded = step["recorded"] or {}
        cells = []
        for name in names:
            again, before = step["replayed"][name], recorded.get(name)
            cells.append(
                number(again) if number(again) == number(before) else f"{number(again)} (was {number(before)})"
            )
        table.add_row(str(step["step"]), *cells)
    return table
