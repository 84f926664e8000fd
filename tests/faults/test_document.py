"""Everything that the OpenAPI document allows, and much that it does not, asked of a running router by schemathesis."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import FaultHouse

PROGRAM = "from schemathesis.cli import schemathesis; schemathesis()"
NOT_HELD = {
    "positive_data_acceptance": "the document says what a field may be; whether a model can take it is said by a 4xx",
    "negative_data_rejection": "fields it does not list may still be good ones; README.md lists them",
    "unsupported_method": "OPTIONS is refused like every other method, where the check wants it described",
    "missing_required_header": "no header is required but the key's, which `ignored_auth` looks at",
}
"""Checks of schemathesis that are left out, each with the reason."""


async def asked_all(house: FaultHouse, folder: Path, examples: int, phases: str) -> None:
    """Let schemathesis loose on the router of this house."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed (it comes with deploy/requirements-dev.txt)")
    house.most_stall_s = 0.5  # the other process takes turns with this one
    await house.start(fast=False)
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "run", f"{house.url}/openapi.json", "--phases", phases, "--no-color",
        "--header", f"Authorization: Bearer {house.key()}", "--max-examples", str(examples), "--seed", "1",
        "--checks", "all", "--exclude-checks", ",".join(NOT_HELD), "--generation-database", "none",
        "--request-timeout", "20", cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await run.communicate()
    assert run.returncode == 0, said.decode()[-12_000:]
    assert len(house.rows()) > 5, "hardly anything was asked"


async def test_a_few_examples_of_every_operation_are_answered_as_the_document_says(
    house: FaultHouse, tmp_path: Path
) -> None:
    await asked_all(house, tmp_path, 5, "examples,fuzzing")


@pytest.mark.long
async def test_whatever_is_asked_is_answered_as_the_document_says(house: FaultHouse, tmp_path: Path) -> None:
    await asked_all(house, tmp_path, 200, "examples,coverage,fuzzing,stateful")
