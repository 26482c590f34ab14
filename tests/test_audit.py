"""What `make audit` makes of pip-audit's report."""

from __future__ import annotations

import pytest

from tests.audit import told

SOUND = {"name": "numpy", "version": "2.5.0", "vulns": []}
BAD = {"name": "pillow", "version": "9.0.0", "vulns": [{"id": "PYSEC-2022-8", "fix_versions": ["9.0.1"]}]}
UNKNOWN = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI and could not be audited: tqdm (4.70.1)"}


def test_a_vulnerable_package_is_named_with_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    assert not told("core.txt", [SOUND, BAD])
    assert "pillow 9.0.0: PYSEC-2022-8, fixed in ['9.0.1']" in capsys.readouterr().out


def test_sound_packages_pass_and_unknown_ones_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert told("core.txt", [SOUND, UNKNOWN])
    out = capsys.readouterr().out
    assert "1 packages audited, 0 vulnerable" in out
    assert "tqdm is not known" in out


def test_no_service_is_no_finding_and_no_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert told("core.txt", [UNKNOWN, UNKNOWN])
    assert "cannot be reached" in capsys.readouterr().out
