"""The engine contract as tests, a function per clause: an engine is conformant when all of them pass on it.

A clause gets a `Subject` (which engine, of which model, and what it sees) and that engine, started and shared with the
other clauses. One that must break, fill or close an engine starts its own with `subject.running`.

`CLAUSES` hold for every engine; `ISOLATED_CLAUSES` for those that run in a supervised process of their own.
docs/extending.md shows them run on an engine of one's own; they need no test framework.
"""

from sightline.testing import clauses, isolated, structured  # each clause is registered where it is defined
from sightline.testing.isolated import lives
from sightline.testing.subject import (
    CLAUSES,
    ISOLATED_CLAUSES,
    Clause,
    Subject,
    answer,
    ask,
    clause,
    collect,
    ends,
    isolated_clause,
    long,
    patience,
    picture,
    served,
)

__all__ = [
    "CLAUSES",
    "ISOLATED_CLAUSES",
    "Clause",
    "Subject",
    "answer",
    "ask",
    "clause",
    "clauses",
    "collect",
    "ends",
    "isolated",
    "isolated_clause",
    "lives",
    "long",
    "patience",
    "picture",
    "served",
    "structured",
]
