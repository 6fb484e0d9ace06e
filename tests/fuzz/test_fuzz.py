"""A short, repeatable part of fuzz.py, and that it would notice what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import trial


@pytest.mark.parametrize("first", range(0, 80, 10))
def test_mutated_files_are_read_or_refused(first: int) -> None:
    outcomes = [trial.try_file(number) for number in range(first, first + 10)]
    assert [each.finding for each in outcomes if each.finding] == []
    assert len({each.kind for each in outcomes}) > 1


def test_a_file_read_outside_the_folder_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    with (
        pytest.raises(trial.BrokenPromiseError, match=r"read outside the model's folder: .*secret"),
        trial.guarded(tmp_path / "in", tmp_path),
    ):
        (tmp_path / "in" / "link").read_bytes()


def test_an_error_that_is_not_ours_is_noticed() -> None:
    def fail() -> None:
        raise IndexError("list index out of range")

    with pytest.raises(trial.BrokenPromiseError, match="IndexError: list index out of range"):
        trial.refusal(fail)
