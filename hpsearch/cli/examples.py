"""What each command is called like, for its help; a test parses every line."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("hpsearch init iris.csv --label species", "hpsearch init photos -o photos.yaml"),
    "run": ("hpsearch run study.yaml", "hpsearch run examples/my_script.yaml --allow 'my_script:*' --workers 4"),
    "serve": ("hpsearch serve --workers 2", "hpsearch serve --store postgresql://hpsearch@db/hpsearch --host 0.0.0.0"),
    "worker": ("hpsearch worker --server http://gpu-1:8765", "hpsearch worker --device cuda:1 --allow './train.sh'"),
    "submit": ("hpsearch submit study.yaml --server http://gpu-1:8765",),
    "status": ("hpsearch status", "hpsearch status digits --json"),
    "best": ("hpsearch best digits",),
    "flags": ("hpsearch flags digits",),
    "acknowledge": ("hpsearch acknowledge digits lr high --note 'no larger rate is stable'",),
    "stages": ("hpsearch stages digits",),
    "analysis": ("hpsearch analysis digits",),
    "open": ("hpsearch open digits", "hpsearch open digits fine --trials 30 --set lr.high=0.1"),
    "pause": ("hpsearch pause digits",),
    "resume": ("hpsearch resume digits",),
    "cancel": ("hpsearch cancel digits",),
    "delete": ("hpsearch delete digits --yes",),
    "export": ("hpsearch export digits --format parquet -o digits.parquet",),
    "import": ("hpsearch import digits.study", "hpsearch import sqlite:///optuna.db --study mine --into study.yaml"),
    "test": ("hpsearch test digits",),
    "replay": ("hpsearch replay digits 123",),
    "doctor": ("hpsearch doctor", "hpsearch doctor --server http://gpu-1:8765 --json"),
    "db upgrade": ("hpsearch db upgrade --store postgresql://hpsearch@db/hpsearch",),
    "db check": ("hpsearch db check",),
    "db backup": ("hpsearch db backup monday.db",),
    "db restore": ("hpsearch db restore monday.db --replace",),
    "db thin": ("hpsearch db thin --older-than 90d --keep-every 10 --dry-run",),
    "token create": ("hpsearch token create gpu-boxes --scope work --expires 90d",),
    "token list": ("hpsearch token list",),
    "token revoke": ("hpsearch token revoke gpu-boxes",),
}


def epilog(command: str) -> str:
    """The examples of a command, as the end of its help: Markdown."""
    return "\n\n".join(["Examples:", *(f"`{line}`" for line in EXAMPLES[command])])
