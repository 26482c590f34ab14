"""The tables of the embedded database. A change is one more script at the end: files of earlier versions have had the
others. Times `at`, `claimed_until` are of the machine's monotonic clock, and mean nothing after another `boot`."""

from __future__ import annotations

from typing import Final

_FIRST: Final = """
CREATE TABLE batches (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    status TEXT NOT NULL,
    ending TEXT,
    ended INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    input_file_id TEXT,
    output_file_id TEXT,
    error_file_id TEXT,
    has_output INTEGER NOT NULL DEFAULT 0,
    has_errors INTEGER NOT NULL DEFAULT 0,
    output_kept_s INTEGER,
    window TEXT NOT NULL,
    metadata TEXT NOT NULL,
    model TEXT,
    entered TEXT NOT NULL,
    errors TEXT NOT NULL DEFAULT '[]',
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    claimed_by TEXT,
    claim_boot TEXT,
    claimed_until REAL
);
CREATE INDEX batches_of ON batches (tenant, kind, place);
CREATE INDEX batches_alive ON batches (ended, place) WHERE ended = 0;
CREATE INDEX batches_expiring ON batches (kind, expires_at);
CREATE TABLE items (
    batch INTEGER NOT NULL REFERENCES batches (place) ON DELETE CASCADE,
    idx INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE,
    custom_id TEXT NOT NULL,
    body BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    fence INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '',
    boot TEXT NOT NULL DEFAULT '',
    at REAL NOT NULL DEFAULT 0,
    status_code INTEGER,
    request_id TEXT NOT NULL DEFAULT '',
    reply BLOB NOT NULL DEFAULT x'',
    error_code TEXT,
    error_message TEXT NOT NULL DEFAULT '',
    UNIQUE (batch, idx)
);
CREATE INDEX items_waiting ON items (batch, attempts, idx) WHERE state = 'waiting';
CREATE INDEX items_leased ON items (state) WHERE state = 'leased';
CREATE TABLE keys (
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    digest TEXT NOT NULL,
    batch INTEGER NOT NULL REFERENCES batches (place) ON DELETE CASCADE,
    at REAL NOT NULL,
    PRIMARY KEY (tenant, kind, key)
);
CREATE INDEX keys_at ON keys (at);
CREATE TABLE blobs (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    holders INTEGER NOT NULL
);
CREATE TABLE files (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    blob TEXT NOT NULL REFERENCES blobs (key)
);
CREATE INDEX files_of ON files (tenant, place);
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL
"""

_KEY_ID: Final = "ALTER TABLE batches ADD COLUMN key_id TEXT NOT NULL DEFAULT ''"
_ENDED_AT: Final = """
ALTER TABLE batches ADD COLUMN ended_at REAL;
UPDATE batches SET ended_at = created_at + 86400 WHERE ended = 1;
CREATE INDEX batches_ended ON batches (ended_at) WHERE ended_at IS NOT NULL;
DROP INDEX batches_expiring
"""

SCHEMA: Final = (_FIRST, _KEY_ID, _ENDED_AT)
