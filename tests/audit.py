"""`make audit`: whether anything that ships pinned is known to be vulnerable. `python -m tests.audit PYTHON LOCK...`

Asks the Python Packaging Advisory Database through pip-audit, by the Python of an environment that has it. Exit status
1 with a finding. Where the service cannot be reached, nothing is known: that is printed, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def run(python: str, lock: str) -> list[dict[str, Any]]:
    command = [python, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--format", "json", "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        print(f"{lock}: not audited: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
        return []
    return found


def told(lock: str, dependencies: Sequence[dict[str, Any]]) -> bool:
    """Prints what is known of a lock's packages; whether none is vulnerable."""
    vulnerable = [one for one in dependencies if one.get("vulns")]
    unknown = [one for one in dependencies if "skip_reason" in one]
    for one in vulnerable:
        for vuln in one["vulns"]:
            print(f"{lock}: {one['name']} {one['version']}: {vuln['id']}, fixed in {vuln['fix_versions'] or 'nothing'}")
    if dependencies and len(unknown) == len(dependencies):
        print(f"{lock}: not audited: the advisory service cannot be reached from here")
    elif dependencies:
        print(f"{lock}: {len(dependencies) - len(unknown)} packages audited, {len(vulnerable)} vulnerable")
        for one in unknown:
            print(f"{lock}: {one['name']} is not known to the service")
    return not vulnerable


def main() -> int:
    python, *locks = sys.argv[1:]
    sound = [told(lock, run(python, lock)) for lock in locks]
    return int(not all(sound))


if __name__ == "__main__":
    raise SystemExit(main())
