"""Three tasks one after another on the same devices: what a message is about, what time it names, what form it has.

    python examples/continual/run.py
    python examples/continual/run.py --method closed-form --keep sums
    python examples/continual/run.py --method sequential --keep nothing -c side-network.name=additive
    python examples/continual/run.py --order form time intent

Each task is a `mobillm run` of this app that goes on with the one before; the commands are printed. Whatever `-c` sets
holds for every run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from mobillm_flower.config import DataSettings
from mobillm_flower.tasks.sources import load_splits

APP = Path(__file__).parent
TASKS = ("intent", "time", "form")


_HOURS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_DAYS = "mon|tues|wednes|thurs|fri|satur|sun"
_MONTHS = "january|february|march|april|june|july|august|september|october|november|december"
_ASKING = "who|what|when|where|which|why|how|did|do|does|is|are|am|was|were|has|have|can|could|will|would|any|anything"

CLOCK = re.compile(
    rf"\b(\d{{1,2}}([:.]\d\d)? ?(am|pm)\b|\d{{1,2}}[:.]\d\d|half (past )?({_HOURS})"
    r"|(quarter|twenty|ten|five) (past|to)\b|o.clock|noon|midnight"
    rf"|(at|by|for|till|until|before|after) ({_HOURS}|\d{{1,2}})\b"
    r"|(minute|hour|second)s?\b|\d+ ?(min|sec|hour))",
    re.IGNORECASE,
)
DAY = re.compile(
    rf"\b(({_DAYS})days?|today|tomorrow|tonight|yesterday|week(end)?s?|month|the \d+(st|nd|rd|th)|{_MONTHS}"
    r"|morning|afternoon|evening)\b",
    re.IGNORECASE,
)
QUESTION = re.compile(rf"^({_ASKING})\b|\?", re.IGNORECASE)


def time_of(text: str) -> str:
    """Say whether a message names a time of the clock or a span of minutes or hours, otherwise a day, or neither."""
    return "clock" if CLOCK.search(text) else "day" if DAY.search(text) else "none"


def form_of(text: str) -> str:
    """Say whether a message asks or tells."""
    return "question" if QUESTION.search(text) else "request"


def write_rows(folder: Path) -> None:
    """Write the package's messages with all three labels, as files that `data.source` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in zip(("train", "test"), load_splits(DataSettings(source="phone-messages")), strict=True):
        lines = [{**row, "time": time_of(row["text"]), "form": form_of(row["text"])} for row in rows]
        folder.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def main() -> int:
    """Run the tasks in order, and print where the report of the whole sequence is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", default="replay", help="continual.method")
    parser.add_argument("--keep", default="all", help="continual.keep")
    parser.add_argument("--out", type=Path, default=Path("runs/continual"), help="folder of the runs, one a task")
    parser.add_argument("-c", dest="config", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    rows = (chosen.out / "rows").resolve()
    write_rows(rows)
    before = None
    for task in chosen.order:
        run = chosen.out / task
        words = [f"data.source={rows}", f"data.label-column={task}", f"continual.task={task}"]
        words += [f"continual.method={chosen.method}", f"continual.keep={chosen.keep}"]
        words += [f"continual.after={before}"] if before else []
        command = ["run", str(APP), "--out", str(run)]
        command += [part for word in [*words, *chosen.config] for part in ("-c", word)]
        print("$", shlex.join(["mobillm", *command]), flush=True)
        program = Path(sys.executable).parent / "mobillm"
        if code := subprocess.run([program, *command], env=os.environ, check=False).returncode:
            return code
        before = run
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
