"""Build the wheel and check what is in it: the package with its data, nothing else."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NEEDED = (
    "mobillm_flower/py.typed",
    "mobillm_flower/backbones/public_text.txt",
    "mobillm_flower/reports/page.css",
    "mobillm_flower/cli/templates/pyproject.toml.template",
    "mobillm_flower/cli/templates/rows/classification-train.jsonl",
    "mobillm_flower/tasks/data/phone_messages_train.jsonl",
    "mobillm_flower/tasks/data/phone_messages_test.jsonl",
    "mobillm_flower/strategies/pae.py",
    "mobillm_flower/clients/side_tuning.py",
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
    info = {name.split("/")[0] for name in names if ".dist-info/" in name}
    missing = [name for name in NEEDED if name not in names]
    foreign = [name for name in names if name.split("/")[0] not in {"mobillm_flower", *info} or "__pycache__" in name]
    for name in missing:
        print(f"missing in the wheel: {name}")
    for name in foreign:
        print(f"does not belong in the wheel: {name}")
    print(f"{wheel.name}: {len(names)} files")
    return 1 if missing or foreign else 0


if __name__ == "__main__":
    sys.exit(main())
