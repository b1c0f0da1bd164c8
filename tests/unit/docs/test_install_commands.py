"""No command of ours can bring a GPU build of torch, which is gigabytes."""

from __future__ import annotations

import re

from tests.support.pages import ROOT


def installs() -> list[str]:
    """Lines of the Makefile and of CI that install something, with their variables."""
    text = (ROOT / "Makefile").read_text("utf-8") + (ROOT / ".ci" / "run").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith(("#", "PIP :="))]
    return [line for line in lines if "$(PIP)" in line or "pip install" in line]


def test_every_install_step_is_pinned_or_takes_no_dependencies() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^PIP := .* -c constraints\.txt$", text, re.MULTILINE)
    assert installs()
    unpinned = [line for line in installs() if "$(PIP)" not in line and "--no-deps" not in line]
    assert unpinned == [next(line for line in installs() if "--upgrade $(NEWEST)" in line)]


def test_the_newest_versions_are_installed_over_the_pinned_build_of_torch() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    recipe = text[text.index("$(LATEST)/.installed: $(STAMP)") :].split("\n\n")[0]
    assert recipe.index("main.pth") < recipe.index("pip install")  # torch is there, and new enough for every bound
    assert "--upgrade-strategy" not in recipe
    (upgrade,) = [line for line in recipe.splitlines() if "$(NEWEST)" in line]
    assert "--no-deps" not in upgrade  # their bounds on each other hold
    (newest,) = re.findall(r"^NEWEST := (.*)$", text, re.MULTILINE)
    assert "torch" not in newest.split()


def test_torch_comes_first_and_by_the_name_of_its_cpu_build() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    (torch,) = re.findall(r"^TORCH := (.*)$", text, re.MULTILINE)
    (pin,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert torch == f"torch=={pin}$(if $(filter Linux,$(shell uname -s)),+cpu)"
    assert installs()[0].startswith("$(PIP) '$(TORCH)' || $(PIP) '$(TORCH)' --index-url https://download.pytorch.org/")


def test_no_pin_is_a_part_of_a_gpu_build() -> None:
    names = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton", "pytorch-triton"))]
