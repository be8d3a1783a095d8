"""Tables of the daemon's database, and upgrades from those of earlier versions. Parts make those that only they use."""

from __future__ import annotations

VERSION = 12  # of the schema, in user_version; see UPGRADES
SCHEMA = """
CREATE TABLE files (
    id TEXT PRIMARY KEY,            -- file-...; stored in STATE/files/ID.jsonl, the results of a job in ID.csv
    name TEXT NOT NULL,             -- as the client called it: shown, never opened
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, rows INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,            -- ftjob-...; its run is stored in STATE/runs/ID
    created_at INTEGER NOT NULL, started_at INTEGER, finished_at INTEGER,
    status TEXT NOT NULL,           -- queued, running, paused, succeeded, failed, cancelled
    origin TEXT NOT NULL,           -- api, or learn: begun by the daemon itself
    model TEXT NOT NULL, suffix TEXT NOT NULL, seed INTEGER NOT NULL,
    training_file TEXT, validation_file TEXT, -- null where rows come from feedback
    method TEXT NOT NULL, metadata TEXT NOT NULL, -- JSON, as the client gave them
    config TEXT NOT NULL,           -- JSON of TrainConfig
    trained_tokens INTEGER, result TEXT, -- adapter
    error TEXT,                     -- JSON {code, message, param}
    verdict TEXT,                   -- JSON: the gate's verdict on its adapter, without the scores of rows
    rounds TEXT);                   -- JSON: of a job in rounds, what became of each
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs(id), created_at INTEGER NOT NULL,
    level TEXT NOT NULL,            -- info, warn, error
    type TEXT NOT NULL,             -- message, or metrics: a line of the run's metrics.jsonl
    message TEXT NOT NULL, data TEXT NOT NULL); -- JSON
CREATE INDEX events_of_job ON events(job, seq);
CREATE TABLE checkpoints (          -- a measurement of the held-out loss
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs(id), created_at INTEGER NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE adapters (
    id TEXT PRIMARY KEY,            -- ft:MODEL:SUFFIX:...; its folder is STATE/adapters/FOLDER
    folder TEXT NOT NULL UNIQUE, job TEXT NOT NULL, created_at INTEGER NOT NULL,
    sha256 TEXT NOT NULL,           -- of adapter.gguf
    verdict TEXT NOT NULL,          -- JSON: whether the gate let it pass, why, scores of both
    name TEXT NOT NULL DEFAULT '',  -- what people call it; '': its id alone
    base TEXT NOT NULL DEFAULT ''); -- fingerprint of its model; '': an earlier version wrote the row
CREATE TABLE service (              -- what answers since when: the last line of a base holds
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL, adapter TEXT, -- null: the base alone
    cause TEXT NOT NULL,
    base TEXT NOT NULL DEFAULT ''); -- as of adapters
CREATE TABLE feedback (
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL,
    rating TEXT, model TEXT NOT NULL,
    row TEXT,                       -- JSON of the question with its right answer, '' where none is known; null: no row
    held INTEGER NOT NULL,          -- 1: never trained on, the gate asks it; -1: its question took no side for it
    state TEXT NOT NULL,            -- as feedback.State
    job TEXT,                       -- the last one that used it
    question TEXT,                  -- digest of what was asked; null where an earlier version wrote the row
    size INTEGER NOT NULL,          -- bytes of row and model
    asked TEXT, answer TEXT,        -- their beginnings, for lists; null without a row
    rejected TEXT,                  -- the wrong, or worse, answer; null where none is known
    tries INTEGER NOT NULL DEFAULT 0, -- jobs that learned it and did not pass, though nothing spoke against it
    expires_at INTEGER,             -- when its answer is right no longer; null: never
    vector BLOB);                   -- of its question: 8 bytes that name the encoder, then float16; null: none is known
CREATE INDEX feedback_by_state ON feedback(state, held, size);
CREATE INDEX feedback_by_question ON feedback(question);
CREATE INDEX feedback_by_job ON feedback(job);
CREATE TABLE questions (            -- of feedback with a row, in the order of their arrival
    place INTEGER PRIMARY KEY,      -- 0, 1, ...; below 0: of an earlier version, which held out by another rule
    name TEXT NOT NULL UNIQUE,      -- digest of what was asked, as in feedback
    held INTEGER NOT NULL);         -- 1: held out, for ever
CREATE TABLE proposals (            -- corrections that people made in a chat, until they are confirmed or dismissed
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL,
    row TEXT NOT NULL);             -- JSON of Proposal: conversation, answer, remark, proposed correction
CREATE TABLE drawn (                -- a uniform sample of the questions that people asked; they are never learned
    place INTEGER PRIMARY KEY,      -- in order of time
    created_at INTEGER NOT NULL,
    row TEXT NOT NULL,              -- JSON of what was asked, without any answer
    question TEXT NOT NULL UNIQUE,  -- its digest, as in feedback
    adapter TEXT NOT NULL,          -- that answered it last, or the fingerprint of the base
    checked INTEGER);               -- the newest place when a person rated its answer in a check
CREATE TABLE switches (             -- what people switched off; what has no row is on
    name TEXT PRIMARY KEY);
"""
TEXTS_LEAVE_JOBS = """
UPDATE events SET data = 'null' WHERE type = 'message' AND data LIKE '{"run":%';
UPDATE events SET data = json_set(data, '$.config.system', '') WHERE type = 'message' AND data LIKE '{"rows":%'
    AND json_valid(data) AND job IN (SELECT id FROM jobs WHERE origin != 'api');
UPDATE jobs SET config = json_set(config, '$.system', '') WHERE json_valid(config) AND origin != 'api'
    AND finished_at IS NOT NULL;
UPDATE jobs SET method = json_remove(method, '$.' || json_extract(method, '$.type') || '.hyperparameters.system')
    WHERE json_valid(method) AND origin != 'api' AND finished_at IS NOT NULL;
"""  # of earlier versions, whose jobs kept system messages and labels of people's rows for ever
UPGRADES = {  # from a version of the schema to the next
    1: """
ALTER TABLE jobs ADD COLUMN verdict TEXT;
UPDATE jobs SET verdict = (
    SELECT json_remove(json_extract(data, '$.verdict'), '$.scores') FROM events
    WHERE job = jobs.id AND type = 'message' AND data LIKE '%"verdict"%' AND json_valid(data)
    ORDER BY seq DESC LIMIT 1);
ALTER TABLE feedback ADD COLUMN question TEXT;
ALTER TABLE feedback ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE feedback SET size = coalesce(length(row), 0) + length(CAST(model AS BLOB));
UPDATE feedback SET state = 'counted' WHERE row IS NULL;
DROP INDEX feedback_by_state;
CREATE INDEX feedback_by_state ON feedback(state, held, size);
CREATE INDEX feedback_by_question ON feedback(question);
""",
    2: """
ALTER TABLE feedback ADD COLUMN asked TEXT;
ALTER TABLE feedback ADD COLUMN answer TEXT;
UPDATE feedback SET
    asked = substr(coalesce(json_extract(row, '$.prompt'), json_extract(row, '$.messages[#-2].content[0].text'),
                            json_extract(row, '$.messages[#-2].content')), 1, 300),
    answer = substr(coalesce(json_extract(row, '$.completion'), json_extract(row, '$.messages[#-1].content')), 1, 300)
    WHERE json_valid(row);
CREATE INDEX feedback_by_job ON feedback(job);
CREATE TABLE questions (place INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, held INTEGER NOT NULL);
INSERT INTO questions (place, name, held) SELECT -max(rowid), question, held FROM feedback
    WHERE question != '' AND row IS NOT NULL GROUP BY question;
""",
    3: """
ALTER TABLE adapters ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE feedback ADD COLUMN pair TEXT;
CREATE INDEX feedback_by_pair ON feedback(pair);
""",
    4: """
ALTER TABLE feedback ADD COLUMN rejected TEXT;
UPDATE feedback SET rejected = (
    SELECT coalesce(json_extract(worse.row, '$.completion'), json_extract(worse.row, '$.messages[#-1].content'))
    FROM feedback AS worse WHERE worse.pair = feedback.pair AND worse.state = 'counted' AND json_valid(worse.row))
    WHERE pair IS NOT NULL AND state != 'counted';
UPDATE feedback SET size = size + coalesce(length(CAST(rejected AS BLOB)), 0);
DELETE FROM feedback WHERE pair IS NOT NULL AND state = 'counted';
DROP INDEX feedback_by_pair;
""",
    5: """
ALTER TABLE jobs ADD COLUMN rounds TEXT;
CREATE TABLE switches (name TEXT PRIMARY KEY);
""",
    6: """
ALTER TABLE feedback ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
""",
    7: """
CREATE TABLE proposals (id TEXT PRIMARY KEY, created_at INTEGER NOT NULL, row TEXT NOT NULL);
""",
    8: """
ALTER TABLE feedback ADD COLUMN expires_at INTEGER;
ALTER TABLE feedback ADD COLUMN vector BLOB;
""",
    9: """
ALTER TABLE adapters ADD COLUMN base TEXT NOT NULL DEFAULT '';
ALTER TABLE service ADD COLUMN base TEXT NOT NULL DEFAULT '';
""",
    10: TEXTS_LEAVE_JOBS + """
CREATE TABLE drawn (place INTEGER PRIMARY KEY, created_at INTEGER NOT NULL, row TEXT NOT NULL,
    question TEXT NOT NULL UNIQUE, adapter TEXT NOT NULL);
""",
    11: """
ALTER TABLE drawn ADD COLUMN checked INTEGER;
"""}
